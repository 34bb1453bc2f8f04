"""Two classifiers over the same texts: where they read the same backbone, one pass serves both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.activations.engine import open_engine
from spin.activations.extract import Features, read_activations, single_segment
from spin.classifier import SpinClassifier
from spin.sites import FeatureColumn

Neurons = Mapping[FeatureColumn, NDArray[np.int64]]


class SharedPass:
    """Two classifiers, each with its backbone loaded: one backbone, cut at the deeper depth, where `one_pass`."""

    one_pass: bool
    """whether torch reads the same weights under the same settings for both, and no document leaves either early"""

    def __init__(self, first: SpinClassifier, second: SpinClassifier) -> None:
        self.first, self.second = first, second
        same = (first.backbone_digest, first.settings) == (second.backbone_digest, second.settings)
        if same:
            shallow, deep = sorted((first, second), key=lambda spin: spin.depth)
            shallow.backbone = deep.backbone
        # OpenVINO rounds a value by what else is read of its graph
        alike = same and first.backbone.engine == "torch"
        self.one_pass = alike and not (first.exits_early or second.exits_early)
        if self.one_pass:
            mine, theirs = (spin.fitted.selection.neurons for spin in (first, second))
            self.both = {column: _union(mine, theirs, column) for column in sorted({*mine, *theirs})}
            self.engine = open_engine(first.backbone, [single_segment(self.both, self.both)])
        else:
            _ = first.engine, second.engine

    def features(self, texts: Sequence[str]) -> tuple[Features, Features]:
        """What `SpinClassifier.features` gives of each, value by value.

        In one pass the deeper one's blocks run once, and the union of their neurons leaves the hooks. Batches depend
        on the texts alone, and no block sees what runs above it.
        """
        if not self.one_pass:
            return self.first.features(texts), self.second.features(texts)
        found = read_activations(self.engine, texts)
        mine, theirs = (spin.fitted.selection.neurons for spin in (self.first, self.second))
        return _part(found, self.both, mine), _part(found, self.both, theirs)


def _union(mine: Neurons, theirs: Neurons, column: FeatureColumn) -> NDArray[np.int64]:
    """The neurons of a site.pooling that either reads, ascending."""
    return np.unique(np.concatenate([of[column] for of in (mine, theirs) if column in of]))


def _part(found: Features, both: Neurons, wanted: Neurons) -> Features:
    """The columns of one selection, in its order.

    `take` lays them out row by row as `extract` does; indexing would not, and a matrix product's last bits follow
    the layout.
    """
    columns = {c: found.columns[c].take(np.searchsorted(both[c], n), axis=1) for c, n in wanted.items()}
    return Features(columns, found.n_tokens, found.n_unknown, found.truncated)
