"""The bootstrap: how certain a score is, and how two classifiers differ on the same documents.

Where documents have `groups` (n,), a sample draws whole groups: documents of one author are right or wrong together,
and tell less than as many of others (the cluster bootstrap; Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from spin.arrays import Floats, Hashes
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


def lower_bound(
    metric: str,
    y: Targets,
    candidate: Targets,
    baseline: Targets,
    significance: float,
    groups: Hashes | None = None,
) -> float:
    """The one-sided lower confidence bound of how much higher `candidate` scores than `baseline`.

    It is the `significance` quantile of the paired bootstrap (Efron & Tibshirani 1993, chapter 13) over the documents
    and one more, or with `groups` one group more, which `candidate` alone gets wrong: without it, versions that are
    worse by a margin pass up to twice as often as they may where few documents tell the two apart. A bound of at least
    -margin shows that `candidate` is not worse by more than the margin. 0 for equal predictions. The samples are always
    the same ones, so that no seed decides; a smaller `significance` takes more than 10,000, so that 25 lie below the
    quantile.
    """
    if not (candidate != baseline).any():
        return 0.0
    y, (candidate, baseline), groups = _with_group_more(y, groups, [candidate], [baseline])
    draws = min(max(_VERDICT_DRAWS, math.ceil(_TAIL / significance)), _MAX_DRAWS)
    differences = _differences(metric, y, candidate, baseline, 0, draws, groups)
    return float(np.quantile(differences, significance))


def difference_interval(
    metric: str,
    y: Targets,
    candidate: Targets,
    baseline: Targets,
    significance: float,
    seed: int,
    groups: Hashes | None = None,
) -> tuple[float, float]:
    """The lower and the upper confidence bound of how much higher `candidate` scores than `baseline`.

    They are the quantiles `significance` and 1 - `significance` of the paired bootstrap, and together an interval with
    the confidence 1 - 2 `significance`. A smaller `significance` takes more samples than 500, so that 25 lie below.
    """
    draws = min(max(_DRAWS, math.ceil(_TAIL / significance)), _MAX_DRAWS)
    differences = _differences(metric, y, candidate, baseline, seed, draws, groups)
    low, high = np.quantile(differences, [significance, 1 - significance]).tolist()
    return low, high


def score_intervals(
    metric: str, y: Targets, predictions: Sequence[Targets], seed: int, groups: Hashes | None = None
) -> list[tuple[float, float]]:
    """The 95 % interval of the score of each of several predictions for the same documents.

    It lies between percentiles of the bootstrap (Efron & Tibshirani 1993, chapter 13). The lower end is that of a
    sample with one document more, or with `groups` one group more, of the commonest class and wrong. A small sample
    with few errors does not show that there are no others; the percentile by itself is too high then.
    """
    draws = math.ceil(_TAIL / OUTSIDE)
    targets, wrong, more = _with_group_more(y, groups, predictions)
    low = bootstrap_scores(metric, targets, wrong, seed, draws, more)
    high = bootstrap_scores(metric, y, predictions, seed, draws, groups)
    ends = np.quantile(low, OUTSIDE, axis=0), np.quantile(high, 1 - OUTSIDE, axis=0)
    return list(zip(*(end.tolist() for end in ends), strict=True))


def bootstrap_scores(
    metric: str,
    y: Targets,
    predictions: Sequence[Targets],
    seed: int,
    draws: int,
    groups: Hashes | None = None,
) -> Floats:
    """The scores (draws, m) of m predictions in bootstrap samples of the documents, the same samples for all.

    Documents with the same true and predicted classes are counted together: of these kinds there are few.
    """
    every = np.concatenate([targets.reshape(len(y), -1) for targets in (y, *predictions)], axis=1)
    _, first, kind_of = np.unique(every, axis=0, return_index=True, return_inverse=True)
    units, of_kinds = _units(kind_of.ravel(), groups)
    draw, drawn, scores = np.random.default_rng(seed), int(units.sum()), []
    step = max(1, _BLOCK // max(of_kinds.shape))
    for start in range(0, draws, step):
        samples = draw.multinomial(drawn, units / drawn, size=min(step, draws - start))
        counts = np.asarray((of_kinds.T @ samples.T).T, np.float64)
        scores.append([score_samples(metric, y[first], each[first], counts) for each in predictions])
    return np.concatenate(scores, axis=1).T


def _units(kind_of: NDArray[np.int64], groups: Hashes | None) -> tuple[NDArray[np.int64], sparse.csr_array]:
    """What samples draw from: how many there are of each of u units, and (u, kinds) the documents that one stands for.

    A group of several documents is a unit, and so are all documents of a kind that are groups by themselves.
    """
    kinds = int(kind_of.max()) + 1
    if groups is None:
        return np.bincount(kind_of), sparse.eye_array(kinds, format="csr", dtype=np.int64)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    alone = sizes[group_of] == 1
    _, unit_of = np.unique(np.where(alone, kind_of, kinds + group_of), return_inverse=True)
    units = np.ones(int(unit_of.max()) + 1, np.int64)
    units[unit_of[alone]] = np.bincount(unit_of[alone], minlength=len(units))[unit_of[alone]]
    table = sparse.coo_array((np.ones(len(kind_of), np.int64), (unit_of, kind_of)), (len(units), kinds)).tocsr()
    return units, sparse.csr_array(table.multiply(1 / units[:, None]))


def _with_group_more(
    y: Targets, groups: Hashes | None, wrong: Sequence[Targets], right: Sequence[Targets] = ()
) -> tuple[Targets, list[Targets], Hashes | None]:
    """Targets, predictions and groups with one group more, which is wrong or right in each of the predictions.

    It has as many documents as groups have on average, one without groups. They are of the commonest class, and the
    wrong ones are given the next commonest. In a multi-label task they have the commonest classes, and the commonest
    class of all is wrong. So the order of the classes means nothing.
    """
    common, occurrences = np.unique(y, axis=0, return_counts=True)
    order = np.argsort(-occurrences, kind="stable")
    document = common[order[0]]
    if y.ndim == 2:
        other = document ^ (np.arange(y.shape[1]) == y.sum(0).argmax())
    else:
        other = common[order[1]] if len(common) > 1 else np.int64(document == 0)
    size = 1
    if groups is not None:
        _, group_of = np.unique(groups, return_inverse=True)
        size = round(len(group_of) / (group_of.max() + 1))
        groups = np.append(group_of, np.full(size, group_of.max() + 1)).astype(np.uint64)
    labels = [other] * len(wrong) + [document] * len(right)
    more = [
        np.concatenate([targets, np.stack([label] * size)])
        for targets, label in zip([*wrong, *right], labels, strict=True)
    ]
    return np.concatenate([y, np.stack([document] * size)]), more, groups


def _differences(
    metric: str,
    y: Targets,
    candidate: Targets,
    baseline: Targets,
    seed: int,
    draws: int,
    groups: Hashes | None = None,
) -> Floats:
    """The difference of both scores in each bootstrap sample of the documents."""
    if not (candidate != baseline).any():
        return np.zeros(draws)
    ours, theirs = bootstrap_scores(metric, y, [candidate, baseline], seed, draws, groups).T
    return ours - theirs
