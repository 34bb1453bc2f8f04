"""Rows with made-up figures, for tests of verdicts and pages."""

from __future__ import annotations

import numpy as np

from benchmarks.speed.choice import Validation
from benchmarks.speed.contender import SHIPPED, OurSetting, Role, TransformerPeer, WordPeer
from benchmarks.speed.row import Row
from benchmarks.speed.verdicts import Equal, at_equal_scores

Y = np.tile([0, 1], 50)


def make_row(role: Role, seconds: float | tuple[float, ...], score: float, valid_score: float = 0.0) -> Row:
    """A row of three rounds, with as many right classes as its score says; by default it is as good on validation."""
    classes = np.where(np.arange(100) < round(100 * score), Y, 1 - Y)
    times = seconds if isinstance(seconds, tuple) else (seconds, 1.01 * seconds, 0.99 * seconds)
    compute = 0.0 if isinstance(role, WordPeer) else 1.0
    return Row(role, times, classes, score, score, valid_score or score, 0.99, compute=compute)


LOOP = make_row(TransformerPeer("loop", "float32"), 12.0, 0.75)
GRAPH = make_row(TransformerPeer("graph", "bfloat16"), 5.0, 0.76)
SCALED = make_row(TransformerPeer("graph, scaled", "int8"), 3.0, 0.74)
TFIDF = make_row(WordPeer("TF-IDF", cores=1), 0.5, 0.70)
EXACT = make_row(OurSetting("openvino", "float32"), 8.0, 0.80)
FULL = make_row(OurSetting("openvino", "bfloat16"), 5.0, 0.80)
DEFAULT = make_row(OurSetting("openvino", "bfloat16", max_loss=SHIPPED, default=True), 1.6, 0.80)
FAST = make_row(OurSetting("openvino", "int8", max_loss=0.02), 1.0, 0.77)
CHEAP = make_row(OurSetting("openvino", "int8", "cheapest", 0.02), 0.8, 0.71)
PEERS, OURS = [LOOP, GRAPH, SCALED, TFIDF], [EXACT, FULL, DEFAULT, FAST, CHEAP]
ROWS = [*PEERS, *OURS]


def pairs(rows: list[Row]) -> list[Equal]:
    """The rows at equal scores, as if the validation documents took as long as the test documents."""
    tried = {r.role: Validation(r.valid_score, r.median) for r in rows if isinstance(r.role, OurSetting)}
    return at_equal_scores(rows, tried, Y)
