"""The profile of a set of documents, from which drift is measured: counts and sums that add up over shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from spin.activations.features import Features
from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.decision import Decision
from spin.heads.early_exit import EarlyExit
from spin.heads.fitted import FittedClassifier
from spin.heads.held_out import HeldOutLogits
from spin.labels.label_space import LabelSpace
from spin.sites import BY_WORDS

Counts = NDArray[np.int64]

SCORES = np.linspace(0, 1, 21)[1:-1]
"""bin borders of the largest probability per document"""
LENGTHS = 2 ** np.arange(2, 12.5, 0.5)
"""bin borders of the tokens per document"""
UNKNOWN = np.array([0, 0.01, 0.05, 0.2])
"""bin borders of the share of unknown tokens per document; the first bin holds documents without any"""


@dataclass(frozen=True)
class Profile:
    """Statistics of some documents under a classifier with K classes and p selected neurons.

    The sum of the profiles of the parts of a set is the profile of the set.
    """

    labels: Counts
    """(K + 1,) documents per predicted class, before thresholds, and documents without any"""
    exits: Counts
    """(E + 1,) documents per exit, shallow first, and documents that ran to full depth"""
    scores: Counts
    """(20,) documents per bin of their largest probability, between `SCORES`"""
    lengths: Counts
    """(22,) documents that the backbone read per bin of their number of tokens, between `LENGTHS`"""
    unknown: Counts
    """(5,) documents that the backbone read per bin of their share of unknown tokens, between `UNKNOWN`"""
    read: Counts
    """(p,) documents of which each neuron was read: not of those that their words alone decide"""
    sums: Floats
    """(p,) sum of each neuron's standardised activation"""
    squares: Floats
    """(p,) sum of its square"""

    @classmethod
    def from_outputs(
        cls,
        label_space: LabelSpace,
        fitted: FittedClassifier,
        logits: Floats,
        activations: Floats,
        features: Features,
    ) -> Profile:
        """The profile of n documents, given their logits (n, K), raw activations (n, p) and token counts.

        Documents whose depth says that their words decided them count for labels, scores and exits alone. The backbone
        has not read them, or where a reference is measured at full depth it need not have.
        """
        labels, scores = _count_outcomes(label_space, logits)
        standardised = fitted.standardizer.transform(activations).astype(np.float64)
        depth = np.full(len(logits), fitted.selection.depth) if features.depth is None else features.depth
        read = depth != BY_WORDS
        standardised[~read, fitted.selection.words :] = 0
        n_tokens, n_unknown = features.n_tokens[read], features.n_unknown[read]
        depths = [*(exit.depth for exit in fitted.exits), fitted.selection.depth]
        return cls(
            labels=labels,
            exits=np.array([(depth == exit_depth).sum() for exit_depth in depths], np.int64),
            scores=scores,
            lengths=_histogram(n_tokens, LENGTHS),
            unknown=_histogram(n_unknown / np.maximum(n_tokens, 1), UNKNOWN),
            read=np.where(np.arange(standardised.shape[1]) < fitted.selection.words, len(read), read.sum()),
            sums=standardised.sum(0),
            squares=np.square(standardised).sum(0),
        )

    def under(self, held_out: HeldOutLogits, exits: Sequence[EarlyExit], decision: Decision) -> Profile:
        """The profile of a reference under another decision, by its documents' logits at all `exits`.

        A document within the abstention band goes on to a later exit: its exit, its label and its largest probability
        follow from the decision. What the backbone reads is taken as it is.
        """
        stops = held_out.stops(exits, decision)
        labels, scores = _count_outcomes(decision.label_space, held_out.logits[stops, np.arange(len(held_out))])
        return replace(self, labels=labels, exits=np.bincount(stops, minlength=len(exits) + 1), scores=scores)

    def __add__(self, other: Profile) -> Profile:
        return Profile(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def documents(self) -> int:
        """The number of documents."""
        return int(self.scores.sum())

    @property
    def mean(self) -> Floats:
        """(p,) mean of the standardised activations, over the documents of which they were read."""
        return self.sums / np.maximum(1, self.read)

    @property
    def sd(self) -> Floats:
        """(p,) standard deviation of the standardised activations; 0 for a neuron that is silent on all documents."""
        variance = self.squares / np.maximum(1, self.read) - np.square(self.mean)
        return np.sqrt(np.maximum(variance, 0))  # rounding may give a negative variance

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The profile as arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_bytes(cls, data: bytes, prefix: str = "") -> Profile:
        """The profile of arrays that were written as safetensors, their names with a `prefix` in front.

        Raises UserError for other data.
        """
        try:
            tensors = load_tensors(data)
            return cls(**{f.name: tensors[prefix + f.name] for f in fields(cls)})
        except (KeyError, ValueError, SafetensorError) as error:
            raise UserError(
                f"this is not a profile of documents: {error}; expected a file that spin train or spin classify wrote"
            ) from None


def _count_outcomes(label_space: LabelSpace, logits: Floats) -> tuple[Counts, Counts]:
    """The fields `labels` and `scores` of documents with logits (n, K)."""
    indicator = label_space.indicator(label_space.predict(logits))
    labels = np.array([*indicator.sum(0), (~indicator.any(1)).sum()], np.int64)
    return labels, _histogram(label_space.probabilities(logits).max(1, initial=0.0), SCORES)


def _histogram(values: NDArray[np.number], borders: Floats) -> Counts:
    """The number of values per bin (len(borders) + 1,); a bin includes its upper border."""
    return np.bincount(np.searchsorted(borders, values), minlength=len(borders) + 1)
