"""Intervals of what was measured: ratios of speeds over rounds, differences of scores over documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from benchmarks.method.corpora import METRIC
from spin.integrate.bootstrap import difference_interval
from spin.labels.label_space import Targets

CONFIDENCE = 0.9
"""of an interval with two ends; so one end alone has 0.95"""
_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def speed_ratio(peer_seconds: Sequence[float], seconds: Sequence[float]) -> Interval:
    """How many times as fast as a peer a contender is, by the seconds of each in the same rounds.

    The ratios within rounds do not have the noise that the contenders of a round share. The estimate is their geometric
    mean, with a t-interval of their logarithms. One that was timed in fewer rounds left after the first ones, which
    are compared. A single round has an interval from 0 to infinity.
    """
    count = min(len(peer_seconds), len(seconds))
    logs = np.log(np.asarray(peer_seconds[:count]) / np.asarray(seconds[:count]))
    mean = float(logs.mean())
    if count < 2:
        return Interval(float(np.exp(mean)), 0.0, float("inf"))
    half = float(student.ppf(1 - _TAIL, count - 1) * logs.std(ddof=1) / np.sqrt(count))
    return Interval(*(float(np.exp(value)) for value in (mean, mean - half, mean + half)))


def score_difference(
    y: Targets, score: float, classes: Targets, other_score: float, other: Targets, metric: str = METRIC
) -> Interval:
    """How much higher a contender scores than another one on the same documents, by the paired bootstrap."""
    return Interval(score - other_score, *difference_interval(metric, y, classes, other, _TAIL, seed=0))
