"""Results on the terminal: lines, tables and shaded text on standard output, errors on standard error."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from spin.pages.number_format import counted, significant
from spin.settings import mask_credentials
from spin.sites import FeatureColumn, exit_name

if TYPE_CHECKING:
    from pipelines.nightly.report.night_report import NightReport
    from pipelines.registry.champion_history import ChampionEvent
    from pipelines.registry.promotion.gate_checks import CheckResult
    from pipelines.registry.version_records import Version
    from pipelines.training.evaluate import EvaluationReport
    from pipelines.training.extract_features import CorpusCounts
    from pipelines.training.neurons import ChosenNeuron
    from pipelines.training.train import TrainReport
    from pipelines.training.workflow import StageEvent
    from spin.heads.fitted import ChoiceSummary, TrainingSummary, UncappedChoice
    from spin.heads.selection import Rule
    from spin.labels.label_space import Label
    from spin.monitor.agreement import ShadowAgreement
    from spin.monitor.drift import NeuronShift
    from spin.monitor.quality import Estimate
    from spin.pages.explanation import Explanation
    from spin.pages.explanation_page import Drivers
    from spin.pages.model_card import ContenderResult, ScoreInterval
    from spin.predictions import Predictions
    from spin.settings import Choice

_EXCERPT = 80
"""characters shown of a training document"""
_DISAGREEMENTS = 3
"""number of disagreements between a model and its shadow that are shown, the most frequent first"""
_IMPORTANCE: dict[Rule, str] = {
    "l1": "share of the weights of its probe",
    "ridge": "share of the weights of a ridge regression on all neurons",
}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_CHOICES: tuple[Choice, ...] = ("accuracy", "balanced", "cheapest")

out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print a line unwrapped, so that it can be copied from a terminal as one line."""
    out.print(escape(mask_credentials(text)), soft_wrap=True)


def next_command(*words: str) -> None:
    """Print the command to go on with, as it can be typed here."""
    say(f"next: {program()} {shlex.join(words)}")


def program() -> str:
    """Return the name or path under which this command can be started again."""
    started, found = Path(sys.argv[0]), shutil.which("spin")
    if started.name != "spin" or not started.exists() or (found is not None and started.samefile(found)):
        return "spin"
    return str(started)


def show(table: Table) -> None:
    """Print a table: on a terminal with lines, elsewhere as columns that spaces align, of any width.

    In a terminal that is too narrow, the first cell of each row is a line of its own and the others follow below it. So
    the name in it is whole, and can be copied to the next command.
    """
    if not out.is_terminal:
        _show_plain(table)
    elif _least_width(table) <= out.width:
        out.print(table)
    else:
        _show_rows(table)


def _least_width(table: Table) -> int:
    """The width in which no cell is cut, and none is wrapped that must not be; the rest of a text may be left out."""

    def width(column: Column) -> int:
        if column.ratio:
            return cell_len(str(column.header))
        cells = (Text.from_markup(str(cell)) for cell in (column.header, *column.cells))
        sizes = [Measurement.get(out, out.options, cell) for cell in cells]
        return max(size.maximum if column.no_wrap else size.minimum for size in sizes)

    return sum(width(column) + 3 for column in table.columns) + 1


