"""Whether one way to classify is better than another, told from both on the same documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spin.labels.label_space import Targets
from spin.labels.metrics import score

_DRAWS = 500


def bootstrap_p_value(metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int) -> float:
    """The share of bootstrap samples of the documents in which `candidate` does not score above `baseline`.

    Small says better: a one-sided paired bootstrap test (Efron & Tibshirani 1993, chapter 16). 1 for equal answers.
    """
    return float((_differences(metric, y, candidate, baseline, seed) <= 0).mean())


def lower_bound(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, significance: float, seed: int
) -> float:
    """How much higher `candidate` scores than `baseline` at least, but for a chance of `significance`.

    The one-sided lower confidence bound by the percentiles of the paired bootstrap (Efron & Tibshirani 1993, chapter
    13): at or above -margin it says no worse by more than the margin. 0 for equal answers.
    """
    return float(np.quantile(_differences(metric, y, candidate, baseline, seed), significance))


def _differences(metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int) -> NDArray[np.floating]:
    """Of both scores, in each bootstrap sample of the documents."""
    found = np.zeros(_DRAWS)
    if not (candidate != baseline).any():
        return found
    draw = np.random.default_rng(seed)
    for sample in range(_DRAWS):
        rows = draw.integers(len(y), size=len(y))
        found[sample] = score(metric, y[rows], candidate[rows]) - score(metric, y[rows], baseline[rows])
    return found
