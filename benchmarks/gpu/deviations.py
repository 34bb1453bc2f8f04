"""How far features and labels are from those of the reference, by precision and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.spin_pass import SpinPass, TopicHeads
from spin.arrays import Floats
from spin.sites import FeatureColumn, Site

LIMITS = {"float32": 1e-3, "bfloat16": 2e-2}
"""largest deviation of a site by precision: float32 arithmetic lands far below the first"""
SAME_LABELS = {"float32": 1.0, "bfloat16": 0.95}
"""smallest share of equal labels by precision"""
BFLOAT16_FACTOR = 2
"""bfloat16 may also deviate by so many times what the model itself loses in it: roundings of the residual stream add up
from block to block, and a gated FFN multiplies two rounded values"""
Columns = Mapping[FeatureColumn, NDArray[np.floating]]
"""(n, m) for each column"""


@dataclass(frozen=True)
class Expected:
    """What a pass over n documents is compared with."""

    texts: Sequence[str]
    exact: Columns
    """the reference in float64"""
    rounded: Columns
    """the reference on a model in bfloat16"""


@dataclass(frozen=True)
class Deviation:
    """The deviation of one pass from the reference."""

    shape: str
    device: str
    """cpu or cuda"""
    precision: str
    """float32 or bfloat16"""
    by_site: Mapping[str, float]
    """by site the norm of the difference of all its pooled values as a share of the norm of these"""
    allowed: Mapping[str, float]
    """by site the largest deviation that passes"""
    same_labels: float
    """share of the documents whose label is that of the reference"""

    @property
    def worst(self) -> str:
        """The site that deviates most by what is allowed there."""
        return max(self.by_site, key=lambda site: self.by_site[site] / self.allowed[site])

    @property
    def holds(self) -> bool:
        """Whether it is within the limits of its precision; what is not a number never is."""
        within = all(deviation < self.allowed[site] for site, deviation in self.by_site.items())
        return within and self.same_labels >= SAME_LABELS[self.precision]

    def describe(self) -> str:
        """The worst site and the labels, in words."""
        return (
            f"{self.shape} on {self.device} in {self.precision}: {self.worst} deviates by "
            f"{self.by_site[self.worst]:.2g} of {self.allowed[self.worst]:.2g}, same labels {self.same_labels:.1%}"
        )


def measure_deviation(shape: str, spin: SpinPass, expected: Expected, heads: TopicHeads) -> Deviation:
    """The deviation of a pass from what is expected of its neurons; labels are those of `heads`."""
    values, precision = spin.features(expected.texts), spin.backbone.precision
    ends = np.cumsum([len(indices) for indices in spin.neurons.values()])[:-1]
    actual = dict(zip(spin.neurons, np.split(values, ends, axis=1), strict=True))
    exact: Floats = np.concatenate([expected.exact[column] for column in spin.neurons], axis=1).astype(np.float32)
    same = heads.full.logits(values).argmax(1) == heads.full.logits(exact).argmax(1)
    by_site = _deviations(actual, expected.exact)
    allowed = dict.fromkeys(by_site, LIMITS[precision])
    if precision == "bfloat16":
        lost = _deviations(expected.rounded, expected.exact)
        allowed = {site: max(limit, BFLOAT16_FACTOR * lost[site]) for site, limit in allowed.items()}
    return Deviation(shape, spin.backbone.device.type, precision, by_site, allowed, float(same.mean()))


def _deviations(actual: Columns, exact: Columns) -> dict[str, float]:
    """The norm of the difference by the norm of what is exact, by site; infinite if a value is not a number."""
    return {str(site): _deviation(site, actual, exact) for site in sorted({column.site for column in exact})}


def _deviation(site: Site, actual: Columns, exact: Columns) -> float:
    columns = [column for column in exact if column.site == site]
    wanted, found = (np.concatenate([each[column] for column in columns], axis=1) for each in (exact, actual))
    deviation = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    return deviation if np.isfinite(deviation) else float("inf")
