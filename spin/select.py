"""Which neurons are kept: the fewest that carry a share eta of each probe's importance."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.probe import Probe
from spin.sites import Column


@dataclass(frozen=True)
class Selection:
    """The neurons that become the features of the head, in the order of the feature matrix's columns."""

    neurons: dict[Column, NDArray[np.int64]]
    """ascending neuron indices of each site.pooling, which are in order"""
    importance: dict[Column, NDArray[np.float64]]
    """the squared weights of those neurons over all classes, as a share of their probe's total"""
    eta: float
    """share of each probe's importance that was kept"""

    @property
    def depth(self) -> int:
        """Blocks of the backbone that have to run."""
        return max((column.site.layer for column in self.neurons), default=0)

    def __len__(self) -> int:
        return sum(len(neurons) for neurons in self.neurons.values())

    def rows(self) -> list[tuple[Column, int, float]]:
        """(site.pooling, neuron, importance) of every feature, in order."""
        return [
            (column, int(neuron), float(share))
            for column, neurons in self.neurons.items()
            for neuron, share in zip(neurons, self.importance[column], strict=True)
        ]

    def part(self, depth: int, names: Collection[str] = ()) -> Selection:
        """What the first `depth` blocks give, of all columns or of those whose kind or pooling is one of `names`."""
        kept = [
            column
            for column in self.neurons
            if column.site.layer <= depth and (not names or column.site.kind in names or column.pooling in names)
        ]
        return Selection({c: self.neurons[c] for c in kept}, {c: self.importance[c] for c in kept}, self.eta)

    def keep(self, wanted: NDArray[np.bool_]) -> Selection:
        """Only the features (p,) that are wanted; a site.pooling left without any goes."""
        parts = np.split(wanted, np.cumsum([len(n) for n in self.neurons.values()])[:-1])
        kept = {column: part for column, part in zip(self.neurons, parts, strict=True) if part.any()}
        return Selection(
            {c: self.neurons[c][part] for c, part in kept.items()},
            {c: self.importance[c][part] for c, part in kept.items()},
            self.eta,
        )

    def within(self, larger: Selection) -> NDArray[np.int64]:
        """Where this selection's features stand among those of a larger one."""
        offsets = np.cumsum([0, *map(len, larger.neurons.values())])
        starts = dict(zip(larger.neurons, offsets, strict=False))
        found = [starts[c] + np.searchsorted(larger.neurons[c], n) for c, n in self.neurons.items()]
        return np.concatenate(found) if found else np.empty(0, np.int64)


def select(probes: Iterable[Probe], eta: float) -> Selection:
    """For each probe the smallest set of neurons whose importance reaches a share `eta` of the total.

    Importance is the squared weight summed over classes (SPIN, Jiao et al. 2024, section 3.2, there for one class).
    A probe that kept no neuron gives none.
    """
    neurons, importance = {}, {}
    for probe in sorted(probes, key=lambda p: p.column):
        if not probe.importance.any():
            continue
        share, before = _shares(probe)
        kept = np.flatnonzero((before < eta * (1 - 1e-12)) & (share > 0))
        neurons[probe.column], importance[probe.column] = kept, share[kept]
    return Selection(neurons, importance, eta)


def largest_eta(probes: Iterable[Probe], count: int) -> float:
    """The largest eta that selects at most `count` neurons, or the smallest that selects any."""
    reached = np.sort(np.concatenate([b[s > 0] for s, b in (_shares(p) for p in probes if p.importance.any())]))
    return 1.0 if len(reached) <= count else float(max(reached[count], np.finfo(np.float32).eps))


def _shares(probe: Probe) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(width,) each neuron's share of the importance, and the share of all that are more important than it."""
    share = probe.importance / probe.importance.sum()
    falling = np.argsort(-share, kind="stable")
    before = np.empty_like(share)
    before[falling] = np.cumsum(share[falling]) - share[falling]
    return share, before


def scaler_of(
    selection: Selection, probes: Mapping[Column, Probe]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and scale (p,) of the selected features, as the probes measured them on the training rows."""
    pairs = [(probes[c].mean[n], probes[c].scale[n]) for c, n in selection.neurons.items()]
    return np.concatenate([mean for mean, _ in pairs]), np.concatenate([scale for _, scale in pairs])


def alignment(selection: Selection, probes: Mapping[Column, Probe], floor: float | None) -> NDArray[np.float32]:
    """How loudly each feature (p,) may speak in the head: a weight of its site times one of the neuron in its probe.

    The site's is the square of its probe's validation score above `floor`, that of knowing nothing, as a share of the
    best site's, or 1 without a floor; the neuron's is the size of its weights as a share of its probe's, the square
    root of its importance. The head's penalty acts on the features so scaled, as in the adaptive lasso (Zou 2006).
    """
    gains = {c: 1.0 if floor is None else max(probes[c].valid_score - floor, 0.0) for c in selection.neurons}
    best = max(gains.values(), default=0.0)
    parts = [
        (0.05 + 0.95 * (gains[c] / best) ** 2 if best else 1.0) * np.sqrt(share)
        for c, share in selection.importance.items()
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)
