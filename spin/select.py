"""Which neurons are kept: the fewest that carry a share eta of each probe's importance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        return sum(map(len, self.neurons.values()))

    def rows(self) -> list[tuple[Column, int, float]]:
        """(site.pooling, neuron, importance) of every feature, in order."""
        return [
            (column, int(neuron), float(share))
            for column, neurons in self.neurons.items()
            for neuron, share in zip(neurons, self.importance[column], strict=True)
        ]

    def upto(self, depth: int) -> Selection:
        """The part of the selection that the first `depth` blocks give."""
        kept = [column for column in self.neurons if column.site.layer <= depth]
        return Selection({c: self.neurons[c] for c in kept}, {c: self.importance[c] for c in kept}, self.eta)

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
        total = probe.importance.sum()
        if total == 0:
            continue
        share = probe.importance / total
        falling = np.argsort(-share, kind="stable")
        count = int(np.searchsorted(np.cumsum(share[falling]), eta * (1 - 1e-12)) + 1)
        kept = np.sort(falling[: min(count, int((share > 0).sum()))])
        neurons[probe.column], importance[probe.column] = kept, share[kept]
    return Selection(neurons, importance, eta)


def scaler_of(
    selection: Selection, probes: Mapping[Column, Probe]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean and scale (p,) of the selected features, as the probes measured them on the training rows."""
    pairs = [(probes[c].mean[n], probes[c].scale[n]) for c, n in selection.neurons.items()]
    return np.concatenate([mean for mean, _ in pairs]), np.concatenate([scale for _, scale in pairs])
