"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.heads.decision import Decision
from spin.heads.early_exit import DISABLED, confidence
from spin.labels.label_space import Targets
from spin.labels.metrics import score

_PASSING_COST = 0.03
"""cost of passing an open exit, as a share of full depth: the residual stream is copied and batches are regrouped"""
_LEVELS = 12
"""thresholds that are tried per exit"""
_PARTS = 20
"""parts of the documents; each is left out once to estimate a standard error"""


def offered_depths(shares: Sequence[float], depth: int) -> list[int]:
    """The depths of exits at some shares of a full depth, ascending, each above 0 and below the full depth."""
    return sorted({at for share in shares if 0 < (at := round(share * depth)) < depth})


def choose_exit_thresholds(
    exits: Sequence[Floats],
    final: Floats,
    y: Targets,
    decision: Decision,
    *,
    metric: str,
    costs: Sequence[float],
    max_loss: float,
    documents: Rows | None = None,
) -> list[float]:
    """The thresholds with the least mean cost per document that lose at most `max_loss`, one per exit.

    `exits` are the calibrated logits (n, K) of each exit and `final` those of full depth, on documents that the heads
    have not seen. `costs` are the costs of running to each exit and to full depth. Labels are those of `decision`,
    which should not abstain. `documents` (n,) numbers the documents where repeated cross-validation predicts one more
    than once. The loss is the larger of two: the metric's measured loss, and the loss that full depth's own
    probabilities predict, plus its standard error. The second is the steadier estimate: only few labels differ, so the
    best of many measured losses is lucky; and where a class is rare, its standard error is large.
    """
    labels: NDArray[Any] = np.stack([_labels(decision, logits) for logits in (*exits, final)])
    confidences = [_confidence(decision, logits) for logits in exits]
    grids = [[*np.quantile(values, np.linspace(0, 0.95, _LEVELS)), DISABLED] for values in confidences]
    best, expected = score(metric, y, labels[-1]), _ExpectedLoss(metric, decision, final, documents)

    def mean_cost(thresholds: Sequence[float]) -> float:
        passed = np.cumsum([0, *(threshold < DISABLED for threshold in thresholds)])
        indices = _first_exit(confidences, thresholds, len(final))
        return float((np.asarray(costs) + _PASSING_COST * costs[-1] * passed)[indices].mean())

    for thresholds in sorted(product(*grids), key=mean_cost):
        given: Targets = labels[_first_exit(confidences, thresholds, len(final)), np.arange(len(final))]
        if expected(given) <= max_loss + 1e-12 and best - score(metric, y, given) <= max_loss + 1e-12:
            return [float(threshold) for threshold in thresholds]
    return [DISABLED] * len(exits)


def exit_indices(
    exits: Sequence[Floats], thresholds: Sequence[float], count: int, decision: Decision
) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each of `count` documents stops; the number of exits for full depth.

    `exits` are the calibrated logits (n, K) of each exit.
    """
    return _first_exit([_confidence(decision, logits) for logits in exits], thresholds, count)


def _labels(decision: Decision, logits: Floats) -> Targets:
    return decision.decide(decision.label_space.probabilities(logits))[0]


def _confidence(decision: Decision, logits: Floats) -> Floats:
    return confidence(decision.label_space, decision.label_space.probabilities(logits))


def _first_exit(confidences: Sequence[Floats], thresholds: Sequence[float], count: int) -> NDArray[np.int64]:
    """(count,) the first exit at which each document is confident enough; the number of exits if there is none."""
    indices = np.full(count, len(confidences))
    for index in reversed(range(len(confidences))):
        indices[confidences[index] >= thresholds[index]] = index
    return indices


class _ExpectedLoss:
    """The loss of a metric that labels cause, by the probabilities of full depth, plus one standard error.

    The counts behind a metric (documents of a class, right ones) are replaced by their expectations under the
    probabilities. A metric that is a mean over classes is judged class by class: each class's expected loss and the
    standard error of it are added, so that what one class gains does not hide what another may lose. The standard
    error is a grouped jackknife (Efron & Tibshirani 1993, chapter 11).
    """

    def __init__(self, metric: str, decision: Decision, final: Floats, documents: Rows | None = None) -> None:
        self.metric, self.label_space = metric, decision.label_space
        numbers = np.arange(len(final)) if documents is None else np.unique(documents, return_inverse=True)[1]
        self.parts = numbers % min(_PARTS, numbers.max() + 1)
        self.probabilities = self.label_space.probabilities(final.astype(np.float64))
        self.support = self._part_sums(self.probabilities)
        self.counts = self._part_sums(np.ones(len(final)))
        self.full = self._scores(_labels(decision, final))

    def __call__(self, labels: Targets) -> float:
        lost = self.full - self._scores(labels)
        error = np.sqrt((len(lost) - 2) * lost[1:].var(0))
        return float((lost[0] + error).mean())

    def _scores(self, labels: Targets) -> Floats:
        """(1 + parts, K) each class's expected metric on all documents and without each part; for accuracy K is 1."""
        given = self.label_space.indicator(labels)
        if self.metric == "accuracy":
            right = np.where(given, self.probabilities, 1 - self.probabilities).prod(1)
            if not self.label_space.multilabel:
                right = self.probabilities[given]
            return (_without_each(self._part_sums(right)) / _without_each(self.counts))[:, None]
        hits, predicted = (_without_each(self._part_sums(v)) for v in (self.probabilities * given, given.astype(float)))
        support, counts = _without_each(self.support), _without_each(self.counts)[:, None]
        if self.metric == "macro_f1":
            return 2 * hits / np.maximum(support + predicted, 1e-12)
        recall = hits / np.maximum(support, 1e-12)
        if self.label_space.multilabel:
            absent = np.maximum(counts - support, 1e-12)
            recall = (recall + 1 - (predicted - hits) / absent) / 2
        return recall

    def _part_sums(self, values: Floats) -> Floats:
        """(parts, …) the sums of values (n, …) over each of 20 parts of the documents."""
        return np.stack([values[self.parts == part].sum(0) for part in range(self.parts.max() + 1)])


def _without_each(sums: Floats) -> Floats:
    """(1 + parts, …) the sum over all parts, and over all but each."""
    total = sums.sum(0, keepdims=True)
    return np.concatenate([total, total - sums])
