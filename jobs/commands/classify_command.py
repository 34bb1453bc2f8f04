"""The command `spin classify`: which models classify, what is printed of each night, and the exit status."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.figures import format_estimate
from jobs.options import File, Input, Models, Output, Set, open_registry
from spin.errors import SpinError, UserError
from spin.pages.number_format import counted
from spin.settings import Settings, load_settings
from spin.sites import exit_name

if TYPE_CHECKING:
    from pipelines.nightly.night_models import RequestedModel
    from pipelines.nightly.report.night_report import NightReport
    from spin.monitor.agreement import ShadowAgreement
    from spin.monitor.drift import NeuronShift
_DISAGREEMENTS = 3
"""number of disagreements between a model and its shadow that are shown, the most frequent first"""


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
            "--incremental",
            help="skip files that a night of another date of this output, published or deleted, has taken",
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


def print_night(report: NightReport, output: str, *, named: bool = False) -> None:
    """Print the counts of a night and where its output is; `named` adds the name of its model."""
    terminal.say_about("classify", _describe_night(report, output, named=named))


def _describe_night(report: NightReport, output: str, *, named: bool) -> Iterator[str]:
    counts, files = report.counts, report.files
    mix = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.labels.items()))
    share = f"{counts.predicted:,} of {counted(counts.rows, 'document')}"
    name = f"{report.model} " if named else ""
    yield f"{share} by {name}version {report.model_version}{f': {mix}' if mix else ''}"
    if files.skipped:
        yield f"{counted(files.skipped, 'file')} skipped that other nights have taken"
    for file in report.quarantined:
        yield f"quarantined: {file.reason}"
    if files.quarantined > len(report.quarantined):
        command = shlex.join(["spin", "nights", "show", report.run, "--output", output, "--json"])
        yield f"quarantined: {counted(files.quarantined, 'file')} in all; `{command}` lists them"
    if counts.dead:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.reasons.items()))
        yield f"{counted(counts.dead, 'dead letter')}: {reasons}"
    if counts.abstained:
        yield f"{counted(counts.abstained, 'document')} without a label: coverage {100 * report.coverage:.1f} %"
    if report.max_error is not None:
        share = f"{100 * report.max_error:g} % of the labels are wrong"
        yield f"decision.max_error: at most {share}, for documents like the test documents"
    yield from _describe_quality(report)
    if counts.truncated:
        beyond = "cut at backbone.max_tokens"
        if counts.windows:
            beyond = f"longer than backbone.max_windows windows, {counted(counts.unread_tokens, 'token')} not read"
        yield f"{counted(counts.truncated, 'text')} ({100 * counts.truncated_share:.1f} %) {beyond}"
    if len(counts.depths) > 1:
        depths = sorted(counts.depths.items(), key=lambda item: int(item[0]))
        yield f"exits: {', '.join(f'{n:,} {exit_name(int(depth))}' for depth, n in depths)}"
    for drift in report.drift:
        if drift.drifted:
            yield f"drift: {drift.name} stability index {drift.psi:.2f}, above {drift.limit:.2f}"
            yield from (_describe_causes(neuron) for neuron in drift.moved if neuron.documents or neuron.words)
    if report.shadow is not None:
        yield _describe_shadow(report.shadow)
    where = output.rstrip("/")
    yield f"predictions in {where}/predictions, the report in {where}/_runs/{report.run}/report.html"


def _describe_quality(report: NightReport) -> Iterator[str]:
    """The estimate of the quality of a night's labels, or the reason why there is none."""
    if report.quality_withdrawn:
        yield f"no estimate of the labels' quality: {' and '.join(report.quality_withdrawn)} drifted from training"
    elif report.quality is not None:
        accuracy, macro_f1 = format_estimate(report.quality.accuracy), format_estimate(report.quality.macro_f1)
        yield f"estimated without labels: accuracy {accuracy}, macro-F1 {macro_f1}"


def _describe_causes(neuron: NeuronShift) -> str:
    """A neuron that moved, the documents that drive it, and their words."""
    causes = (("documents", neuron.documents), ("words", neuron.words))
    listed = "; ".join(f"{name} {', '.join(values)}" for name, values in causes if values)
    return f"{neuron.column}[{neuron.neuron}] moved by {neuron.shift:+.2f} standard deviations: {listed}"


def _describe_shadow(shadow: ShadowAgreement) -> str:
    """The share of documents on which the shadow agrees, and the most frequent disagreements."""
    pairs = shadow.disagreements()
    missing = "not given" if shadow.multilabel else "no label"
    listed = [
        f"{pair.model_label or missing} → {pair.shadow_label or missing} {pair.documents:,}"
        for pair in pairs[:_DISAGREEMENTS]
    ] + ["…"] * (len(pairs) > _DISAGREEMENTS)
    share = "none" if shadow.agreement is None else f"{100 * shadow.agreement:.1f} %"
    failed = f", failed on {shadow.failed:,}" if shadow.failed else ""
    compared = f"{counted(shadow.compared, 'document')}{failed}"
    return f"shadow version {shadow.version} agrees on {share} of {compared}" + ": " * bool(listed) + ", ".join(listed)


def print_check(compared: int, agreed: int) -> None:
    """Print how many labels of a night are the same in float32."""
    share = f"{agreed:,} of {counted(compared, 'label')} ({100 * agreed / compared:.2f} %)"
    terminal.say_about("check", [f"{share} the same in float32"])
