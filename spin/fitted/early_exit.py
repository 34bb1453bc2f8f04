"""Early exits: calibrated heads on the words alone and at a few depths, at which a confident document stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.fitted.decision import Decision
from spin.heads.linear_head import LinearHead
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


def confidence(decision: Decision, probabilities: Floats) -> Floats:
    """The confidence (n,), from 0 to 1, that no other label would be given: the margin of the decision.

    It is the lead of the best class over the next one, see `Decision.margins`; in a multi-label task the distance of
    the least certain class from its threshold, as a share of the largest on its side.
    """
    if decision.label_space.multilabel:
        above, below = (probabilities - decision.thresholds), (decision.thresholds - probabilities)
        return np.where(above >= 0, above / (1 - decision.thresholds), below / decision.thresholds).min(1)
    return decision.margins(probabilities)


def should_exit(decision: Decision, threshold: float, logits: Floats) -> NDArray[np.bool_]:
    """Mask (n,) of the documents that stop at an exit with logits (n, K): confident, and without abstention."""
    probabilities = decision.label_space.probabilities(logits)
    _, abstains = decision.decide(probabilities)
    return (confidence(decision, probabilities) >= threshold) & ~abstains


def find_stops(
    logits: Iterable[Floats], thresholds: Sequence[float], decision: Decision, count: int
) -> NDArray[np.int64]:
    """(n,) the index of the exit at which each of `count` documents stops; the number of exits for full depth.

    `logits` are the calibrated ones (n, K) of each exit, shallow first.
    """
    pairs = zip(thresholds, logits, strict=False)
    exiting = [should_exit(decision, *pair) for pair in pairs]
    return np.stack([*exiting, np.ones(count, bool)]).argmax(0)
