"""The command `spin classify`: which models classify, what is printed of each night, and the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.options import File, Input, Models, Output, Set, open_registry
from jobs.printing.nights import print_check, print_night
from spin.errors import SpinError, UserError
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.nightly.night_models import RequestedModel
    from pipelines.nightly.report.night_report import NightReport


def classify(
    settings: File,
    input: Input,
    output: Output,
    model: Models = [],  # noqa: B006
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS|models:/NAME/N",
            help="second version that classifies the same documents, only to report how often the two agree",
        ),
    ] = None,
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="date of the night; default: today in UTC")
    ] = None,
    incremental: Annotated[
        bool,
        typer.Option(
            "--incremental", help="skip files that a published night of another date of this output has taken"
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="begin a new run of the date; the published night stays visible until the new run replaces it",
        ),
    ] = False,
    check: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="also classify N of the documents in float32 and compare the labels"),
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Classify a batch of documents with one model or several; run again after a failure, it resumes."""
    from pipelines.nightly.classify import classify_nights
    from pipelines.nightly.command_result import NightFailure

    loaded = load_settings(settings, set)
    requested = request_models(loaded, model, shadow)
    nights = classify_nights(loaded, requested, input, output, night=date, incremental=incremental, restart=restart)
    failed, several = list(nights.failures), len(requested) > 1
    for report in nights.reports:  # a model that fails keeps no other one from being printed and checked
        each = requested[0] if not several else next(model for model in requested if model.name == report.model)
        own = loaded.model_copy(update={"backbone": nights.backbones.get(report.model, loaded.backbone)})
        try:
            print_night(report, output, named=several)
            _check_night(own, each, report, check)
        except SpinError as error:
            failed.append(NightFailure(report.model, error))
    replace(nights, failures=tuple(failed)).raise_failures()  # the one with the highest exit status, drift last


def request_models(settings: Settings, models: Sequence[str], shadow: str | None) -> list[RequestedModel]:
    """The models that `--model` names, by default the champion of the settings' model; one of them has the shadow.

    Raises UserError if there are several and the shadow does not say which of them is its model.
    """
    from pipelines.nightly.night_models import RequestedModel
    from pipelines.registry.versions import model_name

    references: Sequence[str | None] = models or [None]
    names = [(reference and model_name(reference)) or settings.mlflow.name for reference in references]
    shadow_name = names[0] if len(names) == 1 or shadow is None else model_name(shadow)
    if shadow is not None and shadow_name not in names:
        raise UserError(
            f"--shadow {shadow}: several models classify, {', '.join(names)}; expected models:/NAME@ALIAS or "
            "models:/NAME/N with one of these names, which says whose shadow it is"
        )
    return [
        RequestedModel(open_registry(settings, name), reference, shadow if name == shadow_name else None)
        for name, reference in zip(names, references, strict=True)
    ]


def _check_night(settings: Settings, requested: RequestedModel, report: NightReport, documents: int | None) -> None:
    """Check the precision of a night on some documents, and its drift. Raises DriftError if the settings say so.

    `settings` have the backbone of the model.
    """
    if documents is not None:
        from pipelines.nightly.report.precision_check import check_precision

        print_check(*check_precision(settings, requested.registry, report, documents))
    if requested.shadow is not None and report.shadow is None:
        version = f"version {report.model_version}, the version that classified"
        terminal.say_about("", [f"no shadow: {requested.shadow} is {version}"])
    if settings.classify.fail_on_drift:
        from pipelines.nightly.command_result import check_drift

        check_drift(report)
