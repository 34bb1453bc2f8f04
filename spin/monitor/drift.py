"""Drift: how far documents have moved from those on which a classifier was tested, and whether by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from spin.heads.selection import Selection
from spin.monitor.profile import Profile

SIGNIFICANCE = 0.01
"""probability of a warning where a property has moved by exactly what is allowed"""
DISTRIBUTIONS = ("labels", "exits", "scores", "lengths", "unknown")
_DIGITS = 4
"""digits of an index and its limit, which a report shows"""
_LISTED_NEURONS = 10
_SD_FLOOR = 0.5
"""least standard deviation by which a neuron's shift is divided, as a share of that over the training rows"""


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

    def to_json(self) -> dict[str, Any]:
        """The record as `Drift.to_json` holds it."""
        return {**asdict(self), "documents": list(self.documents), "words": list(self.words)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> NeuronShift:
        """The shift of a record that `to_json` returned."""
        causes = {name: tuple(record[name]) for name in ("documents", "words")}
        return cls(**{**record, **causes})


@dataclass(frozen=True)
class Drift:
    """The drift of one property of the documents."""

    name: str
    """`labels`, `exits`, `scores`, `lengths`, `unknown` or `neurons`"""
    psi: float
    """population stability index; of `neurons` that of the neuron with the largest shift for its limit"""
    limit: float
    """limit that `psi` exceeds by chance in one night of a hundred if the property has moved just as far as allowed"""
    now: tuple[int, ...]
    """documents per bin; of `neurons` the numbers of neurons that have moved and that have not"""
    then: tuple[int, ...]
    """documents of the reference per bin; of `neurons` empty"""
    moved: tuple[NeuronShift, ...]
    """the neurons that have moved most, for `neurons`; else empty"""
    drifted: bool
    """whether the property has moved by more than chance and more than is allowed"""

    def to_json(self) -> dict[str, Any]:
        """The record as the manifest and `report.json` hold it."""
        lists = {"now": list(self.now), "then": list(self.then), "moved": [shift.to_json() for shift in self.moved]}
        rounded = {"psi": round(self.psi, _DIGITS), "limit": round(self.limit, _DIGITS)}
        return {"name": self.name, **rounded, **lists, "drifted": self.drifted}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Drift:
        """The drift of a record that `to_json` returned."""
        return cls(
            name=record["name"],
            psi=record["psi"],
            limit=record["limit"],
            now=tuple(record["now"]),
            then=tuple(record["then"]),
            moved=tuple(NeuronShift.from_json(shift) for shift in record["moved"]),
            drifted=record["drifted"],
        )


def measure(now: Profile, then: Profile, selection: Selection, allowed: float) -> list[Drift]:
    """The drift of every property of some documents from a reference; `allowed` is the PSI that is no drift.

    Empty where there are no documents to compare. Exits are compared where documents may take one, and what the
    tokenizer counts only over documents that the backbone read.
    """
    if not now.documents or not then.documents:
        return []
    drifts = []
    for name in DISTRIBUTIONS:
        counts, reference = getattr(now, name), getattr(then, name)
        # a multi-label document counts for several labels, which are no independent draws
        n, m = (p.documents if name == "labels" else int(getattr(p, name).sum()) for p in (now, then))
        if not n or not m:
            continue
        bins = (counts > 0) | (reference > 0)
        if name == "exits" and bins.sum() < 2:
            continue
        psi, limit = stability(counts[bins], reference[bins]), stability_limit(int(bins.sum()), n, m, allowed)
        drifts.append(
            Drift(
                name=name,
                psi=psi,
                limit=limit,
                now=tuple(counts.tolist()),
                then=tuple(reference.tolist()),
                moved=(),
                drifted=psi > limit,
            )
        )
    return [*drifts, _neuron_drift(now, then, selection, allowed)]


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


def feature_names(selection: Selection) -> list[tuple[str, int]]:
    """The column and the neuron of every feature, in order; a word's logit is of the column `words`."""
    words = [("words", k) for k in range(selection.words)]
    return words + [(str(column), neuron) for column, neuron, _ in selection.rows()]


def _neuron_drift(now: Profile, then: Profile, selection: Selection, allowed: float) -> Drift:
    """The drift of the means of the neurons, and of the words' logits.

    The index of two normals d standard deviations apart is d².

    A shift is divided by the neuron's standard deviation in the reference, or by one half where that is less. One half
    is half of the deviation over the training rows, as activations are standardised. A neuron that fires on few
    documents may be silent in all of the reference, which are fewer than the training rows. Its deviation there says
    that the sample was too small, not that it is 0, and any activation at all would be an infinite shift. Of a neuron
    that fires often, half lies far below what the deviation can be by chance, so its shifts stay in units of the
    reference. And a shift below the floor's allowance is small for the head, which reads standardised activations.

    What chance adds to a mean is judged by the spread of either sample, as in Welch's test (Biometrika 34, 1947). The
    night's own counts where it is larger: the few documents of a night on which such a neuron fires move its mean and
    widen its spread alike.
    """
    names = feature_names(selection)
    # a neuron above the first exit after a block has no value for documents that exit early
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.maximum(then.sd, _SD_FLOOR)
        shifts = (now.mean - then.mean) / unit
        noise = np.sqrt(np.square(np.maximum(now.sd / unit, 1)) / now.read + 1 / then.read)
    # Bonferroni correction: no more than SIGNIFICANCE that any of p neurons exceeds its limit by chance.
    limits = math.sqrt(allowed) + float(-ndtri(SIGNIFICANCE / (2 * max(1, len(shifts))))) * noise
    compared = np.isfinite(shifts) & np.isfinite(limits)
    shifts, limits = np.where(compared, shifts, 0.0), np.where(compared, limits, 1.0)
    excess = np.abs(shifts) / limits
    listed: Sequence[int] = np.argsort(-excess, kind="stable")[:_LISTED_NEURONS].tolist()
    moved = int((excess > 1).sum())
    psi, limit = (float(np.square(values[listed[0]])) if listed else 0.0 for values in (shifts, limits))
    return Drift(
        name="neurons",
        psi=psi,
        limit=limit,
        now=(moved, int(compared.sum()) - moved),
        then=(),
        moved=tuple(NeuronShift(*names[i], shift=round(float(shifts[i]), 3)) for i in listed),
        drifted=moved > 0,
    )
