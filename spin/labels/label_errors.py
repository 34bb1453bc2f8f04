"""Label errors: documents whose given label the predictions of a model that has not seen them contradict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.labels.label_space import LabelSpace, Targets


@dataclass(frozen=True)
class LabelCheck:
    """The labels of n documents against predictions of a model without them."""

    suspect: NDArray[np.bool_]
    """(n,) whether the predictions contradict the label"""
    predicted: Targets
    """the model's predictions: class indices (n,), or booleans (n, K) in a multi-label task"""
    margin: Floats
    """(n,) probability of the predicted class minus that of the given one, 0 where they are equal. In a multi-label
    task it is the largest of any class's two sides"""

    @classmethod
    def of(cls, probabilities: Floats, y: Targets, label_space: LabelSpace) -> LabelCheck:
        """Check labels by probabilities (n, K). In a multi-label task every class is a question of its own."""
        has = label_space.indicator(y)
        if not label_space.multilabel:
            margin = probabilities.max(1) - probabilities[has]
            return cls(find_suspects(probabilities, has.argmax(1)), probabilities.argmax(1), margin)
        sides = [np.stack([1 - p, p], axis=1) for p in probabilities.T]
        suspects = [find_suspects(p, of.astype(np.int64)) for p, of in zip(sides, has.T, strict=True)]
        predicted = probabilities >= 0.5
        margin = np.where(predicted != has, np.abs(2 * probabilities - 1), 0).max(1)
        return cls(np.logical_or.reduce(suspects), predicted, margin)


def find_suspects(probabilities: Floats, y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask (n,) of the labels that a model without these rows contradicts by probabilities (n, K).

    The rule is that of confident learning (Northcutt et al. 2021), made stricter. A class is confident where its
    probability is at least its mean over the rows with that label. A label is suspect if the most probable of a row's
    confident classes is another one, and the most probable of all classes too. Where the model knows little, its
    confident classes alone would contradict labels that it predicts.
    """
    given = y[:, None] == np.arange(probabilities.shape[1])
    counts = given.sum(0)
    thresholds = np.where(counts > 0, (probabilities * given).sum(0) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return (confident.max(1) >= 0) & (confident.argmax(1) != y) & (probabilities.argmax(1) != y)
