"""How far documents have moved from those that a classifier was judged on, and whether it is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ncx2, norm

from spin.heads.selection import Selection
from spin.monitor.profile import Profile

LEVEL = 0.01
"""chance of a warning where documents have moved by just what is allowed"""
DISTRIBUTIONS = ("labels", "scores", "lengths", "unknown")
_LOUDEST = 10


@dataclass(frozen=True)
class Drift:
    """How far one property has moved."""

    name: str
    """`labels`, `scores`, `lengths`, `unknown` or `neurons`"""
    psi: float
    """population stability index; of `neurons` the largest of any neuron"""
    limit: float
    """what `psi` exceeds by chance in one night of a hundred, had the property moved by just what is allowed"""
    now: list[int]
    """documents in each bin; of `neurons` how many have moved, and how many have not"""
    then: list[int]
    """of the reference; of `neurons` empty"""
    moved: list[dict[str, Any]]
    """the neurons that moved most, as column, neuron and shift in standard deviations"""

    @property
    def drifted(self) -> bool:
        return self.psi > self.limit

    def describe(self) -> dict[str, Any]:
        """As a report holds it."""
        return {**asdict(self), "psi": round(self.psi, 4), "limit": round(self.limit, 4), "drifted": self.drifted}


def measure(now: Profile, then: Profile, selection: Selection, allowed: float) -> list[Drift]:
    """Every property of some documents against the reference; `allowed` is the PSI that is no drift.

    Empty where there are no documents to compare.
    """
    n, m = now.documents, then.documents
    if not n or not m:
        return []
    found = []
    for name in DISTRIBUTIONS:
        counts, reference = getattr(now, name), getattr(then, name)
        bins = (counts > 0) | (reference > 0)
        found.append(
            Drift(
                name,
                stability(counts[bins], reference[bins]),
                stability_limit(int(bins.sum()), n, m, allowed),
                counts.tolist(),
                reference.tolist(),
                [],
            )
        )
    return [*found, _neurons(now, then, selection, allowed)]


def stability(now: NDArray[np.int64], then: NDArray[np.int64]) -> float:
    """The population stability index of two histograms (B,): the sum of (p − q) ln(p / q) over the bins.

    It is the symmetric Kullback–Leibler divergence (Kullback and Leibler, 1951) of their shares; half a document is
    added to each bin, so that an empty one is not infinitely far.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (now, then))
    return float(((p - q) * np.log(p / q)).sum())


def stability_limit(bins: int, n: int, m: int, allowed: float) -> float:
    """What the index of n documents against m exceeds with chance `LEVEL` where the true one is `allowed`.

    Without drift the index over (1/n + 1/m) is chi-square with B − 1 degrees of freedom (Yurdakul, Statistical
    Properties of Population Stability Index, 2018); an allowed drift makes it non-central. So chance is no drift with
    few documents, and with very many what is small stays small, where a test of no change at all would warn
    every night.
    """
    noise = 1 / n + 1 / m
    return float(ncx2.ppf(1 - LEVEL, max(1, bins - 1), allowed / noise) * noise)


def _neurons(now: Profile, then: Profile, selection: Selection, allowed: float) -> Drift:
    """Each neuron's mean. The index of two normals a shift of d standard deviations apart is d²."""
    shifts = (now.mean - then.mean) / then.sd
    noise = math.sqrt(1 / now.documents + 1 / then.documents)
    # of p neurons none may exceed it by chance: Bonferroni
    limit = math.sqrt(allowed) + float(norm.isf(LEVEL / (2 * max(1, len(shifts))))) * noise
    names = [(str(column), int(neuron)) for column, neurons in selection.neurons.items() for neuron in neurons]
    seen = np.isfinite(shifts)  # not those that only documents reach which do not leave early
    shifts = np.where(seen, shifts, 0.0)
    moved = int((np.abs(shifts) > limit).sum())
    loudest: Sequence[int] = np.argsort(-np.abs(shifts), kind="stable")[:_LOUDEST].tolist()
    return Drift(
        "neurons",
        float(np.square(shifts).max(initial=0.0)),
        limit**2,
        [moved, int(seen.sum()) - moved],
        [],
        [{"column": names[i][0], "neuron": names[i][1], "shift": round(float(shifts[i]), 3)} for i in loudest],
    )
