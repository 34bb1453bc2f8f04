"""From probabilities to labels: thresholds per class and abstention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import DecisionSettings


@dataclass(frozen=True)
class Decision:
    """From probabilities to labels: a threshold a class, and a band around the border in which no label is given."""

    label_space: LabelSpace
    thresholds: Floats
    """(K,)"""
    abstain: float

    @classmethod
    def of(cls, label_space: LabelSpace, settings: DecisionSettings) -> Decision:
        """Raises UserError for a threshold of a class that is not there, or thresholds that leave the others none."""
        given: Mapping[str, float] = settings.thresholds
        unknown = sorted(set(given) - set(label_space.classes))
        if unknown:
            raise UserError(
                f"decision.thresholds: the model has no class '{unknown[0]}'; it has {', '.join(label_space.classes)}"
            )
        others = len(label_space) - len(given)
        rest = 0.5 if label_space.multilabel else (1 - sum(given.values())) / max(others, 1)
        if others and rest <= 0:
            raise UserError(
                f"decision.thresholds: they sum to {sum(given.values()):g}; leave something below 1 for the others"
            )
        return cls(label_space, np.array([given.get(name, rest) for name in label_space.classes]), settings.abstain)

    def labels(self, probabilities: Floats) -> tuple[Targets, NDArray[np.bool_]]:
        """Targets of probabilities (n, K), and which documents (n,) lie so close to a border that none is given.

        Multi-label: a class is given from its threshold on; within `abstain` of it, any class's, there is no label.
        Multi-class: probabilities are divided by the thresholds and the largest wins; where its share of their sum
        leads the next by less than `abstain`, there is no label. Two classes with thresholds 1 - t and t: the second
        is given above t.
        """
        if self.label_space.multilabel:
            near = np.abs(probabilities - self.thresholds) < self.abstain
            return probabilities >= self.thresholds, np.any(near, axis=1)
        odds = probabilities / self.thresholds
        odds = odds / odds.sum(1, keepdims=True)
        first = np.partition(odds, -2, axis=1)[:, -2:]
        return odds.argmax(1), (first[:, 1] - first[:, 0]) < self.abstain
