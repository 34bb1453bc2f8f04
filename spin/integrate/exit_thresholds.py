"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    passing: Sequence[float] | None = None,
    documents: Rows | None = None,
) -> list[float]:
    """The thresholds with the least mean cost per document that lose at most `max_loss`, one per exit.

    `exits` are the calibrated logits (n, K) of each exit and `final` those of full depth, on documents that the heads
    have not seen. `costs` are the costs of running to each exit and to full depth. `passing` are the costs of going on
    after each open exit, by default `PASSING_COST` of full depth. Labels are those of `decision`, which should not
    abstain. `documents` (n,) numbers the documents where repeated cross-validation predicts one more than once.

    The loss is the larger of two: the metric's measured loss, and the loss that full depth's own probabilities predict,
    plus its standard error. The second is the steadier estimate: only few labels differ, so the best of many measured
    losses is lucky. Where a class is rare, its standard error is large.
    """
    if not exits:
        return []
    labels: NDArray[Any] = np.stack([_labels(decision, logits) for logits in (*exits, final)])
    confidences = [_confidence(decision, logits) for logits in exits]
    grids = [[*np.quantile(values, np.linspace(0, 0.95, _LEVELS)).tolist(), DISABLED] for values in confidences]
    levels = np.stack([np.searchsorted(g, values, side="right") for g, values in zip(grids, confidences, strict=True)])
    expected = _GridLoss(_ExpectedLoss(metric, decision, final, documents), [*labels], levels)
    best = score(metric, y, labels[-1])
    mean_costs = _mean_costs(levels, costs, [PASSING_COST * costs[-1]] * len(exits) if passing is None else passing)
    # from the cheapest combination on: the first that passes both tests is the answer; last bits do not order costs
    for cell in np.argsort(mean_costs.round(12), axis=None, kind="stable"):
        at = tuple(map(int, np.unravel_index(cell, mean_costs.shape)))
        if expected(at) <= max_loss + 1e-12:
            thresholds = [grid[index] for grid, index in zip(grids, at, strict=True)]
            exiting = [values >= threshold for values, threshold in zip(confidences, thresholds, strict=True)]
            stops = np.stack([*exiting, np.ones(len(final), bool)]).argmax(0)
            given: Targets = labels[stops, np.arange(len(final))]
            if best - score(metric, y, given) <= max_loss + 1e-12:
                return thresholds
    return [DISABLED] * len(exits)


def _mean_costs(levels: NDArray[np.int64], costs: Sequence[float], passing: Sequence[float]) -> Floats:
    """The mean cost per document of every combination of thresholds, one axis per exit.

    `levels` (E, n) are the numbers of thresholds of each exit that each document reaches. The last threshold of an exit
    disables it. Documents are counted by their levels once, so that no combination needs a pass over all of them.
    """
    # a document passes an exit with threshold number a if its level there is at most a: a cumulative count along the
    # axis. `before` documents of each combination arrive at an exit, `past` of them pass it, and `paid` is what each
    # has paid for the open exits before.
    shape = (_LEVELS + 1,) * len(levels)
    counts = np.bincount(np.ravel_multi_index(tuple(levels), shape), minlength=int(np.prod(shape))).reshape(shape)
    before, paid = np.array(float(levels.shape[1])), np.array(0.0)
    total = np.zeros(shape)
    for exit in range(len(levels)):
        past = counts.sum(tuple(range(exit + 1, len(levels))), keepdims=True)
        for axis in range(exit + 1):
            past = past.cumsum(axis)
        total += (before - past) * (costs[exit] + paid)
        is_open = np.arange(_LEVELS + 1) < _LEVELS
        paid = paid + passing[exit] * is_open.reshape([-1 if axis == exit else 1 for axis in range(len(levels))])
        before = past
    return np.asarray((total + before * (costs[-1] + paid)) / levels.shape[1])


def _labels(decision: Decision, logits: Floats) -> Targets:
    return decision.decide(decision.label_space.probabilities(logits))[0]


def _confidence(decision: Decision, logits: Floats) -> Floats:
    return confidence(decision.label_space, decision.label_space.probabilities(logits))