def _show_plain(table: Table) -> None:
    """Print a table without lines, for a pipe or a file."""
    columns = [
        [Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells)] for column in table.columns
    ]
    rights = [column.justify == "right" for column in table.columns]
    widths = [max(map(cell_len, cells)) for cells in columns]
    lines = [] if table.title is None else [Text.from_markup(str(table.title)).plain]
    for row in zip(*columns, strict=True):
        pads = (" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        cells = (pad + cell if right else cell + pad for cell, pad, right in zip(row, pads, rights, strict=True))
        lines.append("  ".join(cells).rstrip())
    raw("".join(f"{line}\n" for line in lines))


def _show_rows(table: Table) -> None:
    """Print each row of a table as its first cell, whole, and the others with their names below it."""
    if table.title is not None:
        out.print(table.title)
    headers = [column.header for column in table.columns]
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        out.print(first, soft_wrap=True)
        named = (f"{header} {cell}".strip() for header, cell in zip(headers[1:], others, strict=True) if cell)
        out.print(Padding(Text.from_markup(", ".join(named)), (0, 0, 0, 2), expand=False))


def failure(text: str) -> None:
    """Print an error in one line on standard error, without what may be a credential in a URI."""
    _err.print(f"[red]error:[/red] {escape(mask_credentials(' '.join(text.split())))}", soft_wrap=True)


def stage(event: StageEvent) -> None:
    """Print what a stage produced and how long it took, or that it had finished before."""
    from pipelines.training.extract_features import ExtractResults
    from pipelines.training.fit_probes import ProbeResults

    results = event.results
    if isinstance(results, ExtractResults):
        produced = _extracted(results.counts)
    elif isinstance(results, ProbeResults):
        produced = f"{counted(len(results.probes), 'probe')} of {counted(len(results.classes), 'class', 'classes')}"
    else:
        produced = _chosen(results)
    say(f"{event.stage:<9} {produced}" + (" — finished before" if event.resumed else f" — {event.seconds:.0f} s"))


def trained(report: TrainReport) -> None:
    """Print accuracy by compute, the comparison table, and the version under which the classifier is registered."""
    choice = report.results.choice
    show(_frontier(choice))
    for name in _CHOICES:
        say(f"{name:<9} {_choice(choice.choices[name])}")
        if choice.cap is not None:
            say(f"{'':<9} {_leakage(choice.choices[name], choice.cap.uncapped[name])}")
    if report.results.table:
        show(_table(report.results.table))
        documents = f"{report.results.table[0].documents:,} test documents"
        say(f"±: 95 % interval over {documents}, at full depth; ≈: cannot be told apart from spin on them")
    for note in report.results.notes:
        say(note)
    if report.results.suspects:
        labelled = sum(report.results.counts[split] for split in ("train", "valid"))
        share = f"{report.results.suspects:,} of {counted(labelled, 'label')}"
        say(f"{share} contradicted by those of similar documents; suspects.parquet in the store lists them")
    say(f"registered {report.registered.model} version {report.registered.version} as challenger")


def night(report: NightReport, output: str, *, named: bool = False) -> None:
    """Print the counts of a night and where its output is; `named` adds the name of its model."""
    counts, files = report.counts, report.files
    mix = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.labels.items()))
    share = f"{counts.predicted:,} of {counted(counts.rows, 'document')}"
    name = f"{report.model} " if named else ""
    say(f"classify  {share} by {name}version {report.model_version}{f': {mix}' if mix else ''}")
    if files.skipped:
        say(f"          {counted(files.skipped, 'file')} skipped that other nights have taken")
    for file in report.quarantined:
        say(f"          quarantined: {file.reason}")
    if files.quarantined > len(report.quarantined):
        command = f"spin nights show {report.run} --output {output} --json"
        say(f"          quarantined: {counted(files.quarantined, 'file')} in all; `{command}` lists them")
    if counts.dead:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.reasons.items()))
        say(f"          {counted(counts.dead, 'dead letter')}: {reasons}")
    if counts.abstained:
        without = counted(counts.abstained, "document")
        say(f"          {without} without a label: coverage {100 * report.coverage:.1f} %")
    if report.max_error is not None:
        share = f"{100 * report.max_error:g} % of the labels are wrong"
        say(f"          decision.max_error: at most {share}, for documents like the test documents")
    for line in _quality(report):
        say(f"          {line}")
    if counts.truncated:
        percent = 100 * counts.truncated_share
        if counts.windows:
            beyond = f"longer than backbone.max_windows windows, {counted(counts.unread_tokens, 'token')} not read"
        else:
            beyond = "cut at backbone.max_tokens"
        say(f"          {counted(counts.truncated, 'text')} ({percent:.1f} %) {beyond}")
    if len(counts.depths) > 1:
        depths = sorted(counts.depths.items(), key=lambda item: int(item[0]))
        say(f"          exits: {', '.join(f'{n:,} {exit_name(int(depth))}' for depth, n in depths)}")
    for drift in report.drift:
        if drift.drifted:
            say(f"          drift: {drift.name} stability index {drift.psi:.2f}, above {drift.limit:.2f}")
            for neuron in drift.moved:
                if neuron.documents or neuron.words:
                    say(f"          {_causes(neuron)}")
    if report.shadow is not None:
        say(f"          {_shadow(report.shadow)}")
    where = output.rstrip("/")
    say(f"          predictions in {where}/predictions, the report in {where}/_runs/{report.run}/report.html")


