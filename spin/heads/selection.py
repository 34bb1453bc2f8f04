"""The selected neurons, in the order of the features of the head."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.sites import FeatureColumn


@dataclass(frozen=True)
class Selection:
    """The neurons that become the features of the head, in the order of the feature matrix's columns."""

    neurons: dict[FeatureColumn, NDArray[np.int64]]
    """ascending neuron indices of each site.pooling, which are in order"""
    importance: dict[FeatureColumn, NDArray[np.float64]]
    """the squared weights of those neurons over all classes, as a share of their probe's total"""
    eta: float
    """share of each probe's importance that was kept"""

    @property
    def depth(self) -> int:
        """Blocks of the backbone that have to run."""
        return max((column.site.layer for column in self.neurons), default=0)

    def __len__(self) -> int:
        return sum(len(neurons) for neurons in self.neurons.values())

    def rows(self) -> list[tuple[FeatureColumn, int, float]]:
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
