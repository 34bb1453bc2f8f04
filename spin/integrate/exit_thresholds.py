"""Choose the confidence thresholds of early exits on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.early_exit import NEVER, sureness
from spin.labels.label_space import Targets, Task
from spin.labels.metrics import score

_PASSING = 0.03
"""what going on from an exit costs, as a share of full depth: the residual stream is copied, batches are made anew"""

_LEVELS = 12
"""thresholds that are tried at an exit"""


def walk(exits: Sequence[Floats], thresholds: Sequence[float], final: Floats, task: Task) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each document leaves, by logits (n, K); for none, how many there are."""
    return _leave([sureness(task, task.probabilities(logits)) for logits in exits], thresholds, len(final))


def _leave(sure: Sequence[Floats], thresholds: Sequence[float], count: int) -> NDArray[np.int64]:
    """(count,) the first exit at which each document is sure enough; for none, how many there are."""
    at = np.full(count, len(sure))
    for index in reversed(range(len(sure))):
        at[sure[index] >= thresholds[index]] = index
    return at


def thresholds_of(
    exits: Sequence[Floats],
    final: Floats,
    y: Targets,
    task: Task,
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
    sure = [sureness(task, task.probabilities(logits)) for logits in exits]
    grids = [[*np.quantile(of, np.linspace(0, 0.95, _LEVELS)), NEVER] for of in sure]
    best = score(metric, y, task.predict(final))

    def price(thresholds: Sequence[float]) -> float:
        passed = np.cumsum([0, *(threshold < NEVER for threshold in thresholds)])
        at = _leave(sure, thresholds, len(final))
        return float((np.asarray(costs) + _PASSING * costs[-1] * passed)[at].mean())

    for thresholds in sorted(product(*grids), key=price):
        at = _leave(sure, thresholds, len(final))
        logits = mixed(exits, final, at)
        if _expected_loss(logits, final, task) > max_loss:
            continue
        if best - score(metric, y, task.predict(logits)) <= max_loss + 1e-12:
            return [float(threshold) for threshold in thresholds]
    return [NEVER] * len(exits)


def mixed(exits: Sequence[Floats], final: Floats, at: NDArray[np.int64]) -> Floats:
    """(n, K) each document's logits, of the exit at which it left."""
    return np.stack([*exits, final])[at, np.arange(len(final))]


def _expected_loss(logits: Floats, final: Floats, task: Task) -> float:
    """What full depth expects to be lost in accuracy, a class on average in a multi-label task."""
    chances, given, own = task.probabilities(final), task.predict(logits), task.predict(final)
    if task.multilabel:
        return float(np.abs(2 * chances - 1)[given != own].sum() / chances.size)
    rows = np.arange(len(final))
    return float((chances[rows, own] - chances[rows, given]).mean())


def depths_of(shares: Sequence[float], depth: int) -> list[int]:
    """The depths of exits at some shares of a full depth, ascending, each below it."""
    return sorted({at for share in shares if 0 < (at := round(share * depth)) < depth})
