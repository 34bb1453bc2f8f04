"""The rows of the tables in their order, and what a result depends on. A new row is one more line in `ROWS`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from benchmarks.method import all_neurons, contenders, corpora, paper, siren
from benchmarks.method.contenders import Answer, FittedSpin
from benchmarks.method.corpora import Exam, Plan
from spin.settings import CascadeSettings, ProbeSettings, SearchSettings

FORMAT = 4
"""raise it when rows are computed in another way, or documents are divided differently"""


class Row(NamedTuple):
    """A row of the tables."""

    name: str
    answer: Callable[[Exam, FittedSpin], Answer]
    """takes the classifiers of SPIN too, whose probes several rows share"""
    only: str = ""
    """the only setting that has the row; every one if empty"""


ROWS = (
    Row("TF-IDF", lambda exam, _: contenders.tfidf(exam)),
    Row("last layer", lambda exam, _: contenders.last_layer(exam)),
    Row("best single site", contenders.best_site),
    Row("the paper's recipe", lambda exam, _: paper.paper(exam)),
    Row("SIREN's recipe", siren.siren),
    Row("all neurons", lambda exam, _: all_neurons.all_neurons(exam)),
    Row("words", contenders.words),
    Row("SPIN, ridge", contenders.ridge_rule),
    Row("SPIN, neurons", contenders.neurons_alone),
    Row("SPIN, neurons + words", contenders.neurons_and_words),
    Row("SPIN, accuracy", lambda exam, spin: contenders.spin_choice(exam, spin, "accuracy")),
    Row("SPIN, balanced", lambda exam, spin: contenders.spin_choice(exam, spin, "balanced")),
    Row("SPIN, lower half", contenders.lower_half, only="full"),
)


def rows_of(setting: str, left_out: Collection[str] = ()) -> list[Row]:
    """The rows of a setting: `full`, `noisy`, or `few16` with the number of labels per class.

    `left_out` names the rows that a task does not have.
    """
    return [row for row in ROWS if row.only in ("", setting) and row.name not in left_out]


def answers(exam: Exam, setting: str, left_out: Collection[str] = ()) -> Iterator[Answer]:
    """Fit SPIN, then the contender of every row, and yield their answers."""
    fitted_spin = contenders.fit_spin(exam)
    for row in rows_of(setting, left_out):
        answer = row.answer(exam, fitted_spin)
        assert answer.name == row.name
        yield answer


def digest(plan: Plan, setting: str, left_out: Collection[str] = ()) -> str:
    """Equal for results that may stand in one table: same format, documents, rows, grids and defaults of SPIN."""
    settings = json.dumps(dependencies(plan, setting, left_out), sort_keys=True)
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


def dependencies(plan: Plan, setting: str, left_out: Collection[str] = ()) -> dict[str, Any]:
    """What a result depends on, as JSON values."""
    return {
        "format": FORMAT,
        "plan": plan.record(),
        "rows": [row.name for row in rows_of(setting, left_out)],
        "metric": corpora.METRIC,
        "flipped": corpora.FLIPPED if setting == "noisy" else None,
        "words and last layer": contenders.STRENGTHS,
        "all neurons": all_neurons.STRENGTHS,
        "paper": (paper.PROBE_STRENGTHS, paper.HEAD_STRENGTHS, paper.ETAS, paper.ROUND),
        "siren": (siren.ETAS, siren.RATES, siren.WIDTHS, siren.DROPOUT),
        "spin": [section().model_dump(mode="json") for section in (ProbeSettings, SearchSettings, CascadeSettings)],
    }
