"""The figures of a contender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.speed.contender import OurSetting, Role, TransformerPeer, WordPeer
from spin.labels.label_space import Targets


@dataclass(frozen=True)
class Row:
    """The figures of a contender on the test documents."""

    role: Role
    seconds: tuple[float, ...]
    """per round, for all documents; those of a slow contender are of the first rounds only"""
    classes: Targets
    """(n,) predicted"""
    score: float
    """macro-F1, from 0 to 1"""
    accuracy: float
    valid_score: float
    """macro-F1 on the validation documents, by which alone settings are chosen"""
    agreement: float
    """share of labels equal to those in float32: of ours at full depth, or, for a peer, of the first peer"""
    batch: int = 0
    """batch size in documents; 0 for a contender that forms its batches itself"""
    compute: float = 1.0
    """share of the whole backbone's FLOPs that it spent"""

    @property
    def key(self) -> str:
        return self.role.key

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row with the shortest median time, None if there are no rows."""
    return min(rows, key=lambda row: row.median, default=None)


def transformer_peers(rows: Sequence[Row], *, sixteen_bits: bool = False) -> list[Row]:
    """The rows of transformer peers, on request those in 16 bits alone."""
    peers = [row for row in rows if isinstance(row.role, TransformerPeer)]
    return [row for row in peers if row.role.precision == "bfloat16" or not sixteen_bits]


def word_peers(rows: Sequence[Row]) -> list[Row]:
    """The rows of peers that run no transformer."""
    return [row for row in rows if isinstance(row.role, WordPeer)]


def full_depth(rows: Sequence[Row], *precisions: str) -> list[Row]:
    """Our rows at full depth and without reasons, in some precisions, in their order."""
    ours = [row for row in rows if isinstance(row.role, OurSetting) and row.role.choose == "accuracy"]
    plain = [row for row in ours if row.role.max_loss is None and not row.role.reasons]
    return [row for row in plain if row.role.precision in precisions]
