"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.early_exit import DISABLED, sureness
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score

_PASSING = 0.03
"""what going on from an exit costs, as a share of full depth: the residual stream is copied, batches are made anew"""

_LEVELS = 12
"""thresholds that are tried at an exit"""


def exit_indices(
    exits: Sequence[Floats], thresholds: Sequence[float], final: Floats, label_space: LabelSpace
) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each document leaves, by logits (n, K); for none, how many there are."""
    return _leave(
        [sureness(label_space, label_space.probabilities(logits)) for logits in exits], thresholds, len(final)
    )


def _leave(sure: Sequence[Floats], thresholds: Sequence[float], count: int) -> NDArray[np.int64]:
    """(count,) the first exit at which each document is sure enough; for none, how many there are."""
    at = np.full(count, len(sure))
    for index in reversed(range(len(sure))):
        at[sure[index] >= thresholds[index]] = index
    return at


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
    """The threshold of each exit for which a document costs least on average and `max_loss` is kept.

    `exits` are the calibrated logits (n, K) of the exits and `final` those of full depth, on documents that the heads
    have not seen; `costs` what running to each exit and to full depth costs; passing
    an open exit costs a little more. The loss is the larger of two: what the
    metric loses here, and what full depth itself expects to lose in accuracy, by its probabilities, where the labels
    differ. The second is the steadier estimate: few labels differ, so that the best of many measured losses is lucky.
    """
    sure = [sureness(label_space, label_space.probabilities(logits)) for logits in exits]
    grids = [[*np.quantile(of, np.linspace(0, 0.95, _LEVELS)), DISABLED] for of in sure]
    best = score(metric, y, label_space.predict(final))

    def price(thresholds: Sequence[float]) -> float:
        passed = np.cumsum([0, *(threshold < DISABLED for threshold in thresholds)])
        at = _leave(sure, thresholds, len(final))
        return float((np.asarray(costs) + _PASSING * costs[-1] * passed)[at].mean())

    for thresholds in sorted(product(*grids), key=price):
        at = _leave(sure, thresholds, len(final))
        logits = mixed(exits, final, at)
        if _expected_loss(logits, final, label_space) > max_loss:
            continue
        if best - score(metric, y, label_space.predict(logits)) <= max_loss + 1e-12:
            return [float(threshold) for threshold in thresholds]
    return [DISABLED] * len(exits)


def mixed(exits: Sequence[Floats], final: Floats, at: NDArray[np.int64]) -> Floats:
    """(n, K) each document's logits, of the exit at which it left."""
    return np.stack([*exits, final])[at, np.arange(len(final))]


def _expected_loss(logits: Floats, final: Floats, label_space: LabelSpace) -> float:
    """What full depth expects to be lost in accuracy, a class on average in a multi-label task."""
    probabilities, given, own = (
        label_space.probabilities(final),
        label_space.predict(logits),
        label_space.predict(final),
    )
    if label_space.multilabel:
        return float(np.abs(2 * probabilities - 1)[given != own].sum() / probabilities.size)
    rows = np.arange(len(final))
    return float((probabilities[rows, own] - probabilities[rows, given]).mean())


def offered_depths(shares: Sequence[float], depth: int) -> list[int]:
    """The depths of exits at some shares of a full depth, ascending, each below it."""
    return sorted({at for share in shares if 0 < (at := round(share * depth)) < depth})
