"""The feature matrix of the heads: selected activations, standardised and aligned across layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.heads.selection import Selection
from spin.integrate.fit_linear import Design
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import FeatureColumn
from spin.sparsify.probe import Probe, class_weights, signs

Probes = Mapping[FeatureColumn, Probe]
ReadSelection = Callable[[Selection, Rows], Floats]
"""returns the raw activations (m, p) of a selection for m rows"""


@dataclass(frozen=True)
class FeatureMatrix:
    """Reads the features of a selection for some rows, standardised as the training rows of its probes were."""

    read: ReadSelection
    data: TrainingData
    group: ProcessGroup
    """the processes that share the rows of a fit"""

    def standardized(self, selection: Selection, probes: Probes, rows: Rows) -> Floats:
        """The standardised features (m, p) of m rows."""
        return selected_standardizer(selection, probes).transform(self.read(selection, rows))

    def design(self, selection: Selection, probes: Probes, rows: Rows) -> Design:
        """The design for fitting a head: this member's share of some rows, with the features aligned.

        Where labels are few, the probes' scores say too little to weigh the sites.
        """
        data, own = self.data, slice(self.group.rank, None, self.group.size)
        has = data.label_space.indicator(data.y[rows])
        floor = None if data.has_few_labels else data.constant_score
        return Design(
            X=self.standardized(selection, probes, rows[own]),
            has=has[own],
            weights=row_weights(has, data.class_weights, data.label_space)[own],
            scales=align(selection, probes, floor),
            exclusive=not data.label_space.multilabel,
            group=self.group,
            device=data.device,
        )


def selected_standardizer(selection: Selection, probes: Probes) -> Standardizer:
    """The standardizer (p,) of the selected features, as the probes measured it on their training rows."""
    return Standardizer.concatenate([probes[c].standardizer.keep(n) for c, n in selection.neurons.items()])


def align(selection: Selection, probes: Probes, floor: float | None) -> NDArray[np.float32]:
    """The scale (p,) of each feature in the head: a weight of its site times a weight of the neuron within its probe.

    The site's weight grows with the square of its probe's validation score above `floor`, the score of a constant
    prediction, relative to the best site; without a floor it is 1. The neuron's weight is the square root of its
    importance. The head's penalty acts on the features scaled like this, as in the adaptive lasso (Zou 2006). Neurons
    that a ridge regression selected were judged on one scale, and keep it.
    """
    if selection.rule == "ridge":
        return np.ones(len(selection), np.float32)
    gains = {c: 1.0 if floor is None else max(probes[c].valid_score - floor, 0.0) for c in selection.neurons}
    best = max(gains.values(), default=0.0)
    parts = [
        (0.05 + 0.95 * (gains[c] / best) ** 2 if best else 1.0) * np.sqrt(share)
        for c, share in selection.importance.items()
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, np.float32)


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
