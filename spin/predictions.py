"""Predictions of a classifier: the one place that turns logits into probabilities, labels and scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.reasons import Reasons
from spin.fitted.decision import Decision
from spin.labels.label_space import Label


@dataclass(frozen=True)
class Predictions:
    """The predictions for n documents over K classes."""

    logits: Floats
    """(n, K) calibrated logits, classes in the order of the classifier's `classes`"""
    probabilities: Floats
    """(n, K) calibrated: each row sums to 1, or in a multi-label task each class is independent"""
    labels: list[Label | None]
    """the label of each document by the thresholds of the decision, None where it abstains"""
    score: Floats
    """(n,) the probability of each document's label; the largest of all where the label is a list or None"""
    exit_depth: NDArray[np.int32]
    """(n,) blocks of the backbone that ran for each document; -1: its words alone decided, before the backbone"""
    reasons: Reasons | None = None
    """the words and neurons that spoke loudest, for a classifier that gives reasons"""

    @classmethod
    def from_logits(
        cls, logits: Floats, exit_depth: NDArray[np.int32], decision: Decision, reasons: Reasons | None = None
    ) -> Predictions:
        """The predictions that follow from logits (n, K) under a decision."""
        label_space = decision.label_space
        probabilities = label_space.probabilities(logits)
        y, abstains = decision.decide(probabilities)
        labels = decision.name_labels(y, abstains)
        score = probabilities.max(axis=1, initial=0.0)
        if not label_space.multilabel:
            score = np.where(abstains, score, probabilities[np.arange(len(y)), y])
        return cls(logits, probabilities, labels, score, exit_depth, reasons)

    def __len__(self) -> int:
        return len(self.labels)
