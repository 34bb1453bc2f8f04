"""Costs of wrong labels: one price per error, or a price per pair of true and given class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets, differ

CostMatrix = Mapping[str, Mapping[str, float]]
"""cost by true class, then by given class"""


@dataclass(frozen=True)
class ErrorCosts:
    """The costs of errors, in the currency of the user."""

    label_space: LabelSpace
    matrix: Floats
    """(K, K) cost by true class and given class, 0 on the diagonal"""
    flat: float
    """cost of a document with any wrong label, for a multi-label task"""

    @classmethod
    def of(cls, label_space: LabelSpace, flat: float, pairs: CostMatrix | None = None) -> ErrorCosts:
        """Every error costs `flat`, except those of the pairs that are given.

        Raises UserError for pairs in a multi-label task, an unknown class, a negative cost, or a cost of a right label.
        """
        classes = len(label_space)
        matrix = np.full((classes, classes), float(flat))
        np.fill_diagonal(matrix, 0.0)
        if pairs and label_space.multilabel:
            raise UserError("cost matrix: the documents have lists of classes, which have one cost per wrong document")
        position = {name: k for k, name in enumerate(label_space.classes)}
        for true, costs in (pairs or {}).items():
            for given, cost in costs.items():
                unknown = sorted({true, given} - position.keys())
                if unknown:
                    have = ", ".join(label_space.classes)
                    raise UserError(f"cost matrix: the model has no class '{unknown[0]}'; it has {have}")
                if isinstance(cost, bool) or not 0 <= cost < np.inf or (true == given and cost):
                    expected = "0, as for every right label" if true == given else "a number from 0 on"
                    raise UserError(f"cost matrix: {true} → {given} costs {cost:g}; expected {expected}")
                matrix[position[true], position[given]] = cost
        return cls(label_space, matrix, float(flat))

    def realised(self, y: Targets, given: Targets) -> Floats:
        """(n,) the cost of each document by its true and its given targets."""
        if self.label_space.multilabel:
            return self.flat * differ(y, given)
        costs: Floats = self.matrix[y, given]
        return costs

    def expected(self, probabilities: Floats, given: Targets) -> Floats:
        """(n,) the expected cost of each document by calibrated probabilities (n, K) and its given targets.

        In a multi-label task the classes count as independent.
        """
        if self.label_space.multilabel:
            right = np.where(given, probabilities, 1 - probabilities).prod(axis=1)
            return self.flat * (1 - right)
        costs: Floats = np.einsum("nk,kn->n", probabilities, self.matrix[:, given])
        return costs

    @property
    def largest(self) -> float:
        """The largest cost of one document."""
        return self.flat if self.label_space.multilabel else float(self.matrix.max())

    def mean(self, mix: Floats) -> float:
        """The mean cost of an error for classes that occur in the shares `mix` (K,), if all wrong labels are alike."""
        if self.label_space.multilabel or len(mix) < 2:
            return self.flat
        return float(mix @ self.matrix.sum(axis=1) / (len(mix) - 1))
