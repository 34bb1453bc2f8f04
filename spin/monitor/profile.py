"""What a set of documents looks like to a classifier: counts and sums that add up over shards."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.activations.extract import Features
from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.fitted import FittedClassifier
from spin.labels.label_space import LabelSpace

Counts = NDArray[np.int64]

SCORES = np.linspace(0, 1, 21)[1:-1]
"""borders of a document's largest probability"""
LENGTHS = 2 ** np.arange(2, 12.5, 0.5)
"""borders of a document's tokens"""
UNKNOWN = np.array([0, 0.01, 0.05, 0.2])
"""borders of the share of a document's tokens that the tokenizer does not know; the first: none at all"""


@dataclass(frozen=True)
class Profile:
    """Some documents as K classes and p selected neurons see them. Profiles of parts add up to that of the whole."""

    labels: Counts
    """(K + 1,) documents for which each class speaks, before thresholds, and those for which none does"""
    scores: Counts
    """(20,) documents by their largest probability, between `SCORES`"""
    lengths: Counts
    """(22,) documents by their tokens, between `LENGTHS`"""
    unknown: Counts
    """(5,) documents by their share of unknown tokens, between `UNKNOWN`"""
    sums: Floats
    """(p,) of each neuron's aligned activation"""
    squares: Floats
    """(p,) of its square"""

    @classmethod
    def of(
        cls,
        label_space: LabelSpace,
        fitted: FittedClassifier,
        logits: Floats,
        activations: Floats,
        features: Features,
    ) -> Profile:
        """Of n documents: their logits (n, K), raw activations (n, p) and tokens."""
        given = label_space.indicator(label_space.predict(logits))
        probabilities = label_space.probabilities(logits)
        aligned = fitted.standardise(activations).astype(np.float64)
        n_tokens, n_unknown = features.n_tokens, features.n_unknown
        return cls(
            np.array([*given.sum(0), (~given.any(1)).sum()], np.int64),
            _histogram(probabilities.max(1, initial=0.0), SCORES),
            _histogram(n_tokens, LENGTHS),
            _histogram(n_unknown / np.maximum(n_tokens, 1), UNKNOWN),
            aligned.sum(0),
            np.square(aligned).sum(0),
        )

    def __add__(self, other: Profile) -> Profile:
        return Profile(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def documents(self) -> int:
        return int(self.scores.sum())

    @property
    def mean(self) -> Floats:
        """(p,) of the aligned activations."""
        return self.sums / max(1, self.documents)

    @property
    def sd(self) -> Floats:
        """(p,) of the aligned activations, never zero."""
        variance = self.squares / max(1, self.documents) - np.square(self.mean)
        return np.sqrt(np.maximum(variance, 1e-12))

    def to_bytes(self) -> bytes:
        """As safetensors."""
        return bytes(save_tensors({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}))

    @classmethod
    def from_bytes(cls, data: bytes, prefix: str = "") -> Profile:
        """What `to_bytes` made, or of several profiles the one whose names begin so. Raises UserError for others."""
        try:
            tensors = load_tensors(data)
            return cls(**{f.name: tensors[prefix + f.name] for f in fields(cls)})
        except (KeyError, ValueError, SafetensorError) as error:
            raise UserError(f"this is not a profile of documents: {error}") from None


def _histogram(values: NDArray[np.number], borders: Floats) -> Counts:
    """(len(borders) + 1,) values up to each border, the last above all."""
    return np.bincount(np.searchsorted(borders, values), minlength=len(borders) + 1)