def _quality(report: NightReport) -> list[str]:
    """Return what is estimated of the quality of a night's labels, or why there is no estimate."""
    if report.quality_withdrawn:
        moved = " and ".join(report.quality_withdrawn)
        return [f"no estimate of the labels' quality: {moved} drifted from training"]
    if report.quality is None:
        return []
    figures = (("accuracy", report.quality.accuracy), ("macro-F1", report.quality.macro_f1))
    shown = [f"{name} {format_estimate(estimate)}" for name, estimate in figures]
    return [f"estimated without labels: {', '.join(shown)}"]


def check(compared: int, agreed: int) -> None:
    """Print how many labels of a night are the same in float32."""
    labels = counted(compared, "label")
    say(f"check     {agreed:,} of {labels} ({100 * agreed / compared:.2f} %) the same in float32")


def _causes(neuron: NeuronShift) -> str:
    """Return a neuron that moved, the documents that drive it, and their words."""
    causes = (("documents", neuron.documents), ("words", neuron.words))
    listed = "; ".join(f"{name} {_printable(', '.join(values))}" for name, values in causes if values)
    return f"{neuron.column}[{neuron.neuron}] moved by {neuron.shift:+.2f} standard deviations: {listed}"


def _printable(text: str) -> str:
    """Return a text without control characters, which ids of documents may have."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _shadow(shadow: ShadowAgreement) -> str:
    """Return on how many documents the shadow agrees, and the most frequent disagreements."""
    pairs, counts = shadow.disagreements(), shadow.counts
    missing = "not given" if shadow.multilabel else "no label"
    listed = ", ".join(
        f"{pair.model_label or missing} → {pair.shadow_label or missing} {pair.documents:,}"
        for pair in pairs[:_DISAGREEMENTS]
    )
    share = "none" if shadow.agreement is None else f"{100 * shadow.agreement:.1f} %"
    failed = f", failed on {counts.failed:,}" if counts.failed else ""
    return (
        f"shadow version {shadow.version} agrees on {share} of {counted(counts.compared, 'document')}{failed}"
        + (f": {listed}" if listed else "")
        + (", …" if len(pairs) > _DISAGREEMENTS else "")
    )


def evaluation(report: EvaluationReport) -> None:
    """Print every metric and the figures of every class, and how labels were decided."""
    table = _columns("class", "precision", "recall", "F1", "documents")
    for name, figures in report.per_class.items():
        shown = [f"{100 * value:.1f}" for value in (figures.precision, figures.recall, figures.f1)]
        table.add_row(escape(name), *shown, f"{figures.support:,.0f}")
    show(table)
    intervals = {name: f"[{100 * low:.1f}–{100 * high:.1f}]" for name, (low, high) in report.intervals.items()}
    scores = (f"{name} {100 * value:.1f} {intervals[name]}" for name, value in report.metrics.items())
    metrics = ", ".join(scores) or "no labels"
    say(f"version {report.model_version} on {counted(report.documents, 'document')}: {metrics}")
    decision = report.decision
    thresholds = ", ".join(f"{name} {threshold:g}" for name, threshold in decision.thresholds.items()) or "default"
    say(f"decided as a night does: thresholds {thresholds}, abstention band {decision.abstain:g}")
    if report.abstained:
        share = 100 * report.abstained / report.documents
        say(f"{counted(report.abstained, 'document')} ({share:.1f} %) got no label; the figures above leave them out")


def gate(checks: Sequence[CheckResult]) -> None:
    """Print one row per check of the gate and, below, what to do about those that failed."""
    table = Table("check", "found", "expected", "")
    for check in checks:
        mark = "[green]passed[/green]" if check.passed else "[red]failed[/red]"
        table.add_row(check.name, escape(check.measured), escape(check.expected), mark)
    show(table)
    for check in checks:
        if not check.passed:
            say(f"{check.name}: {check.remedy}")


def moved(name: str, event: ChampionEvent) -> None:
    """Print which version is champion now."""
    before = f" in place of version {event.from_version}" if event.from_version else ""
    figure = f", on the frozen evaluation set {event.measured}" if event.measured else ""
    forced = f", forced although these failed: {', '.join(event.forced)}" if event.forced else ""
    say(f"{name} version {event.to_version} is champion{before}{figure}{forced}")


def models(name: str, versions: Sequence[Version]) -> None:
    """Print the registered versions, the newest first."""
    if not versions:
        say(f"{name} has no versions; `spin run` registers one")
        return
    table = Table()
    table.add_column("version", no_wrap=True)
    table.add_column("aliases")
    table.add_column("created (UTC)", no_wrap=True)
    table.add_column("metrics")
    table.add_column("fingerprint", no_wrap=True)
    for version in versions:
        figures = ", ".join(f"{k} {v:.4f}" for k, v in sorted(version.metrics.items()))
        aliases, created = ", ".join(version.aliases), version.created[:16].replace("T", " ")
        table.add_row(version.number, aliases, created, figures, version.fingerprint[:12])
    show(table)


def history(name: str, events: Sequence[ChampionEvent]) -> None:
    """Print one line per change of champion, the oldest first."""
    if not events:
        say(f"{name} has had no champion; `spin promote` makes one")
    for event in events:
        forced = f" --force ({', '.join(event.forced)})" if event.forced else ""
        why = f": {event.why}" if event.why else ""
        move = f"{event.move}{forced} from {event.from_version or 'none'} to {event.to_version}"
        say(f"{event.when} {event.who} {move}, run {event.run}{why}")


def predictions(texts: Sequence[str], predicted: Predictions) -> None:
    """Print one line per text: label, probability and the text."""
    labels = [_label_names(label) for label in predicted.labels]
    width = max(map(len, labels), default=0)
    for label, score, text in zip(labels, predicted.score, texts, strict=True):
        say(f"{label:<{width}} {score:.2f}  {' '.join(text.split())}")


def _label_names(label: Label | None) -> str:
    """Return a class, the classes of a multi-label task, or a dash for none."""
    return (label if isinstance(label, str) else ", ".join(label or ())) or "–"


def explanation(explanation: Explanation, *, neurons: int = 8) -> None:
    """Print for each predicted class, else the likeliest, the text shaded by contribution, and neurons and terms."""
    shares = zip(explanation.classes, explanation.probabilities, explanation.logits, strict=True)
    listed = ", ".join(f"{name} {share:.2f} (logit {logit:+.2f})" for name, share, logit in shares)
    say(
        f"{', '.join(explanation.classes[k] for k in explanation.chosen) or 'no class reaches its threshold'}: {listed}"
    )
    if explanation.exit_note:
        say(explanation.exit_note)
    for k in explanation.chosen or explanation.ranked[:1]:
        label = explanation.classes[k]
        out.print(_shaded(explanation, k), soft_wrap=True)
        if explanation.neurons:
            table = Table("neuron", "adds to logit", "mainly on", title=f"neurons for and against {escape(label)}")
            table.columns[1].justify = "right"
            for top in explanation.top(neurons, label):
                table.add_row(f"{top.column}[{top.neuron}]", f"{top.contribution:+.3f}", escape(top.word))
            show(table)
        if explanation.terms:
            table = Table("term", "adds to logit", title=f"terms for and against {escape(label)}")
            table.columns[1].justify = "right"
            for term, contribution in explanation.top_terms(neurons, label):
                table.add_row(escape(f"“{term}”"), f"{contribution:+.3f}")
            show(table)


def _shaded(explanation: Explanation, k: int) -> Text:
    """Return the text with each word shaded by what it adds to the logit of class k."""
    from spin.pages.explanation import stretches

    parts = stretches(explanation.words)
    values = [float(explanation.word_contributions[words, k].sum()) for _, _, words in parts]
    largest = max([1e-9, *map(abs, values)])
    line, last = Text(), 0
    for (start, end, _), value in zip(parts, values, strict=True):
        line.append(explanation.text[last:start])
        line.append(explanation.text[start:end], _shade(value / largest))
        last = end
    return line.append(explanation.text[last:])


def neurons(chosen: Sequence[ChosenNeuron], drivers: Drivers, count: int) -> None:
    """Print one line per neuron: its importance, the class that it raises, and the document that activates it most."""
    table = Table(expand=True)
    table.add_column("neuron", no_wrap=True)
    for name in ("importance", "slope"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("raises", max_width=20, overflow="fold")
    table.add_column("most active on", no_wrap=True, overflow="ellipsis", ratio=1)
    for neuron in chosen:
        row, head = neuron.row, neuron.head
        best = next(iter(drivers.get((FeatureColumn.parse(row.column), row.neuron), ())), None)
        text = "–" if best is None else f"{best.value:+.1f} σ  {' '.join(best.text.split())[:_EXCERPT]}"
        figures = f"{significant(100 * head.importance, 2)} %", f"{head.slope:+.3f}"
        table.add_row(f"{row.column}[{row.neuron}]", *figures, escape(head.class_name), escape(text))
    show(table)
    measures = sorted({_IMPORTANCE[neuron.head.rule] for neuron in chosen})
    say(
        f"{len(chosen):,} of {counted(count, 'neuron')}, by importance ({', '.join(measures)}) times slope "
        "(change of the class's logit per standard deviation)"
    )


def jobs(entries: Sequence[Any]) -> None:
    """Print the jobs of a cluster, the newest first."""
    if not entries:
        say("no jobs; `spin submit` starts one")
        return
    table = _columns("job", "seconds", "exit status")
    for name in ("status", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for job in entries:
        shown = ("" if value is None else f"{value:.0f}" for value in (job.seconds, job.exit_status))
        table.add_row(escape(job.id), *shown, job.status.lower(), job.started)
    show(table)


def raw(text: str) -> None:
    """Print text as it is, such as the output of another process."""
    out.file.write(text)
    out.file.flush()


def plain(value: Any) -> None:
    """Print JSON for a program."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False))


