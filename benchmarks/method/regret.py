"""`make bench-regret`: what the default of SPIN loses to the best row, over all tasks; writes benchmarks/regret.md.

It reads the results that `make bench-method TASK=…` stored, and computes nothing anew. The regret of a table is the
best row by its mean over the draws minus the default, less two standard errors of their paired difference, and at
least 0. So a row that is better by chance alone counts as no regret. The best row is chosen by the same test documents
that measure it: this makes regrets larger, not smaller.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.method.run import RESULTS, experiments, read_results
from benchmarks.method.table import (
    SPIN,
    Difference,
    Result,
    corpus_title,
    describe_runs,
    label_text,
    mean_of,
    sections,
    values_of,
)
from benchmarks.method.tasks.catalogue import TASKS
from benchmarks.method.tasks.task import Task
from benchmarks.section_page import table, word_of

PAGE = Path("benchmarks/regret.md")
ROWS = ("all neurons", "SPIN, neurons", "words", "SPIN, neurons + words", "best single site", "last layer")
"""what training could have chosen instead of the default, `choose: accuracy`"""
COUNTED = ("full", "few256")
"""settings whose regrets have limits; those of fewer labels are reported beside them"""
REPORTED = ("few64", "few16")
FEWEST_DRAWS = 5
MEDIAN, WORST = 0.3, 1.0
"""limits in points of macro-F1"""


@dataclass(frozen=True)
class Regret:
    """The regret of one table: a task, a backbone and a number of labels."""

    corpus: str
    """the documents and the backbone"""
    labels: str
    counted: bool
    """whether the limits hold for it"""
    draws: int
    best: str
    """the row with the highest mean"""
    best_score: float
    """mean macro-F1 in percent"""
    default_score: float
    error: float
    """standard error of the paired difference, in points"""

    @property
    def difference(self) -> float:
        """Best row minus default, in points of macro-F1."""
        return self.best_score - self.default_score

    @property
    def points(self) -> float:
        """The regret in points of macro-F1."""
        return max(0.0, self.difference - 2 * self.error)


@dataclass(frozen=True)
class TaskResults:
    """What is stored of a task."""

    task: Task
    results: Mapping[str, list[Result]]
    """by corpus and setting, such as `minilm-full`"""
    missing: Sequence[str]
    """keys of experiments without a result"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(report([read_task(task, RESULTS) for task in TASKS.values()]), encoding="utf-8")
    print(f"written to {PAGE}")


def read_task(task: Task, base: Path) -> TaskResults:
    """The stored results of a task below a folder."""
    results, missing = read_results(experiments(task, task.plans(quick=False), quick=False), base / task.name)
    return TaskResults(task, results, missing)


def measure(results: Sequence[Result]) -> Regret:
    """The regret of the draws of one table, two or more. Raises ValueError where a draw lacks a row."""
    for name in (*ROWS, SPIN):
        if len(values_of(results, name, "macro_f1")) != len(results) or len(results) < 2:
            raise ValueError(f"{corpus_title(results)}: expected the row '{name}' in each of several draws")
    scores = {name: 100 * mean_of(results, name, "macro_f1") for name in (*ROWS, SPIN)}
    best = max(ROWS, key=lambda name: scores[name])
    return Regret(
        corpus_title(results),
        label_text(results),
        results[0]["experiment"]["setting"] in COUNTED,
        len(results),
        best,
        scores[best],
        scores[SPIN],
        Difference.of(results, best).error,
    )


def measure_all(stored: Sequence[TaskResults]) -> list[Regret]:
    """The regrets of all tables with enough draws, by task and number of labels."""
    return [
        measure(draws)
        for task_results in stored
        for setting in (*COUNTED, *REPORTED)
        for key, draws in sorted(task_results.results.items())
        if key.endswith(f"-{setting}") and len(draws) >= FEWEST_DRAWS
    ]


