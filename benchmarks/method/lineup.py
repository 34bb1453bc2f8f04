"""The rows of the tables in their order, and what a result depends on. A new row is one more line in `ROWS`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.method import all_neurons, attention, contenders, corpora, layers, paper, siren
from benchmarks.method.contenders import Answer
from benchmarks.method.corpora import Exam, Plan
from benchmarks.method.peers import fast_text, set_fit, static_model
from spin.settings import CascadeSettings, ProbeSettings, SearchSettings

FORMAT = 10
"""raise it when rows are computed in another way, or documents are divided differently"""


@dataclass(frozen=True)
class Row:
    """A row of the tables."""

    name: str
    answer: Callable[..., Answer]
    """takes an `Exam`, and the `FittedSpin` of the same exam if the row reads it"""
    draws: Mapping[str, int] = field(default_factory=dict)
    """the settings that alone have the row, with the number of their draws that do; all draws of all if empty"""
    reads_spin: bool = False
    """whether it depends on the code of SPIN: on its probes, which several rows share, or its classifiers"""


_FEW = {"few16": 3, "few64": 2}
"""SetFit takes 1.4 s per batch of 16 pairs: 3.5 minutes from 16 labels for each of three classes, 12 from 64"""
_ENDS = {"full": 5, "few16": 5}
"""the most and the fewest labels; other settings would take half of the time for what lies between"""
ROWS = (
    Row("TF-IDF", contenders.tfidf),
    Row("TF-IDF, characters", contenders.tfidf_characters, _ENDS),
    Row("fastText", fast_text.fast_text, _ENDS),
    Row("model2vec", static_model.static_model, _ENDS),
    Row("SetFit, head alone", set_fit.set_fit_head),
    Row("SetFit", set_fit.set_fit, _FEW),
    Row("last layer", contenders.last_layer),
    Row("best single site", contenders.best_site, reads_spin=True),
    Row("the paper's recipe", paper.paper, {"full": 5, "few64": 5, "few16": 5}),
    Row("SIREN's recipe", siren.siren, reads_spin=True),
    Row("all neurons", all_neurons.all_neurons),
    Row("words", contenders.words, reads_spin=True),
    Row("SPIN, neurons", contenders.neurons_alone, reads_spin=True),
    Row("SPIN, neurons + words", contenders.neurons_and_words, reads_spin=True),
    Row("SPIN, accuracy", partial(contenders.spin_choice, choice="accuracy"), reads_spin=True),
    Row(contenders.EXITS, contenders.with_exits, {"full": 5}, reads_spin=True),
    Row("SPIN, balanced", partial(contenders.spin_choice, choice="balanced"), reads_spin=True),
    Row("SPIN, lower half", contenders.lower_half, {"full": 5}, reads_spin=True),
    Row("penalty per layer", layers.penalty_per_layer, {"full": 5}, reads_spin=True),
    Row("gate per document", layers.gate_per_document, {"full": 5}, reads_spin=True),
    Row("attention pooling", attention.attention_pooling, {"full": 5}),
)


def rows_of(setting: str, left_out: Collection[str] = (), draw: int = 0) -> list[Row]:
    """The rows of a draw of a setting: `full`, `noisy`, or `few16` with the number of labels per class.

    `left_out` names the rows that a task or a backbone does not have.
    """
    rows = [row for row in ROWS if row.name not in left_out]
    return [row for row in rows if not row.draws or draw < row.draws.get(setting, 0)]


def answers(exam: Exam, setting: str, left_out: Collection[str] = (), known: Collection[str] = ()) -> Iterator[Answer]:
    """Fit SPIN, then the contenders of all rows but those whose answers are `known`, and yield their answers."""
    unknown = [row for row in rows_of(setting, left_out, exam.seed) if row.name not in known]
    fitted_spin = contenders.fit_spin(exam) if any(row.reads_spin for row in unknown) else None
    for row in unknown:
        answer = row.answer(exam, fitted_spin) if row.reads_spin else row.answer(exam)
        assert answer.name == row.name
        yield answer


def digest(plan: Plan, setting: str) -> str:
    """Equal for results that may stand in one table: same format, documents, grids and defaults of SPIN."""
    settings = json.dumps(dependencies(plan, setting), sort_keys=True)
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


def dependencies(plan: Plan, setting: str) -> dict[str, Any]:
    """What a result depends on, as JSON values."""
    return {
        "format": FORMAT,
        "plan": plan.record(),
        "metric": corpora.METRIC,
        "flipped": corpora.FLIPPED if setting == "noisy" else None,
        "last layer": contenders.STRENGTHS,
        "TF-IDF": (contenders.TFIDF_STRENGTHS, contenders.LONGEST_TEXT),
        "fastText": (fast_text.TRIALS, fast_text.BUCKETS, fast_text.LONGEST),
        "model2vec": static_model.FOLDS,
        "SetFit": set_fit.ITERATIONS,
        "all neurons": all_neurons.STRENGTHS,
        "paper": (paper.PROBE_STRENGTHS, paper.HEAD_STRENGTHS, paper.ETAS, paper.ROUND),
        "siren": (siren.ETAS, siren.RATES, siren.WIDTHS, siren.DROPOUT),
        "layers": (layers.STRENGTHS, layers.LEAST_WEIGHT),
        "attention": (attention.RATE, attention.DROPOUT, attention.SMOOTHING),
        "spin": [section().model_dump(mode="json") for section in (ProbeSettings, SearchSettings, CascadeSettings)],
    }
