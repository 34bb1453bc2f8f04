"""A point of the search and its validation score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.heads.linear_head import Penalty


@dataclass(frozen=True)
class Candidate:
    """A point of the search: which neurons, how strongly regularised, and what came of it on validation."""

    depth: int
    """blocks of the backbone that run"""
    compute: float
    """FLOPs a token to read the deepest site, as a share of the whole backbone's"""
    eta: float
    part: tuple[str, ...]
    """kinds or poolings that were read; none named: all"""
    penalty: Penalty
    neurons: int
    valid_score: float
    """the metric on the validation rows, the mean over folds where there are several"""
    resampled: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """what tells how far the score is luck: the metric of each fold, or of one fold without each part of its rows"""
    held_out: tuple[NDArray[np.floating], ...] = field(default=(), compare=False, repr=False)
    """logits (m, K) of each fold's validation rows"""

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "depth": self.depth,
            "compute": round(self.compute, 4),
            "eta": round(self.eta, 4),
            "part": list(self.part),
            "strength": self.penalty.strength,
            "l1": self.penalty.l1,
            "neurons": self.neurons,
            "valid_score": round(self.valid_score, 4),
        }
