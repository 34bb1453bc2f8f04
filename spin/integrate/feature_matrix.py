"""The feature matrix of the heads: selected activations of all layers, standardised side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe, class_weights, signs

Probes = Mapping[FeatureColumn, Probe]
ReadSelection = Callable[[Selection, Rows], Iterable[Floats]]
"""returns the raw activations (n, p) of a selection for n rows in ascending order, in one or more blocks of rows"""


@dataclass(frozen=True)
class FeatureCut:
    """The raw activations of a selection for this process's share of some rows, read once; fits take parts of it."""

    selection: Selection
    rows: Rows
    """(n,) ascending"""
    raw: FeatureRows
    """(n, p)"""

    def positions(self, rows: Rows) -> NDArray[np.int64]:
        """The positions among other rows, in ascending order, of those that are held here."""
        return np.flatnonzero(np.isin(rows, self.rows))

    def take(self, part: Selection, rows: Rows, standardizer: Standardizer) -> FeatureRows:
        """The standardised features of a part of the selection for those of some rows that are held here."""
        own = np.searchsorted(self.rows, rows[self.positions(rows)])
        return self.raw.take(own, part.positions_in(self.selection)).standardize(standardizer)


@dataclass(frozen=True)
class FeatureMatrix:
    """Reads the features of a selection for some rows, standardised as the training rows of its probes were."""

    read: ReadSelection
    data: TrainingData
    group: ProcessGroup
    """the processes that share the rows of a fit"""

    def cut(self, selection: Selection, rows: Rows) -> FeatureCut:
        """Read a selection for this member's share of some rows, which are in ascending order."""
        own = rows[self.group.rank :: self.group.size]
        blocks = self.read(selection, own) if selection.neurons else [np.empty((len(own), 0), np.float32)]
        return FeatureCut(selection, own, FeatureRows.collect(blocks, len(own)))

    def gather(self, cut: FeatureCut, selection: Selection, rows: Rows) -> Floats:
        """(n, p) the raw activations of a selection within a cut for all of some rows, the same for all members."""
        held = cut.positions(rows)
        own = cut.raw.take(np.searchsorted(cut.rows, rows[held]), selection.positions_in(cut.selection))
        values = np.zeros((len(rows), len(selection)), np.float32)
        values[held] = np.concatenate(list(own.blocks()))
        self.group.all_reduce(torch.from_numpy(values))
        return values

    def design(self, cut: FeatureCut, selection: Selection, probes: Probes, rows: Rows) -> Design:
        """The design for fitting a head on some rows: this member's share of them."""
        data, own = self.data, cut.positions(rows)
        has = data.label_space.indicator(data.y[rows])
        return Design(
            features=cut.take(selection, rows, selected_standardizer(selection, probes)),
            has=has[own],
            weights=row_weights(has, data.class_weights, data.label_space)[own],
            exclusive=not data.label_space.multilabel,
            group=self.group,
            device=data.device,
            positions=own,
        )

    def predict(self, features: FeatureRows, heads: Sequence[LinearHead], own: Rows, count: int) -> Floats:
        """(H, n, K) the logits of `count` rows by H heads, the same for all members.

        Each member computes those of its own rows, given by their standardised features and by their positions.
        """
        logits = np.zeros((len(heads), count, len(self.data.label_space)), np.float32)
        start = 0
        for block in features.blocks():
            rows = own[start : start + len(block)]
            for values, head in zip(logits, heads, strict=True):
                values[rows] = head.logits(block)
            start += len(block)
        self.group.all_reduce(torch.from_numpy(logits))
        return logits


def selected_standardizer(selection: Selection, probes: Probes) -> Standardizer:
    """The standardizer (p,) of the selected features, as the probes measured it on their training rows."""
    return Standardizer.concatenate([probes[c].standardizer.keep(n) for c, n in selection.neurons.items()])


def row_weights(has: NDArray[np.bool_], kind: str, label_space: LabelSpace) -> Floats:
    """The weights of rows (n, 1), or (n, K) in a multi-label task; each column sums to 1.

    `none` weighs all rows the same; `balanced` gives every class the same weight, or in a multi-label task half of the
    weight to the documents with the class and half to those without.
    """
    if kind == "none":
        return np.full((len(has), 1), 1 / len(has), np.float32)
    if label_space.multilabel:
        return np.ascontiguousarray(class_weights(signs(has, label_space), kind).T)
    return (has / (has.sum(0).clip(1) * has.any(0).sum())).sum(1, keepdims=True).astype(np.float32)
