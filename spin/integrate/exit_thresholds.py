"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.fitted.decision import Decision
from spin.fitted.early_exit import DISABLED, confidence
from spin.labels.cross_validation import confident_margin
from spin.labels.label_space import Targets
from spin.labels.metrics import score

PASSING_COST = 0.03
"""cost of passing an open exit, as a share of full depth: the residual stream is copied and batches are regrouped"""
READING_COST = 0.05
"""cost of a document that reaches the backbone before its first block (tokens, embeddings, batches), as a share of the
whole backbone. Measured on one core: 0.05 of MiniLM-L6 in float32, 0.06 in bfloat16; less of larger backbones"""
WORDS_COST = 0.03
"""cost of reading the words of a document, as a share of the whole backbone. Measured for tweets whose tokens were
mostly met before: 0.01 of MiniLM-L6 in float32, 0.03 in bfloat16"""
THRESHOLDS = 1 - np.geomspace(1e-3, 1, 60)
"""thresholds that are tested, falling"""
_PARTS = 20
"""parts of the documents; each is left out once to estimate a standard error"""


@dataclass(frozen=True)
class ExitOffer:
    """An exit that is offered, before its threshold is known."""

    logits: Floats
    """(n, K) calibrated logits of documents that its head has not seen"""
    cost: float
    """cost of a document that stops here, as a share of the whole backbone"""
    passing: float
    """cost of going on after the exit, as a share of the whole backbone"""


def offered_depths(shares: Sequence[float], depth: int) -> list[int]:
    """The depths of exits at some shares of a full depth, ascending, each above 0 and below the full depth."""
    return sorted({at for share in shares if 0 < (at := round(share * depth)) < depth})


def choose_exit_thresholds(
    exits: Sequence[ExitOffer],
    final: Floats,
    y: Targets,
    decision: Decision,
    *,
    metric: str,
    cost: float,
    max_loss: float,
    documents: Rows | None = None,
) -> list[float]:
    """The thresholds that stop as many documents as `max_loss` allows, one per exit.

    `final` are the calibrated logits (n, K) at full depth, whose cost is `cost`. Labels are those of `decision`, which
    should not abstain. `documents` (n,) numbers the documents where repeated cross-validation predicts one more than
    once.

    All exits share one threshold, for their logits are calibrated; an exit that costs the documents that pass it more
    than it saves is disabled. Thresholds are tested from the highest on, at which the fewest documents stop, and the
    first that fails ends the tests: so the chance of a wrong choice is that of a single test (learn then test:
    Angelopoulos et al. 2021; for early exits Jazbec et al. 2024). Two losses must stay within `max_loss`: the metric's
    measured loss, and the loss that full depth's own probabilities predict, with 95 % confidence (`ExpectedLoss`). The
    second is the steadier estimate, since only few labels differ.
    """
    chosen = [DISABLED] * len(exits)
    if not exits:
        return chosen
    probabilities = [decision.label_space.probabilities(values) for values in (*(e.logits for e in exits), final)]
    labels: NDArray[Any] = np.stack([decision.decide(each)[0] for each in probabilities])
    confidences = np.stack([confidence(decision, each) for each in probabilities[:-1]])
    expected, best = ExpectedLoss(metric, decision, final, documents), score(metric, y, labels[-1])
    for threshold in THRESHOLDS:
        thresholds = disable_costly(threshold, exits, confidences, cost)
        given = labels[_stops(confidences, thresholds), np.arange(len(final))]
        if max(expected(given), best - score(metric, y, given)) > max_loss + 1e-12:
            break
        chosen = thresholds
    return chosen


def disable_costly(threshold: float, exits: Sequence[ExitOffer], confidences: Floats, cost: float) -> list[float]:
    """One threshold for all exits, without those that cost all other documents more than they save.

    `confidences` (E, n) are those of the documents at the exits, and `cost` is that of full depth.
    """
    thresholds = [threshold] * len(exits)
    for index in range(len(exits)):
        without = [*thresholds[:index], DISABLED, *thresholds[index + 1 :]]
        if mean_cost(without, exits, confidences, cost) <= mean_cost(thresholds, exits, confidences, cost):
            thresholds = without
    return thresholds