def format_estimate(estimate: Estimate | None) -> str:
    """Return a share and its interval in per cent; a dash where there is none."""
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}–{100 * estimate.high:.1f}]"


def format_bytes(count: float) -> str:
    """Return a number of bytes to three digits, in the unit that fits."""
    power = 0
    while count >= 1000 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.{0 if count >= 100 or not power else 1}f} {_UNITS[power]}"


def main_neurons(explanation: Explanation, count: int = 3) -> str:
    """Return, in one line, the neurons, or without any the terms, that add most to the predicted class."""
    tops = [top for top in explanation.top(4 * count) if top.contribution > 0][:count]
    if not tops:
        terms = [(term, adds) for term, adds in explanation.top_terms(4 * count) if adds > 0][:count]
        return ", ".join(f"“{term}” {adds:+.2f}" for term, adds in terms)
    return ", ".join(f"{top.column}[{top.neuron}] {top.contribution:+.2f} on “{top.word}”" for top in tops)


def _extracted(counts: CorpusCounts) -> str:
    share = 100 * counts.truncated_share
    how = "not read to their end" if counts.windows else "cut at max_tokens"
    cut = f", {counts.truncated:,} ({share:.1f} %) {how}" if counts.truncated else ""
    windows = f" in {counted(counts.windows, 'window')}" if counts.windows else ""
    part = "" if counts.extracted == counts.rows else f"{counts.extracted:,} of "
    return f"{part}{counted(counts.rows, 'document')}, {counted(counts.tokens, 'token')}{windows}{cut}"


