"""Early exits: calibrated heads at a few depths, at which a confident document stops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.heads.decision import Decision
from spin.heads.linear_head import LinearHead
from spin.labels.label_space import LabelSpace

DISABLED = 2.0
"""a threshold that no sureness reaches"""


@dataclass(frozen=True)
class EarlyExit:
    """A head on what the first blocks give, and how sure it must be."""

    depth: int
    """blocks that have run"""
    head: LinearHead
    """on the standardised features of these blocks, which are the first of the full selection; calibrated"""
    threshold: float
    """sureness from which a document leaves here; above 1 none does"""


def sureness(label_space: LabelSpace, probabilities: Floats) -> Floats:
    """(n,) the probability of the likeliest class, in a multi-label task that of the least sure answer."""
    if label_space.multilabel:
        return np.maximum(probabilities, 1 - probabilities).min(1)
    return probabilities.max(1)


def should_exit(label_space: LabelSpace, decision: Decision, threshold: float, logits: Floats) -> NDArray[np.bool_]:
    """Which documents (n,) leave at an exit with logits (n, K): the sure ones that would be given a label."""
    probabilities = label_space.probabilities(logits)
    _, near = decision.labels(probabilities)
    return (sureness(label_space, probabilities) >= threshold) & ~near
