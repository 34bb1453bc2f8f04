"""The bootstrap: how certain a score is, and how two classifiers differ on the same documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spin.arrays import Floats
from spin.labels.label_space import Targets
from spin.labels.metrics import score_samples

OUTSIDE = 0.025
"""share of the samples below, and above, an interval of 95 %"""
_DRAWS = 500
_TAIL, _MAX_DRAWS = 25, 100_000
"""samples below a quantile that are drawn at least, with so many samples at most"""
_BLOCK = 2_000_000
"""numbers that are in memory at a time"""


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


def score_intervals(metric: str, y: Targets, predictions: Sequence[Targets], seed: int) -> list[tuple[float, float]]:
    """The 95 % interval of the score of each of several predictions for the same documents.

    It lies between percentiles of the bootstrap (Efron & Tibshirani 1993, chapter 13). The lower end is that of a
    sample with one document more, of the commonest class and wrong. A small sample with few errors does not show that
    there are no others; the percentile by itself is too high then.
    """
    draws = math.ceil(_TAIL / OUTSIDE)
    common, occurrences = np.unique(y, axis=0, return_counts=True)
    document = common[occurrences.argmax()]
    wrong = ~document if y.ndim == 2 else np.int64(document == 0)
    more = [np.concatenate([targets, [wrong]]) for targets in predictions]
    low = bootstrap_scores(metric, np.concatenate([y, [document]]), more, seed, draws)
    high = bootstrap_scores(metric, y, predictions, seed, draws)
    ends = np.quantile(low, OUTSIDE, axis=0), np.quantile(high, 1 - OUTSIDE, axis=0)
    return list(zip(*(end.tolist() for end in ends), strict=True))


def bootstrap_scores(metric: str, y: Targets, predictions: Sequence[Targets], seed: int, draws: int = _DRAWS) -> Floats:
    """The scores (draws, m) of m predictions in bootstrap samples of the documents, the same samples for all.

    Documents with the same true and predicted classes are counted together: of these there are few.
    """
    every = np.concatenate([targets.reshape(len(y), -1) for targets in (y, *predictions)], axis=1)
    _, first, kind_of = np.unique(every, axis=0, return_index=True, return_inverse=True)
    draw, kind_of, scores = np.random.default_rng(seed), kind_of.ravel(), []
    step = max(1, _BLOCK // len(first))
    for start in range(0, draws, step):
        samples = (kind_of[draw.integers(len(y), size=len(y))] for _ in range(min(step, draws - start)))
        counts = np.stack([np.bincount(kinds, minlength=len(first)) for kinds in samples]).astype(np.float64)
        scores.append([score_samples(metric, y[first], each[first], counts) for each in predictions])
    return np.concatenate(scores, axis=1).T


def _differences(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int, draws: int = _DRAWS
) -> Floats:
    """The difference of both scores in each bootstrap sample of the documents."""
    if not (candidate != baseline).any():
        return np.zeros(draws)
    ours, theirs = bootstrap_scores(metric, y, [candidate, baseline], seed, draws).T
    return ours - theirs