def mean_cost(thresholds: Sequence[float], exits: Sequence[ExitOffer], confidences: Floats, cost: float) -> float:
    """The mean cost of documents by their confidences (E, n) at the exits; only exits that are open cost to pass."""
    passing = [exit.passing * (threshold < DISABLED) for exit, threshold in zip(exits, thresholds, strict=True)]
    paid = np.cumsum([0.0, *passing])
    costs = np.array([*(exit.cost for exit in exits), cost]) + paid
    return float(costs[_stops(confidences, thresholds)].mean())


def _stops(confidences: Floats, thresholds: Sequence[float]) -> NDArray[np.int64]:
    """(n,) the exit at which each document stops; the number of exits for full depth."""
    exiting = confidences >= np.array(thresholds)[:, None]
    return np.concatenate([exiting, np.ones((1, confidences.shape[1]), bool)]).argmax(0)


class ExpectedLoss:
    """The upper bound, with 95 % confidence, of the loss of a metric that labels cause, by full depth's probabilities.

    The counts behind a metric (documents of a class, right ones) are replaced by their expectations under the
    probabilities. The standard error is that of a grouped jackknife (Efron & Tibshirani 1993, chapter 11). One document
    more counts as lost, of the class in which it costs most: of a rare class, the documents that an exit would lose
    may all be missing.
    """

    def __init__(self, metric: str, decision: Decision, final: Floats, documents: Rows | None = None) -> None:
        self.metric, self.label_space = metric, decision.label_space
        numbers = np.arange(len(final)) if documents is None else np.unique(documents, return_inverse=True)[1]
        parts = min(_PARTS, int(numbers.max()) + 1)
        self.in_part = np.arange(parts)[:, None] == numbers % parts
        self.probabilities = self.label_space.probabilities(final.astype(np.float64))
        self.support, self.counts = map(self._without_each, (self.probabilities, np.ones((len(final), 1))))
        hits, predicted = self._count(decision.decide(self.probabilities)[0])
        self.full = self._scores(hits, predicted).mean(1)
        of_classes = self._scores(hits, predicted) - self._scores(np.maximum(hits - 1, 0), predicted)
        rows_of_document = len(final) / (numbers.max() + 1)
        self.one_more = float(of_classes[0].max() / of_classes.shape[1] * rows_of_document)

    def __call__(self, labels: Targets) -> float:
        """The bound of what labels (n, …) lose against those of full depth."""
        lost = self.full - self._scores(*self._count(labels)).mean(1)
        return float(lost[0] + confident_margin(lost[1:]) + self.one_more)

    def _count(self, labels: Targets) -> tuple[Floats, Floats]:
        """(1 + parts, K) the expected right labels of each class, and the labels; for accuracy of all classes."""
        given = self.label_space.indicator(labels)
        if self.metric != "accuracy":
            return self._without_each(given * self.probabilities), self._without_each(given.astype(np.float64))
        # in a multi-label task a label is right if all of its classes are, taken as independent
        each = np.where(given, self.probabilities, 1 - self.probabilities)
        right = each.prod(1) if self.label_space.multilabel else self.probabilities[given]
        return self._without_each(right[:, None]), self.counts

    def _scores(self, hits: Floats, predicted: Floats) -> Floats:
        """(1 + parts, K) the metric of each class on all documents and without each part; accuracy is one class."""
        if self.metric == "accuracy":
            return np.asarray(hits / self.counts)
        if self.metric == "macro_f1":
            return np.asarray(2 * hits / np.maximum(self.support + predicted, 1e-12))
        recall = hits / np.maximum(self.support, 1e-12)
        if self.label_space.multilabel:  # the mean of the recalls of documents with the class and of those without
            absent = np.maximum(self.counts - self.support, 1e-12)
            recall = (recall + 1 - (predicted - hits) / absent) / 2
        return np.asarray(recall)

    def _without_each(self, values: Floats) -> Floats:
        """(1 + parts, K) the sum of values (n, K) over all documents, and over all but those of each part."""
        sums = self.in_part.astype(np.float64) @ values
        return np.concatenate([sums.sum(0, keepdims=True), sums.sum(0) - sums])
