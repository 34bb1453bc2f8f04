"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from spin.arrays import Floats, Rows
from spin.heads.decision import Decision
from spin.heads.early_exit import DISABLED, confidence
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
_PRICES = np.geomspace(1e-3, 1, 60)
"""prices of compute that are tried: the probability of a right label that the cost of full depth is worth"""
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

    One price of compute makes all thresholds, see `price_thresholds`. Prices are tested from the lowest on, at which
    the fewest documents stop, and the first that fails ends the tests: so the chance of a wrong choice is that of a
    single test (learn then test: Angelopoulos et al. 2021; early exits: Jazbec et al. 2024). Two losses must stay
    within `max_loss`: the metric's measured loss, and the loss that full depth's own probabilities predict, plus its
    standard error. The second is the steadier estimate, since only few labels differ.
    """
    chosen = [DISABLED] * len(exits)
    if not exits:
        return chosen
    probabilities = [decision.label_space.probabilities(values) for values in (*(e.logits for e in exits), final)]
    labels: NDArray[Any] = np.stack([decision.decide(each)[0] for each in probabilities])
    confidences = np.stack([confidence(decision, each) for each in probabilities[:-1]])
    expected, best = ExpectedLoss(metric, decision, final, documents), score(metric, y, labels[-1])
    regrets = [expected.regret(of_exit, labels[-1]) for of_exit in labels[:-1]]
    curves = [fit_regret(*pair) for pair in zip(confidences, regrets, strict=True)]
    for price in _PRICES:
        thresholds = price_thresholds(price, curves, exits, confidences, cost)
        given = labels[_stops(confidences, thresholds), np.arange(len(final))]
        if max(expected(given), best - score(metric, y, given)) > max_loss + 1e-12:
            break
        chosen = thresholds
    return chosen


@dataclass(frozen=True)
class RegretCurve:
    """What stopping at an exit is expected to lose, by the confidence there: a falling step function."""

    confidences: Floats
    """(n,) ascending"""
    regrets: Floats
    """(n,) falling: probability of a right label that is lost against full depth"""

    def threshold(self, most: float) -> float:
        """The least confidence from which on no more than this is lost."""
        below = np.flatnonzero(self.regrets <= most)
        return float(self.confidences[below[0]]) if len(below) else DISABLED


def fit_regret(confidences: Floats, regrets: Floats) -> RegretCurve:
    """The curve of an exit by the confidences and regrets (n,) of documents: an isotonic regression."""
    order = np.argsort(confidences, kind="stable")
    fitted = isotonic_regression(regrets[order], increasing=False).x
    return RegretCurve(confidences[order], np.asarray(fitted))


def price_thresholds(
    price: float, curves: Sequence[RegretCurve], exits: Sequence[ExitOffer], confidences: Floats, cost: float
) -> list[float]:
    """The thresholds at which a document stops where it saves more than it is expected to lose.

    At an exit it saves `price` times the compute from there to full depth, whose cost is `cost`. An exit that costs
    all others more than it saves is disabled. `confidences` (E, n) are those of the documents at the exits.
    """
    thresholds = [curve.threshold(price * (cost - exit.cost)) for curve, exit in zip(curves, exits, strict=True)]
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
    """The loss of a metric that labels cause, by the probabilities of full depth, plus one standard error.

    The counts behind a metric (documents of a class, right ones) are replaced by their expectations under the
    probabilities. A metric that is a mean over classes is judged class by class: the loss is the mean of each class's
    expected loss plus its standard error. So what one class gains does not hide what another may lose. The standard
    error is a grouped jackknife (Efron & Tibshirani 1993, chapter 11).
    """

    def __init__(self, metric: str, decision: Decision, final: Floats, documents: Rows | None = None) -> None:
        self.metric, self.label_space = metric, decision.label_space
        numbers = np.arange(len(final)) if documents is None else np.unique(documents, return_inverse=True)[1]
        self.part_count = min(_PARTS, int(numbers.max()) + 1)
        self.in_part = np.arange(self.part_count)[:, None] == numbers % self.part_count
        self.probabilities = self.label_space.probabilities(final.astype(np.float64))
        self.support, self.counts = map(self._without_each, (self.probabilities, np.ones((len(final), 1))))
        self.full = self._scores(decision.decide(self.probabilities)[0])

    def __call__(self, labels: Targets) -> float:
        """The loss of labels (n, …) against those of full depth."""
        lost = self.full - self._scores(labels)
        # the jackknife's (g - 1) / g times the sum of squares over g parts; the first entry is of all documents
        error = np.sqrt((self.part_count - 1) * lost[1:].var(0))
        return float((lost[0] + error).mean())

    def regret(self, labels: Targets, others: Targets) -> Floats:
        """(n,) the expected number of right labels by which others are ahead; multi-label: summed over the classes."""
        given, instead = self.label_space.indicator(labels), self.label_space.indicator(others)
        right = 2 * self.probabilities - 1 if self.label_space.multilabel else self.probabilities
        return np.asarray((right * instead).sum(1) - (right * given).sum(1))

    def _scores(self, labels: Targets) -> Floats:
        """(1 + parts, K) each class's expected metric on all documents and without each part; accuracy is one class."""
        given = self.label_space.indicator(labels)
        if self.metric == "accuracy":
            # in a multi-label task a label is right if all of its classes are, taken as independent
            each = np.where(given, self.probabilities, 1 - self.probabilities)
            right = each.prod(1) if self.label_space.multilabel else self.probabilities[given]
            return np.asarray(self._without_each(right[:, None]) / self.counts)
        hits, predicted = self._without_each(given * self.probabilities), self._without_each(given.astype(np.float64))
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
