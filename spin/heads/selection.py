"""The features of the head: the logits of the words, if it reads them, and the selected neurons."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from spin.sites import FeatureColumn


@dataclass(frozen=True)
class Selection:
    """The features of the head, in order: the words' logits, if it reads them, and the selected neurons."""

    neurons: dict[FeatureColumn, NDArray[np.int64]]
    """ascending neuron indices per feature column; the columns are in order"""
    importance: dict[FeatureColumn, NDArray[np.float64]]
    """the importance of each of these neurons, as a share of that of all neurons"""
    eta: float
    """share of the importance that the selected neurons carry"""
    word_logits: int = 0
    """number of the word regression's logits, which come first: one per class, or 0 for neurons alone"""

    @property
    def depth(self) -> int:
        """Number of the backbone's blocks that have to run."""
        return max((column.site.layer for column in self.neurons), default=0)

    @property
    def neuron_count(self) -> int:
        """Number of selected neurons, counted once per pooling."""
        return sum(len(neurons) for neurons in self.neurons.values())

    def __len__(self) -> int:
        """Number of features."""
        return self.word_logits + self.neuron_count

    @property
    def slices(self) -> dict[FeatureColumn, slice]:
        """The positions of each column's neurons among all selected neurons."""
        ends = np.cumsum([0, *map(len, self.neurons.values())]).tolist()
        return {column: slice(*pair) for column, pair in zip(self.neurons, pairwise(ends), strict=True)}

    def rows(self) -> list[tuple[FeatureColumn, int, float]]:
        """The feature column, index and importance of every neuron, in order."""
        return [
            (column, int(neuron), float(share))
            for column, neurons in self.neurons.items()
            for neuron, share in zip(neurons, self.importance[column], strict=True)
        ]

    def up_to(self, depth: int, names: Collection[str] = ()) -> Selection:
        """The words, and the neurons in the first `depth` blocks; with `names`, of these kinds of sites or poolings."""
        columns = [
            column
            for column in self.neurons
            if column.site.layer <= depth and (not names or column.site.kind in names or column.pooling in names)
        ]
        neurons = {c: self.neurons[c] for c in columns}
        return replace(self, neurons=neurons, importance={c: self.importance[c] for c in columns})

    @classmethod
    def merge(cls, selections: Iterable[Selection]) -> Selection:
        """Every neuron that is in any of the selections, without importance: the features that they can be cut from."""
        merged: dict[FeatureColumn, NDArray[np.int64]] = {}
        for selection in selections:
            for column, neurons in selection.neurons.items():
                merged[column] = np.union1d(merged[column], neurons) if column in merged else neurons
        ordered = {column: merged[column] for column in sorted(merged)}
        return cls(ordered, {column: np.zeros(len(indices)) for column, indices in ordered.items()}, 1.0)

    def join(self, other: Selection) -> Selection:
        """The neurons of both; those of the other one have no importance of their own."""
        merged = Selection.merge([self, other])
        for column, neurons in self.neurons.items():
            merged.importance[column][np.searchsorted(merged.neurons[column], neurons)] = self.importance[column]
        return replace(self, neurons=merged.neurons, importance=merged.importance)

    def join_words(self, classes: int) -> Selection:
        """The selection with the words' logits, one per class, before the neurons."""
        return replace(self, word_logits=classes)

    def positions_in(self, larger: Selection) -> NDArray[np.int64]:
        """(p,) the positions of this selection's neurons among those of a larger one that contains them."""
        slices = larger.slices
        positions = [slices[c].start + np.searchsorted(larger.neurons[c], n) for c, n in self.neurons.items()]
        return np.concatenate(positions) if positions else np.empty(0, np.int64)