def _chosen(report: TrainReport) -> str:
    """Return size, head and regularisation of the classifier that the settings choose."""
    choice = report.results.choice.choices[report.choose]
    if not choice.neurons:
        return f"words alone, without neurons, strength {choice.strength:g}"
    l1 = f", L1 {choice.l1:g}" if choice.l1 else ""
    words = "words and " if choice.words else ""
    return (
        f"{words}{_size(choice)} by {choice.rule}, eta {choice.eta:.2f}, "
        f"{choice.head} head, strength {choice.strength:g}{l1}"
    )


def _size(choice: ChoiceSummary) -> str:
    return f"{counted(choice.neurons, 'neuron')} of {counted(choice.depth, 'block')}"


def _choice(choice: ChoiceSummary) -> str:
    """Return the score, compute and size of one of the three classifiers."""
    what = f" ({' and '.join(choice.part)} only)" if choice.part else ""
    size = f"{'words and ' if choice.words else ''}{_size(choice)}"
    if not choice.neurons:
        size = "words alone, without neurons"
    exits = [f"; {100 * exit.valid_share:.0f} % exit {exit_name(exit.depth)}" for exit in choice.exits]
    return (
        f"{100 * choice.valid_score:.1f} on validation, {100 * choice.compute:.0f} % of the compute, "
        f"{size}{what}" + "".join(exits)
    )