class _ExpectedLoss:
    """The loss of a metric that labels cause, by the probabilities of full depth, plus one standard error.

    The counts behind a metric (documents of a class, right ones) are replaced by their expectations under the
    probabilities. A metric that is a mean over classes is judged class by class: the loss is the mean of each class's
    expected loss plus its standard error. So what one class gains does not hide what another may lose. The standard
    error is a grouped jackknife (Efron & Tibshirani 1993, chapter 11).
    """

    def __init__(self, metric: str, decision: Decision, final: Floats, documents: Rows | None = None) -> None:
        self.metric, self.label_space = metric, decision.label_space
        numbers = np.arange(len(final)) if documents is None else np.unique(documents, return_inverse=True)[1]
        self.parts = numbers % min(_PARTS, numbers.max() + 1)
        self.part_count = int(self.parts.max()) + 1
        self.probabilities = self.label_space.probabilities(final.astype(np.float64))
        self.support, self.counts = (
            _without_each(np.stack([values[self.parts == part].sum(0) for part in range(self.part_count)]))
            for values in (self.probabilities, np.ones((len(final), 1)))
        )
        self.full = self._scores(self._sums_of_all(_labels(decision, final)))

    def __call__(self, labels: Targets) -> float:
        return float(self.loss(self._sums_of_all(labels)))

    def loss(self, sums: Floats) -> Floats:
        """The loss (…) of labels by their sums (…, parts, classes, 2)."""
        lost = self.full - self._scores(sums)
        # the jackknife's (g - 1) / g times the sum of squares over g parts; the first entry is of all documents
        error = np.sqrt((self.part_count - 1) * lost[..., 1:, :].var(-2))
        return np.asarray((lost[..., 0, :] + error).mean(-1))

    def given(self, labels: Targets) -> _Given:
        """The classes that labels give the documents; for accuracy one class, which all have."""
        indicator = self.label_space.indicator(labels)
        if self.metric != "accuracy":
            rows, classes = np.nonzero(indicator)
            return _Given(rows, self.parts[rows], classes, self.probabilities[rows, classes], indicator.shape[1])
        # in a multi-label task a label is right if all of its classes are, taken as independent
        right = np.where(indicator, self.probabilities, 1 - self.probabilities).prod(1)
        if not self.label_space.multilabel:
            right = self.probabilities[indicator]
        return _Given(np.arange(len(right)), self.parts, np.zeros(len(right), np.int64), right, 1)

    def _sums_of_all(self, labels: Targets) -> Floats:
        return self.given(labels).sums(np.zeros(len(labels), np.int64), 1, self.part_count)[0]

    def _scores(self, sums: Floats) -> Floats:
        """(…, 1 + parts, K) each class's expected metric on all documents and without each part."""
        hits, predicted = np.moveaxis(_without_each(sums, axis=-3), -1, 0)
        if self.metric == "accuracy":
            return np.asarray(hits / self.counts)
        if self.metric == "macro_f1":
            return np.asarray(2 * hits / np.maximum(self.support + predicted, 1e-12))
        recall = hits / np.maximum(self.support, 1e-12)
        if self.label_space.multilabel:  # the mean of the recalls of documents with the class and of those without
            absent = np.maximum(self.counts - self.support, 1e-12)
            recall = (recall + 1 - (predicted - hits) / absent) / 2
        return np.asarray(recall)


class _GridLoss:
    """The expected loss of combinations of thresholds, given by their indices, from sums over few passes.

    Combinations that differ in the last exit's threshold alone share all that the other exits decide, and are computed
    at once. Those that share the thresholds of the first exits share the sums over the documents that stop there.
    """

    def __init__(self, expected: _ExpectedLoss, labels: Sequence[Targets], levels: NDArray[np.int64]) -> None:
        self.expected, self.levels = expected, levels
        self.given = [expected.given(of_exit) for of_exit in labels]
        self.block, self.stopped = cache(self._block), cache(self._stopped)

    def __call__(self, at: tuple[int, ...]) -> float:
        return float(self.block(at[:-1])[at[-1]])

    def _block(self, first: tuple[int, ...]) -> Floats:
        """The loss for each threshold of the last exit, with the others at the indices `first`."""
        goes_on = self._goes_on(first)
        stops, passes = (self._sums(index, goes_on, self.levels[-1]) for index in (-2, -1))
        # at threshold number a of the last exit, documents with levels above a stop there, and the others pass
        up_to = stops.cumsum(0)
        return self.expected.loss(self.stopped(first) + (up_to[-1] - up_to) + passes.cumsum(0))

    def _stopped(self, first: tuple[int, ...]) -> Floats:
        """(parts, K, 2) the sums over the documents that stop at the first exits."""
        if not first:
            return np.zeros(())
        stops = self._goes_on(first[:-1]) & (self.levels[len(first) - 1] > first[-1])
        here = self._sums(len(first) - 1, stops, np.zeros(len(stops), np.int64))[0]
        return np.asarray(self.stopped(first[:-1]) + here)

    def _goes_on(self, first: tuple[int, ...]) -> NDArray[np.bool_]:
        """(n,) the documents that pass the first exits."""
        return np.asarray((self.levels[: len(first)] <= np.array(first, np.int64)[:, None]).all(0))

    def _sums(self, index: int, rows: NDArray[np.bool_], levels: NDArray[np.int64]) -> Floats:
        """(L, parts, K, 2) the sums over some documents of each level (n,), with the labels of an exit."""
        # documents that are left out get a level of their own, which is dropped
        own = np.where(rows, levels, _LEVELS + 1)
        return self.given[index].sums(own, _LEVELS + 2, self.expected.part_count)[:-1]


@dataclass(frozen=True)
class _Given:
    """The classes that labels give documents: m pairs of a document and a class."""

    rows: Rows
    """(m,) the document of each pair"""
    parts: NDArray[np.int64]
    """(m,) the part of the document"""
    classes: NDArray[np.int64]
    """(m,) the class of each pair"""
    right: Floats
    """(m,) the probability that the document has the class"""
    width: int
    """number of classes"""

    def sums(self, levels: NDArray[np.int64], count: int, parts: int) -> Floats:
        """(count, parts, K, 2) by level, part and class the expected right labels, and the labels.

        `levels` (n,) of the documents are below `count`.
        """
        cells = (levels[self.rows] * parts + self.parts) * self.width + self.classes
        size = count * parts * self.width
        sums: Floats = np.stack([np.bincount(cells, w, size) for w in (self.right, np.ones(len(cells)))], axis=-1)
        return sums.reshape(count, parts, self.width, 2)


def _without_each(sums: Floats, axis: int = 0) -> Floats:
    """(…, 1 + parts, …) the sum over all parts, and over all but each."""
    total = sums.sum(axis, keepdims=True)
    return np.concatenate([total, total - sums], axis=axis)
