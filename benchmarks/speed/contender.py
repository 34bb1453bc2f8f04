"""A contender: a role, and how it classifies texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.role import Role
from spin.arrays import Floats


@dataclass(frozen=True)
class Answers:
    """What a contender predicts for n texts."""

    classes: NDArray[np.integer]
    """(n,)"""
    compute: Floats | None = None
    """(n,) the share of the backbone's FLOPs that each text took; None for all of it"""


Classify = Callable[[Sequence[str], int], Answers]
"""predicts the classes of texts, for a batch size in documents; tokenising and the head included"""


@dataclass(frozen=True)
class Contender:
    """A way to classify texts."""

    role: Role
    load: Callable[[], Classify]
    """loads the classifier; called before anything is timed"""
    batches: tuple[int, ...] = ()
    """batch sizes in documents, of which the fastest is used; () for a contender that forms its batches itself"""

    @property
    def key(self) -> str:
        """The name that identifies it in output and results."""
        return self.role.key