def _leakage(choice: ChoiceSummary, uncapped: UncappedChoice) -> str:
    """Return what the neurons of a choice reveal, and what the cap on it costs."""
    revealed = f"reveals {100 * (choice.leakage or 0):.1f} % of the words of a text"
    if (uncapped.leakage, uncapped.price) == (choice.leakage, 0):
        return f"{revealed}; search.max_leakage costs nothing"
    head = "" if choice.head == "linear" else " of a linear head"
    return (
        # adding 0 makes minus zero plain
        f"{revealed}; search.max_leakage costs {round(100 * uncapped.price, 1) + 0.0:.1f} points{head}: without it "
        f"{100 * uncapped.valid_score:.1f} on validation, and {100 * uncapped.leakage:.1f} % of the words"
    )


def _frontier(choice: TrainingSummary) -> Table:
    """Return a table of the best candidate per depth on validation; each of the three choices is named at its depth."""
    table = _columns("depth", "compute", "neurons", "words", "eta", "validation")
    table.title = "best candidate of every depth"
    if choice.cap is not None:
        table.title = f"{table.title} that reveals at most {100 * choice.cap.max_leakage:g} % of the words"
        table.add_column("leakage", justify="right", no_wrap=True)
    table.add_column("depth of choice")
    for point in choice.frontier:
        names = [name for name in _CHOICES if choice.choices[name].depth == point.depth]
        table.add_row(
            str(point.depth),
            f"{100 * point.compute:.0f} %",
            f"{point.neurons:,}" if point.neurons else "–",
            "yes" if point.words else "no",
            f"{point.eta:.2f}",
            f"{100 * point.valid_score:.1f}",
            *([] if point.leakage is None else [f"{100 * point.leakage:.1f} %"]),
            ", ".join(names),
        )
    return table


def _table(rows: Sequence[ContenderResult]) -> Table:
    """Return the table that compares the classifiers and the baselines on the test documents."""
    table = _columns("", "accuracy", "macro-F1", "neurons", "words", "depth", "docs/s")
    for row in rows:
        table.add_row(
            row.name,
            _certain(row, row.accuracy, row.accuracy_interval),
            _certain(row, row.macro_f1, row.macro_f1_interval),
            f"{row.neurons:,}" if row.neurons else "–",
            f"{row.words:,}" if row.words else "–",
            f"{row.depth}/{row.depth_of}",
            significant(row.docs_per_s),
        )
    return table


def _certain(row: ContenderResult, score: float, interval: ScoreInterval) -> str:
    """Return a score, the larger half of its interval, and a mark if it cannot be told apart from that of SPIN."""
    half = max(interval.high - score, score - interval.low)
    mark = "≈" if interval.like_spin and row.name != "spin" else " "
    return f"{100 * score:.1f} ±{100 * half:.1f} {mark}"


def _columns(first: str, *figures: str) -> Table:
    """Return an empty table of names and figures, in which no cell is wrapped."""
    table = Table()
    table.add_column(first, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shade(share: float) -> str:
    """Return a style: green for a positive share, red for a negative one, stronger for a larger one."""
    if abs(share) < 0.15:
        return ""
    strength = int(60 + 140 * min(1.0, abs(share)))
    colour = (0, strength, 0) if share > 0 else (strength, 0, 0)
    return f"white on rgb({colour[0]},{colour[1]},{colour[2]})"
