"""Paired bootstrap: compare two classifiers on the same documents."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from spin.labels.label_space import Targets
from spin.labels.metrics import score

_DRAWS = 500
_TAIL, _MAX_DRAWS = 25, 100_000
"""samples below a quantile that are drawn at least, with so many samples at most"""


def bootstrap_p_value(metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int) -> float:
    """The one-sided p-value that `candidate` is not better than `baseline` (Efron & Tibshirani 1993, chapter 16).

    It is the share of bootstrap samples of the documents in which `candidate` does not score above `baseline`; 1 for
    equal predictions.
    """
    return float((_differences(metric, y, candidate, baseline, seed) <= 0).mean())


def lower_bound(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, significance: float, seed: int
) -> float:
    """The one-sided lower confidence bound of how much higher `candidate` scores than `baseline`.

    It is the `significance` quantile of the paired bootstrap (Efron & Tibshirani 1993, chapter 13). A bound of at
    least -margin shows that `candidate` is not worse by more than the margin. 0 for equal predictions. A smaller
    `significance` takes more samples than 500, so that 25 lie below the quantile.
    """
    draws = min(max(_DRAWS, math.ceil(_TAIL / significance)), _MAX_DRAWS)
    return float(np.quantile(_differences(metric, y, candidate, baseline, seed, draws), significance))


def _differences(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int, draws: int = _DRAWS
) -> NDArray[np.floating]:
    """The difference of both scores in each bootstrap sample of the documents."""
    differences = np.zeros(draws)
    if not (candidate != baseline).any():
        return differences
    draw = np.random.default_rng(seed)
    for sample in range(draws):
        rows = draw.integers(len(y), size=len(y))
        differences[sample] = score(metric, y[rows], candidate[rows]) - score(metric, y[rows], baseline[rows])
    return differences
