"""What a classifier says of the documents of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spin.activations.extract import Features
from spin.arrays import Floats
from spin.classifier import SpinClassifier
from spin.labels.label_space import Label


@dataclass(frozen=True)
class Predictions:
    """Of n documents, K classes and p selected neurons."""

    features: Features
    values: Floats
    """(n, p) raw activations, NaN above where a document left"""
    logits: Floats
    """(n, K)"""
    scores: Floats
    """(n, K) probabilities"""
    labels: list[Label | None]
    """None where it abstains"""
    score: list[float]
    """the probability of each label; the largest where that is a list or none"""

    @classmethod
    def of(cls, spin: SpinClassifier, pieces: Sequence[Features]) -> Predictions:
        """From the features of the documents, in pieces of any size; of no pieces there are no documents."""
        features = _together(pieces or [spin.features([])])
        values = features.values
        logits = spin.fitted.answer(values, features.depth)
        scores = spin.label_space.probabilities(logits)
        labels = spin.labels(scores)
        at = {name: k for k, name in enumerate(spin.classes)}
        score = [
            row[at[label]] if isinstance(label, str) else row.max() for row, label in zip(scores, labels, strict=True)
        ]
        return cls(features, values, logits, scores, labels, score)


def _together(parts: Sequence[Features]) -> Features:
    return Features(
        {column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns},
        np.concatenate([part.n_tokens for part in parts]),
        np.concatenate([part.n_unknown for part in parts]),
        sum(part.truncated for part in parts),
        None if parts[0].depth is None else np.concatenate([part.depth for part in parts if part.depth is not None]),
    )
