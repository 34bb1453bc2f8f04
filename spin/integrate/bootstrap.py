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
_VERDICT_DRAWS = 10_000
"""samples that a verdict rests on at least: other samples would move its bound by 2 % of its standard error"""
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


def lower_bound(metric: str, y: Targets, candidate: Targets, baseline: Targets, significance: float) -> float:
    """The one-sided lower confidence bound of how much higher `candidate` scores than `baseline`.

    It is the `significance` quantile of the paired bootstrap (Efron & Tibshirani 1993, chapter 13) over the documents
    and one more, which `candidate` alone gets wrong: without it, versions that are worse by a margin pass up to twice
    as often as they may where few documents tell the two apart. A bound of at least -margin shows that `candidate` is
    not worse by more than the margin. 0 for equal predictions. The samples are always the same ones, so that no seed
    decides; a smaller `significance` takes more than 10,000, so that 25 lie below the quantile.
    """
    if not (candidate != baseline).any():
        return 0.0
    y, (candidate, baseline) = _with_document_more(y, [candidate], [baseline])
    draws = min(max(_VERDICT_DRAWS, math.ceil(_TAIL / significance)), _MAX_DRAWS)
    return float(np.quantile(_differences(metric, y, candidate, baseline, seed=0, draws=draws), significance))


def difference_interval(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, significance: float, seed: int
) -> tuple[float, float]:
    """The lower and the upper confidence bound of how much higher `candidate` scores than `baseline`.

    They are the quantiles `significance` and 1 - `significance` of the paired bootstrap, and together an interval with
    the confidence 1 - 2 `significance`. A smaller `significance` takes more samples than 500, so that 25 lie below.
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
    low = bootstrap_scores(metric, *_with_document_more(y, predictions), seed, draws)
    high = bootstrap_scores(metric, y, predictions, seed, draws)
    ends = np.quantile(low, OUTSIDE, axis=0), np.quantile(high, 1 - OUTSIDE, axis=0)
    return list(zip(*(end.tolist() for end in ends), strict=True))


def bootstrap_scores(metric: str, y: Targets, predictions: Sequence[Targets], seed: int, draws: int = _DRAWS) -> Floats:
    """The scores (draws, m) of m predictions in bootstrap samples of the documents, the same samples for all.

    Documents with the same true and predicted classes are counted together: of these there are few.
    """
    every = np.concatenate([targets.reshape(len(y), -1) for targets in (y, *predictions)], axis=1)
    _, first, kind_of = np.unique(every, axis=0, return_index=True, return_inverse=True)
    draw, shares, scores = np.random.default_rng(seed), np.bincount(kind_of.ravel()) / len(y), []
    step = max(1, _BLOCK // len(first))
    for start in range(0, draws, step):
        counts = draw.multinomial(len(y), shares, size=min(step, draws - start)).astype(np.float64)
        scores.append([score_samples(metric, y[first], each[first], counts) for each in predictions])
    return np.concatenate(scores, axis=1).T


def _with_document_more(
    y: Targets, wrong: Sequence[Targets], right: Sequence[Targets] = ()
) -> tuple[Targets, list[Targets]]:
    """Targets and predictions with one document more, of the commonest class; it is wrong or right in each of these."""
    common, occurrences = np.unique(y, axis=0, return_counts=True)
    document = common[occurrences.argmax()]
    other = ~document if y.ndim == 2 else np.int64(document == 0)
    given = [(targets, other) for targets in wrong] + [(targets, document) for targets in right]
    more = [np.concatenate([targets, [label]]) for targets, label in given]
    return np.concatenate([y, [document]]), more


def _differences(
    metric: str, y: Targets, candidate: Targets, baseline: Targets, seed: int, draws: int = _DRAWS
) -> Floats:
    """The difference of both scores in each bootstrap sample of the documents."""
    if not (candidate != baseline).any():
        return np.zeros(draws)
    ours, theirs = bootstrap_scores(metric, y, [candidate, baseline], seed, draws).T
    return ours - theirs
