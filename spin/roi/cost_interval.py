"""Prediction intervals of a mean cost: how far the mean of documents to come may lie from a sample's mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spin.arrays import Floats, Hashes, Rows

CONFIDENCE = 0.95
_DRAWS = 2000
_BLOCK = 2_000_000
"""numbers that are drawn at a time"""


@dataclass(frozen=True)
class Interval:
    """A range in which a figure lies with 95 % confidence."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def predict_interval(
    costs: Floats,
    weights: Floats,
    future: float,
    seed: int,
    *,
    largest: float = 0.0,
    groups: Hashes | None = None,
) -> Interval:
    """The 95 % prediction interval of the mean cost of `future` further documents, by the costs (n,) of a sample.

    `weights` (n,) say how often documents like each of the sample will come. The error of a prediction has two parts:
    the sample differs from the whole, and so do the documents to come. The first is drawn by the bootstrap over the
    documents, in which the shares of the classes vary too (Efron & Tibshirani 1993, chapters 13 and 25). The second is
    normal with the standard deviation of one document over the square root of `future`, since `future` is large. Where
    documents have `groups` (n,), both are those of whole groups. Costs are never below 0, and neither is the interval.

    The upper end is that of a sample with one document more, which costs `largest`, or with `groups` one group more, of
    as many such documents as groups have on average. A sample without an error does not show that there are none. Its
    upper end is then about three such documents in n, as by the rule of three (Hanley & Lippman-Hand 1983).
    """
    tail, group_of = (1 - CONFIDENCE) / 2, np.arange(len(costs))
    if groups is not None:
        _, group_of = np.unique(groups, return_inverse=True)
    low = _quantile(costs, weights, group_of, future, seed, tail)
    size = round(len(costs) / (group_of.max() + 1))
    more, more_weights = np.append(costs, [largest] * size), np.append(weights, [float(weights.mean())] * size)
    more_groups = np.append(group_of, [group_of.max() + 1] * size)
    high = _quantile(more, more_weights, more_groups, future, seed, 1 - tail)
    return Interval(max(0.0, low), high)


def _quantile(costs: Floats, weights: Floats, group_of: Rows, future: float, seed: int, quantile: float) -> float:
    """A quantile of the mean cost of the documents to come; `group_of` (n,) numbers the group of each document."""
    draw = np.random.default_rng(seed)
    mean = np.average(costs, weights=weights)
    # documents of a group deviate together: of groups of one document this is the weighted variance
    deviations = np.bincount(group_of, np.sqrt(weights) * (costs - mean))
    deviation = np.sqrt((deviations**2).sum() / weights.sum() / future)
    of_groups, group_weights = np.bincount(group_of, costs * weights), np.bincount(group_of, weights)
    count = len(of_groups)
    step = max(1, _BLOCK // count)
    means = []
    for start in range(0, _DRAWS, step):
        drawn = draw.integers(count, size=(min(step, _DRAWS - start), count))
        means.append(of_groups[drawn].sum(axis=1) / np.maximum(group_weights[drawn].sum(axis=1), 1e-12))
    means_to_come = np.concatenate(means) + deviation * draw.standard_normal(_DRAWS)
    return float(np.quantile(means_to_come, quantile))
