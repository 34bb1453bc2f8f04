"""The page of the fine-tuned encoder, from stored results: a table per task, and the differences to SPIN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.finetune.encoder import (
    BATCH,
    EPOCHS,
    HEAD_RATE,
    LARGEST_GRADIENT,
    NAME,
    PATIENCE,
    PATIENT_STEPS,
    STEPS,
    WEIGHT_DECAY,
)
from benchmarks.finetune.run import RATE, plan_fits
from benchmarks.method.regret import TaskResults
from benchmarks.method.run import Experiment, read_result, read_results
from benchmarks.method.table import SPIN, Difference, Result, describe_runs, label_text, spread, values_of
from benchmarks.method.tasks.task import ENCODER, Task
from benchmarks.section_page import table
from spin.labels.splits import CROSS_VALIDATION_BELOW, VERY_FEW_LABELS


def read_task(task: Task, base: Path) -> TaskResults:
    """The stored results of a task, with the rows of `make bench-method` on the same draws where they are stored."""
    fits = plan_fits(task)
    results, missing = read_results(fits, base / "finetune" / task.name)
    for run in (run for setting, runs in results.items() if not setting.endswith(RATE) for run in runs):
        experiment = Experiment(fits[0].plan, run["experiment"]["setting"], run["experiment"]["seed"], task.name)
        run["rows"] += (read_result(base / task.name, experiment) or {"rows": []})["rows"]
    return TaskResults(task, results, missing)


def report(stored: Sequence[TaskResults]) -> str:
    """The page: a section per task, with the fits that are missing."""
    return "\n".join([_head(stored), *map(_section, stored), _rules()])


def _section(stored: TaskResults) -> str:
    settings = {key.rpartition("-")[2]: runs for key, runs in stored.results.items()}
    [chosen] = settings.pop(RATE, [None])
    parts = [f"## {stored.task.subject[0].upper()}{stored.task.subject[1:]}\n"]
    if stored.missing:
        names = ", ".join(name.removeprefix(f"{ENCODER}-") for name in stored.missing)
        parts.append(
            f"**Not finished: {names}.** `{stored.task.command('bench-finetune')}` computes what is missing.\n"
        )
    if settings:
        parts += [_table(settings), *(f"- {_verdict(runs)}" for runs in settings.values()), ""]
    if chosen is not None:
        parts.append(f"Learning rate {chosen['summary']}.\n")
    return "\n".join(parts)


def _table(settings: dict[str, list[Result]]) -> str:
    """A line per number of labels: the fine-tuned encoder, then SPIN on those of its draws that are stored."""
    lines = []
    for runs in settings.values():
        percents = [100 * values_of(runs, NAME, key) for key in ("macro_f1", "accuracy", "ece", "ece_limit")]
        costs = [spread(values_of(runs, NAME, key), 0) for key in ("epochs", "seconds")]
        of_spin = [100 * values_of(runs, SPIN, key) for key in ("macro_f1", "accuracy", "ece")]
        cells = [spread(values, 1) if len(values) else "–" for values in (*percents, *of_spin)]
        lines.append([label_text(runs), str(len(runs)), *cells[:4], *costs, *cells[4:]])
    titles = ["labels", "draws", "macro-F1", "accuracy", "ECE, %", "by chance up to", "epochs", "seconds to fit"]
    return table([*titles, f"{SPIN}: macro-F1", "accuracy", "ECE, %"], lines)


def _verdict(runs: Sequence[Result]) -> str:
    """The paired difference of the macro-F1, SPIN minus the fine-tuned"""
    paired = [run for run in runs if len(run["rows"]) > 1]
    if not paired:
        return f"{label_text(runs)}: `make bench-method` has stored no result of SPIN."
    gain = Difference.of(paired, NAME)
    figures = str(gain) if len(paired) > 1 else f"{gain.mean:+.2f}, no standard error of a single draw"
    ahead = "SPIN is ahead" if gain.mean > 0 else "fine-tuning is ahead"
    beyond = "by more than two standard errors" if abs(gain.mean) > 2 * gain.error else "within two standard errors"
    verdict = f": {ahead}, {beyond}" if len(paired) > 1 else ""
    draws = f"{len(paired)} of {len(runs)} draws"
    return f"{label_text(runs)}, {draws}: {SPIN} − {NAME} {figures} points of macro-F1{verdict}."


def _head(stored: Sequence[TaskResults]) -> str:
    results = {f"{each.task.name} {key}": runs for each in stored for key, runs in each.results.items()}
    return (
        "# SPIN and the fine-tuned encoder\n\n"
        "The backbone of SPIN, MiniLM, with all of its weights fine-tuned on the documents of `make bench-method`: the "
        "same draws, the same test documents.\n\n"
        f"{describe_runs(results)} Written by `make bench-finetune TASK=…` from the results so far.\n"
    )


def _rules() -> str:
    return f"""## How it is fine-tuned

A linear head on the mean over all tokens; AdamW with a weight decay of {WEIGHT_DECAY}, batches of {BATCH}, gradients
cut to length {LARGEST_GRADIENT:g}, a constant learning rate, {HEAD_RATE:g} for the head; dropout as the model has it.
The epoch with the best validation macro-F1 counts; in a multi-label task every class is given to as many documents as
have it, since thresholds are chosen last. Training ends {PATIENCE} epochs or {PATIENT_STEPS} batches after that epoch,
and in any case after {EPOCHS} epochs or {STEPS} batches, whichever is more. Then the encoder is fine-tuned anew on all
labelled documents for as many epochs as were best. Below {VERY_FEW_LABELS} labelled documents this is the mean over one
round of the cross-validation, below {CROSS_VALIDATION_BELOW:,} the number of one of its folds, which holds out a fifth,
else that of the division. The logits of the same validation documents choose temperature and thresholds, as in the rows
of `make bench-method`.

The learning rate is chosen once per task on documents that no draw tests, from the half that a hash of the text sets
aside. Seconds are processor seconds; those of SPIN are on [the page of the method](method.md), without the pass that
reads its activations.

Differences are paired over the draws, as mean ± standard error. Draws share documents, the few labels all of their test
documents: this part of chance is not in them.
"""
