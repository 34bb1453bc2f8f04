"""The commands that train: `spin run` and its stages `extract`, `probe` and `train`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from jobs import terminal
from jobs.options import File, Restart, Set, open_registry, repeat_overrides
from spin.pages.number_format import counted, significant
from spin.settings import load_settings
from spin.sites import exit_name

if TYPE_CHECKING:
    from pipelines.training.extract_features import CorpusCounts
    from pipelines.training.train import TrainReport
    from pipelines.training.workflow import StageEvent, TrainingStage
    from spin.fitted.fitted_classifier import ChoiceSummary, TrainingSummary, UncappedChoice
    from spin.pages.model_card import ContenderResult, ScoreInterval
    from spin.settings import Choice
_CHOICES: tuple[Choice, ...] = ("accuracy", "balanced", "cheapest")


def run(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Train a model from labelled text: extract, probe and train, one after the other."""
    _run_to_the_end("extract", settings, set, restart=restart)


def extract(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 1: run the language model on the labelled text and store the activations of its neurons."""
    _run_stage("extract", "probe", settings, set, restart=restart)


def probe(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 2: fit one sparse linear probe per site and pooling, which ranks the neurons."""
    _run_stage("probe", "train", settings, set, restart=restart)


def train(settings: File, set: Set = [], restart: Restart = False) -> None:  # noqa: B006
    """Stage 3: fit the classifier on the salient neurons, measure it on the test documents and register it."""
    _run_to_the_end("train", settings, set, restart=restart)


def _run_stage(stage: TrainingStage, following: str, file: str, overrides: Sequence[str], *, restart: bool) -> None:
    """Run one stage and print the command of the next one."""
    loaded = load_settings(file, overrides)
    from pipelines.training.workflow import run_stages

    run_stages(loaded, [stage], restart=restart, on_stage=print_stage)
    terminal.next_command(following, file, *repeat_overrides(overrides))


def _run_to_the_end(first: TrainingStage, file: str, overrides: Sequence[str], *, restart: bool) -> None:
    """Run the stages from one on, and print the command that makes the version the champion unless it is."""
    loaded = load_settings(file, overrides)
    from pipelines.training.workflow import run_workflow

    report = run_workflow(loaded, first=first, restart=restart, on_stage=print_stage)
    print_training(report)
    if open_registry(loaded).champion() != report.registered.version:
        terminal.next_command("promote", file, *repeat_overrides(overrides))


def print_stage(event: StageEvent) -> None:
    """Print what a stage produced and how long it took, or that it had finished before."""
    from pipelines.training.extract_features import ExtractResults
    from pipelines.training.fit_probes import ProbeResults

    results = event.results
    if isinstance(results, ExtractResults):
        produced = _extracted(results.counts)
    elif isinstance(results, ProbeResults):
        produced = f"{counted(len(results.probes), 'probe')} of {counted(len(results.classes), 'class', 'classes')}"
        if results.start is not None:
            share = f"{100 * results.start.changed:.1f} % of the documents"
            produced += f", started from the last training: {share} have changed since all choices were made"
    else:
        produced = _chosen(results)
    outcome = "finished before" if event.resumed else f"{event.seconds:.0f} s"
    lines = [f"{produced} — {outcome}"]
    if isinstance(results, ExtractResults) and results.precision_trial is not None:
        lines.append(str(results.precision_trial))
    terminal.say_about(event.stage, lines)


def print_training(report: TrainReport) -> None:
    """Print accuracy by compute, the comparison table, and the version under which the classifier is registered."""
    choice = report.results.choice
    terminal.show(_frontier(choice))
    for name in _CHOICES:
        lines = [_choice(choice.choices[name])]
        if choice.cap is not None:
            lines.append(_leakage(choice.choices[name], choice.cap.uncapped[name]))
        terminal.say_about(name, lines)
    if report.results.table:
        terminal.show(_table(report.results.table))
        documents = f"{report.results.table[0].documents:,} test documents"
        terminal.say(f"±: 95 % interval over {documents}, at full depth; ≈: cannot be told apart from spin on them")
    for note in report.results.notes:
        terminal.say(note)
    if report.results.suspects:
        labelled = sum(report.results.counts[split] for split in ("train", "valid"))
        share = f"{report.results.suspects:,} of {counted(labelled, 'label')}"
        terminal.say(f"{share} contradicted by those of similar documents; suspects.parquet in the store lists them")
    terminal.say(f"registered {report.registered.model} version {report.registered.version} as challenger")


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
        return f"{_size(choice)}, strength {choice.strength:g}"
    network = "" if choice.head == "linear" else " and network"
    fit = f"by eta {choice.eta:.2f}, linear head{network}, strength {choice.strength:g}"
    return f"{_size(choice)} {fit}"


def _choice(choice: ChoiceSummary) -> str:
    """Return the score, compute and size of one of the three classifiers."""
    score = f"{100 * choice.valid_score:.1f} on validation, {100 * choice.compute:.0f} % of the compute"
    part = f" ({' and '.join(choice.part)} only)" if choice.part else ""
    exits = (f"; {100 * exit.valid_share:.0f} % exit {exit_name(exit.depth)}" for exit in choice.exits)
    return f"{score}, {_size(choice)}{part}{''.join(exits)}"


def _size(choice: ChoiceSummary) -> str:
    if not choice.neurons:
        return "words alone, without neurons"
    words = "words and " if choice.words else ""
    return f"{words}{counted(choice.neurons, 'neuron')} of {counted(choice.depth, 'block')}"


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
    title = "best candidate of every depth"
    figures = ["compute", "neurons", "words", "eta", "validation"]
    if choice.cap is not None:
        title = f"{title} that reveals at most {100 * choice.cap.max_leakage:g} % of the words"
        figures.append("leakage")
    table = terminal.new_table(["depth"], figures, title=title)
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
    table = terminal.new_table([""], ["accuracy", "macro-F1", "neurons", "words", "depth", "docs/s"])
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
    """Return a score, the larger half of its interval, and a mark if it cannot be told apart from the one of SPIN."""
    half = max(interval.high - score, score - interval.low)
    mark = "≈" if interval.like_spin and row.name != "spin" else " "
    return f"{100 * score:.1f} ±{100 * half:.1f} {mark}"
