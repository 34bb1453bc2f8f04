"""Whether one way to classify is better than another, told from both on the same documents."""

from __future__ import annotations

import numpy as np

from spin.metric import score
from spin.task import Targets

_DRAWS = 500


def chance_not_better(metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int) -> float:
    """The share of bootstrap samples of the documents in which `candidate` does not score above `baseline`.

    Small says better: a one-sided paired bootstrap test (Efron & Tibshirani 1993, chapter 16). 1 for equal answers.
    """
    differing = candidate != baseline
    if not differing.any():
        return 1.0
    draw = np.random.default_rng(seed)
    lost = 0
    for _ in range(_DRAWS):
        rows = draw.integers(len(y), size=len(y))
        lost += score(metric, y[rows], candidate[rows]) <= score(metric, y[rows], baseline[rows])
    return lost / _DRAWS
