"""Early exits: calibrated heads on the words alone and at a few depths, at which a confident document stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.decision import Decision
from spin.heads.linear_head import LinearHead
from spin.labels.label_space import LabelSpace
from spin.sites import BY_WORDS

DISABLED = 2.0
"""a threshold that no confidence reaches"""


@dataclass(frozen=True)
class EarlyExit:
    """A head on the activations of the first blocks, and how confident it must be for a document to stop."""

    depth: int
    """number of blocks that have run; `BY_WORDS` for the exit before the backbone"""
    head: LinearHead
    """calibrated, on the standardised features of these blocks, which are the first of the full selection; by words on
    the logits (n, K) of the word regression"""
    threshold: float
    """confidence from which a document stops here; above 1 none does"""

    @property
    def by_words(self) -> bool:
        """Whether this is the exit of documents that their words alone decide."""
        return self.depth == BY_WORDS


def confidence(label_space: LabelSpace, probabilities: Floats) -> Floats:
    """The confidence (n,): the largest probability; in a multi-label task the certainty of the least certain class."""
    if label_space.multilabel:
        return np.maximum(probabilities, 1 - probabilities).min(1)
    return probabilities.max(1)


def should_exit(decision: Decision, threshold: float, logits: Floats) -> NDArray[np.bool_]:
    """Mask (n,) of the documents that stop at an exit with logits (n, K): confident, and without abstention."""
    probabilities = decision.label_space.probabilities(logits)
    _, abstains = decision.decide(probabilities)
    return (confidence(decision.label_space, probabilities) >= threshold) & ~abstains


def find_stops(
    logits: Iterable[Floats], thresholds: Sequence[float], decision: Decision, count: int
) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each of `count` documents stops; the number of exits for full depth.

    `logits` are the calibrated ones (n, K) of each exit, shallow first.
    """
    pairs = zip(thresholds, logits, strict=False)
    exiting = [should_exit(decision, *pair) for pair in pairs]
    return np.stack([*exiting, np.ones(count, bool)]).argmax(0)
