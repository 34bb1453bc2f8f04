"""Print nights: the report of one, the runs of an output, and the labels that people have checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jobs import terminal
from jobs.printing.figures import format_estimate, format_minute, format_rows
from spin.pages.number_format import counted
from spin.sites import exit_name

if TYPE_CHECKING:
    from pipelines.nightly.nights import NightRun, RunDetails
    from pipelines.nightly.report.night_report import NightReport, ScoredNight
    from spin.monitor.agreement import ShadowAgreement
    from spin.monitor.drift import NeuronShift

_DISAGREEMENTS = 3
"""number of disagreements between a model and its shadow that are shown, the most frequent first"""
_QUARANTINED = 10
"""number of quarantined files that are shown of a run"""


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
        command = f"spin nights show {report.run} --output {output} --json"
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


def print_runs(runs: Sequence[NightRun], output: str) -> None:
    """Print a row per run of an output, and the commands that resume the unfinished ones."""
    from pipelines.nightly.nights import models_to_resume, resumable_runs

    table = terminal.new_table(["run", "state"], ["version", "rows", "dead"])
    table.add_column("published (UTC)", no_wrap=True)
    for run in runs:
        counts = ("" if count is None else f"{count:,}" for count in (run.predictions, run.dead_letters))
        table.add_row(run.run, run.state, run.model_version or "", *counts, format_minute(run.published))
    terminal.show(table)
    for run in resumable_runs(runs):
        models = "".join(f" --model {model}" for model in models_to_resume(run, runs))
        options = f"--output {output} --date {run.date}{' --incremental' if run.incremental else ''}{models}"
        terminal.say(f"{run.run} is unfinished: `spin classify … {options}` resumes it")


def print_details(details: RunDetails) -> None:
    """Print the state of a run, its rows by table, its input files, and where its report is."""
    run = details.night
    version = "" if run.model_version is None else f", version {run.model_version}"
    kind = "incremental night" if run.incremental else "night"
    terminal.say(f"{run.run}: {run.state}, {kind} of {run.date}, model {run.model}{version}")
    terminal.say_about("", _describe_run(details))


def _describe_run(details: RunDetails) -> Iterator[str]:
    times = (("begun", details.night.begun), ("published", details.night.published))
    yield ", ".join(f"{name} {time}" for name, time in times if time is not None)
    if details.rows:
        yield format_rows({table: count for table, count in details.rows.items() if table != "inputs"})
    if details.files_taken is not None:
        yield f"{counted(details.files_taken, 'input file')} taken, {len(details.quarantined):,} quarantined"
    for file in details.quarantined[:_QUARANTINED]:
        named = file.reason.startswith(file.uri)  # most reasons begin with the file
        yield f"quarantined: {file.reason if named else f'{file.uri}: {file.reason}'}"
    if len(details.quarantined) > _QUARANTINED:
        yield f"… and {len(details.quarantined) - _QUARANTINED:,} more; --json lists them"
    if details.report is not None:
        yield f"report: {details.report}"


def print_scores(scores: Sequence[ScoredNight]) -> None:
    """Print a row per night whose labels people have checked: its accuracy, by scores and checked labels."""
    if not scores:
        return
    table = terminal.new_table(["night", "model"], ["right", "accuracy"])
    for score in scores:
        model, right = f"{score.model} {score.model_version}".strip(), f"{score.right:,} of {score.checked:,}"
        table.add_row(score.date, model, right, format_estimate(score.accuracy))
    terminal.show(table)
