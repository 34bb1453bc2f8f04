"""The accuracy of many labels by those of a few documents that people have checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spin.monitor.quality import Estimate

_QUANTILE = 1.96
"""quantile of the normal distribution, for an interval of 95 %"""


@dataclass(frozen=True)
class Stratum:
    """Documents of which some were drawn at random, with equal probability, and checked."""

    population: int
    """documents, of which the checked ones are a part"""
    checked: int
    right: int
    """checked documents whose label is right"""


def estimate_accuracy(strata: Sequence[Stratum]) -> Estimate | None:
    """The share of right labels among the documents of all strata; None if no document of one of them was checked.

    This is the estimate for stratified samples, with its variance without replacement (Cochran, Sampling Techniques,
    1977, chapter 5). The interval is that of Wilson (1927) for a simple sample of the size that would have this
    variance (Korn & Graubard 1998). It holds near 100 % too. The variance within a stratum is that of half a document
    more on either side, so that it is not 0 where all checked labels are right.
    """
    filled = [stratum for stratum in strata if stratum.population]
    total = sum(stratum.population for stratum in filled)
    if not total or any(not stratum.checked for stratum in filled):
        return None
    value = smoothed = variance = 0.0
    for each in filled:
        weight, drawn = each.population / total, min(1.0, each.checked / each.population)
        share = (each.right + 0.5) / (each.checked + 1)
        value += weight * each.right / each.checked
        smoothed += weight * share
        variance += weight**2 * (1 - drawn) * share * (1 - share) / max(1, each.checked - 1)
    low, high = _wilson(value, smoothed * (1 - smoothed) / variance) if variance else (value, value)
    return Estimate(round(value, 4), round(low, 4), round(high, 4))


def _wilson(share: float, size: float) -> tuple[float, float]:
    """The interval of 95 % for a share that was found in a simple sample."""
    scale = 1 + _QUANTILE**2 / size
    centre = (share + _QUANTILE**2 / (2 * size)) / scale
    half = _QUANTILE * math.sqrt(share * (1 - share) / size + _QUANTILE**2 / (4 * size**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