def report(stored: Sequence[TaskResults]) -> str:
    """The page: the regrets, whether they are within the limits, and every claim of the tasks that does not hold."""
    regrets = measure_all(stored)
    counted = [regret for regret in regrets if regret.counted]
    few = [regret for regret in regrets if not regret.counted]
    parts = [_head(stored), _missing(stored)]
    if counted:
        parts += [regret_table(counted), limits(counted)]
    if few:
        parts += ["## Fewer labels\n", "Reported without limits: draws of so few documents differ much.\n"]
        parts.append(regret_table(few))
    if any(task_results.results for task_results in stored):
        parts += ["## What does not hold\n", failures(counted, stored)]
    parts.append(_rules())
    return "\n".join(part for part in parts if part)


def regret_table(regrets: Sequence[Regret]) -> str:
    """One line per regret."""
    lines = [
        [
            regret.corpus, regret.labels, str(regret.draws), regret.best, f"{regret.best_score:.1f}",
            f"{regret.default_score:.1f}", f"{regret.difference:+.2f} ± {regret.error:.2f}", f"{regret.points:.2f}",
        ]
        for regret in regrets
    ]  # fmt: skip
    titles = ["", "labels", "draws", "best row", "its macro-F1", "SPIN", "difference", "regret"]
    return table(titles, lines)


def limits(counted: Sequence[Regret]) -> str:
    """Whether the median and the worst regret are within their limits."""
    median, worst = (float(f([regret.points for regret in counted])) for f in (np.median, np.max))
    tables = _count(len(counted), "table")
    return (
        f"- {word_of(median <= MEDIAN)}: the median regret is at most {MEDIAN} points ({median:.2f}, of {tables}).\n"
        f"- {word_of(worst <= WORST)}: the worst regret is at most {WORST} points ({worst:.2f}).\n"
    )


def failures(counted: Sequence[Regret], stored: Sequence[TaskResults]) -> str:
    """The regrets above a limit, and the claims of every task that do not hold, as a Markdown list."""
    lines = [
        f"- {regret.corpus}, {regret.labels}: {regret.best} is better by {regret.difference:.2f} ± {regret.error:.2f} "
        f"points, a regret of {regret.points:.2f}."
        for regret in counted
        if regret.points > MEDIAN
    ]
    lines += [
        f"- {section.title}, does not hold: {claim}"
        for task_results in stored
        for section in sections(task_results.results)
        for claim in section.failed
    ]
    return "\n".join(lines or ["- Nothing."]) + "\n"


def _missing(stored: Sequence[TaskResults]) -> str:
    """Which experiments have no result yet, by task."""
    lines = [
        f"- `{task_results.task.command('bench-method')}`: {_count(len(task_results.missing), 'experiment')}"
        for task_results in stored
        if task_results.missing
    ]
    return "\n".join(["**Not finished, and not on this page:**\n", *lines, ""]) if lines else ""


def _head(stored: Sequence[TaskResults]) -> str:
    results = {f"{each.task.name} {key}": runs for each in stored for key, runs in each.results.items()}
    return (
        "# The regret of the default\n\n"
        "What is lost by leaving every setting as it is: the best of the rows that training could have chosen instead, "
        "minus SPIN with its default settings, on the same draws.\n\n"
        f"{describe_runs(results)} Written by `make bench-regret` from the results of `make bench-method TASK=…`.\n"
    )


def _rules() -> str:
    return f"""## How regret is computed

Per task, backbone and number of labels: the best row by its mean over at least {FEWEST_DRAWS} draws among –
{"; ".join(ROWS)} – minus the default (`SPIN, accuracy`); minus two standard errors of the paired difference over the
draws; at least 0; in points of macro-F1. The best row is chosen by the test documents that measure it, which can only
enlarge a regret. Limits count for all labels and for 256 per class; a task has no table of 256 per class where its
classes together have fewer labels or where they would be more than all labels of its plan. The pages of the tasks say
how rows are computed.
"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


if __name__ == "__main__":
    main()
