"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.early_exit import DISABLED, confidence
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score

_PASSING_COST = 0.03
"""cost of passing an open exit, as a share of full depth: the residual stream is copied and batches are regrouped"""
_LEVELS = 12
"""thresholds that are tried per exit"""


def offered_depths(shares: Sequence[float], depth: int) -> list[int]:
    """The depths of exits at some shares of a full depth, ascending, each above 0 and below the full depth."""
    return sorted({at for share in shares if 0 < (at := round(share * depth)) < depth})


def choose_exit_thresholds(
    exits: Sequence[Floats],
    final: Floats,
    y: Targets,
    label_space: LabelSpace,
    *,
    metric: str,
    costs: Sequence[float],
    max_loss: float,
) -> list[float]:
    """The thresholds with the least mean cost per document that lose at most `max_loss`, one per exit.

    `exits` are the calibrated logits (n, K) of each exit and `final` those of full depth, on documents that the heads
    have not seen. `costs` are the costs of running to each exit and to full depth. The loss is the larger of two: the
    metric's measured loss, and the loss of accuracy that full depth's own probabilities predict where the labels
    differ. The second is the steadier estimate: only few labels differ, so the best of many measured losses is lucky.
    """
    confidences = _confidences(exits, label_space)
    grids = [[*np.quantile(values, np.linspace(0, 0.95, _LEVELS)), DISABLED] for values in confidences]
    best = score(metric, y, label_space.predict(final))

    def mean_cost(thresholds: Sequence[float]) -> float:
        passed = np.cumsum([0, *(threshold < DISABLED for threshold in thresholds)])
        indices = _first_exit(confidences, thresholds, len(final))
        return float((np.asarray(costs) + _PASSING_COST * costs[-1] * passed)[indices].mean())

    for thresholds in sorted(product(*grids), key=mean_cost):
        logits = np.stack([*exits, final])[_first_exit(confidences, thresholds, len(final)), np.arange(len(final))]
        if _expected_loss(logits, final, label_space) > max_loss:
            continue
        if best - score(metric, y, label_space.predict(logits)) <= max_loss + 1e-12:
            return [float(threshold) for threshold in thresholds]
    return [DISABLED] * len(exits)


def exit_indices(
    exits: Sequence[Floats], thresholds: Sequence[float], count: int, label_space: LabelSpace
) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each of `count` documents stops; the number of exits for full depth.

    `exits` are the calibrated logits (n, K) of each exit.
    """
    return _first_exit(_confidences(exits, label_space), thresholds, count)


def _confidences(exits: Sequence[Floats], label_space: LabelSpace) -> list[Floats]:
    return [confidence(label_space, label_space.probabilities(logits)) for logits in exits]


def _first_exit(confidences: Sequence[Floats], thresholds: Sequence[float], count: int) -> NDArray[np.int64]:
    """(count,) the first exit at which each document is confident enough; the number of exits if there is none."""
    indices = np.full(count, len(confidences))
    for index in reversed(range(len(confidences))):
        indices[confidences[index] >= thresholds[index]] = index
    return indices


def _expected_loss(logits: Floats, final: Floats, label_space: LabelSpace) -> float:
    """The accuracy that is lost by the probabilities of full depth, per class in a multi-label task."""
    probabilities = label_space.probabilities(final)
    given, at_full_depth = label_space.predict(logits), label_space.predict(final)
    if label_space.multilabel:
        return float(np.abs(2 * probabilities - 1)[given != at_full_depth].sum() / probabilities.size)
    rows = np.arange(len(final))
    return float((probabilities[rows, at_full_depth] - probabilities[rows, given]).mean())
