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
    return difference_interval(metric, y, candidate, baseline, significance, seed)[0]


def difference_interval(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, significance: float, seed: int
) -> tuple[float, float]:
    """The lower and the upper confidence bound of how much higher `candidate` scores than `baseline`.

    The lower one is `lower_bound`, and the upper one is its counterpart, the quantile 1 - `significance`. Together they
    are an interval with the confidence 1 - 2 `significance`.
    """
    draws = min(max(_DRAWS, math.ceil(_TAIL / significance)), _MAX_DRAWS)
    differences = _differences(metric, y, candidate, baseline, seed, draws)
    low, high = np.quantile(differences, [significance, 1 - significance]).tolist()
    return low, high


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
