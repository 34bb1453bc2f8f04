"""The work of `spin classify`: which models classify, what is printed of each night, and the exit status."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs import terminal
from jobs.options import open_registry
from spin.errors import SpinError, UserError
from spin.settings import Settings

if TYPE_CHECKING:
    from pipelines.nightly.finish_nights import NightFailure
    from pipelines.nightly.night_models import RequestedModel
    from pipelines.nightly.report.night_report import NightReport


@dataclass(frozen=True)
class ClassifyOptions:
    """The options of `spin classify` that a night is asked for with."""

    source: str
    """file, folder or glob of documents"""
    output: str
    """folder or prefix that collects all nights"""
    night: str | None
    """date of the night"""
    incremental: bool
    """whether files of other nights are skipped"""
    restart: bool
    """whether a new run begins"""
    check: int | None
    """documents that are also classified in float32"""


def classify(settings: Settings, models: Sequence[str], shadow: str | None, options: ClassifyOptions) -> None:
    """Classify with all models, print their nights, and raise the error with the highest exit status, drift last.

    A model that fails keeps no other one from being published, printed and checked.
    """
    from pipelines.nightly.classify import classify_nights
    from pipelines.nightly.finish_nights import raise_failures

    requested = request_models(settings, models, shadow)
    nights = classify_nights(
        settings,
        requested,
        options.source,
        options.output,
        night=options.night,
        incremental=options.incremental,
        restart=options.restart,
    )
    failures, several = list(nights.failures), len(requested) > 1
    for report in nights.reports:
        each = requested[0] if not several else next(model for model in requested if model.name == report.model)
        own = settings.model_copy(update={"backbone": nights.backbones.get(report.model, settings.backbone)})
        with _keeping_failure(failures, report.model):
            _print_night(own, each, report, options, several=several)
    raise_failures(failures, several=several)


def request_models(settings: Settings, models: Sequence[str], shadow: str | None) -> list[RequestedModel]:
    """The models that `--model` names, by default the champion of the settings' model; one of them has the shadow.

    Raises UserError if there are several and the shadow does not say which of them is its model.
    """
    from pipelines.nightly.night_models import RequestedModel
    from pipelines.registry.versions import model_name

    references: Sequence[str | None] = models or [None]
    names = [(reference and model_name(reference)) or settings.mlflow.model for reference in references]
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


def _print_night(
    settings: Settings, requested: RequestedModel, report: NightReport, options: ClassifyOptions, *, several: bool
) -> None:
    """Print a night, and check its precision and its drift. Raises DriftError if the settings say so.

    `settings` have the backbone of the model.
    """
    terminal.night(report, options.output, named=several)
    if options.check is not None:
        from pipelines.nightly.report.precision_check import check_precision

        terminal.check(*check_precision(settings, requested.registry, report, options.check))
    if requested.shadow is not None and report.shadow is None:
        version = f"version {report.model_version}, the version that classified"
        terminal.say(f"          no shadow: {requested.shadow} is {version}")
    if settings.classify.fail_on_drift:
        from pipelines.nightly.report.drift_check import check_drift

        check_drift(report)


@contextmanager
def _keeping_failure(failures: list[NightFailure], model: str) -> Iterator[None]:
    """Add an error to the failures, and go on."""
    from pipelines.nightly.finish_nights import NightFailure

    try:
        yield
    except SpinError as error:
        failures.append(NightFailure(model, error))
