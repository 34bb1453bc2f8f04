"""Drift: how far documents have moved from those on which a classifier was tested, and whether by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer

SIGNIFICANCE = 0.01
"""probability of a warning where a property has moved by exactly what is allowed"""
_Shown = Annotated[float, PlainSerializer(lambda value: round(value, 4))]
"""written with the four digits that a report shows"""


@dataclass(frozen=True)
class NeuronShift:
    """The shift of the mean activation of one neuron."""

    column: str
    """feature column, as `ffn.03.mean`"""
    neuron: int
    """index within the site"""
    shift: float
    """shift of the mean in standard deviations of the reference, at least in half of those of the training"""
    documents: tuple[str, ...] = ()
    """ids of the documents whose values lie farthest in the direction of the shift; empty where none are named"""
    words: tuple[str, ...] = ()
    """words that are more frequent in such documents than in the others of the night; empty where none are named"""


@dataclass(frozen=True)
class Drift:
    """The drift of one property of the documents."""

    name: str
    """of the statistic that measures it"""
    psi: _Shown
    """population stability index; of `neurons` that of the neuron with the largest shift for its limit"""
    limit: _Shown
    """limit that `psi` exceeds by chance in one night of a hundred if the property has moved just as far as allowed"""
    now: tuple[int, ...]
    """documents per bin; of `neurons` the numbers of neurons that have moved and that have not"""
    then: tuple[int, ...]
    """documents of the reference per bin; of `neurons` empty"""
    moved: tuple[NeuronShift, ...]
    """the neurons that have moved most, for `neurons`; else empty"""
    drifted: bool
    """whether the property has moved by more than chance and more than is allowed"""


def stability(now: NDArray[np.int64], then: NDArray[np.int64]) -> float:
    """The population stability index of two histograms (B,): the sum of (p − q) ln(p / q) over the bins.

    It is the symmetric Kullback–Leibler divergence (Kullback and Leibler, 1951) of their shares p and q. Half a
    document is added to each bin, so that an empty bin does not make it infinite.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (now, then))
    return float(((p - q) * np.log(p / q)).sum())


def stability_limit(bins: int, n: int, m: int, allowed: float) -> float:
    """The limit that the index of n documents against m exceeds with probability `SIGNIFICANCE` under allowed drift.

    `allowed` is that drift as an index of its own. Without drift, the index divided by (1/n + 1/m) has a chi-square
    distribution with B − 1 degrees of freedom (Yurdakul, Statistical Properties of Population Stability Index, 2018).
    An allowed drift makes it non-central. So chance is no drift where there are few documents, and a small drift
    causes no warning where there are very many. A test of "no change at all" would warn every night.
    """
    from scipy.stats import ncx2  # takes a second, and the workers of a night need none of it

    noise = 1 / n + 1 / m
    return float(ncx2.ppf(1 - SIGNIFICANCE, max(1, bins - 1), allowed / noise) * noise)
