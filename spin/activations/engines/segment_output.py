"""The output of an engine for a batch of documents that ran through a segment of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment
from spin.arrays import Floats
from spin.attribution.token_sums import TokenReadings


class SegmentOutput(NamedTuple):
    """The output of a segment of blocks for a batch of documents."""

    values: Floats
    """(B, p) float32 of the segment's columns side by side"""
    hidden: Any
    """the hidden states for the next segment, None after the last; `hidden[rows]` are those of some documents"""
    tokens: TokenReadings | None
    """readings of single tokens; None unless the segment has directions"""


def read_tokens(segment: BlockSegment, outputs: Sequence[NDArray[Any]], width: int) -> TokenReadings | None:
    """The readings of `width` tokens per text in the outputs of a segment's `NeuronEncoder`, without hidden states."""
    if segment.directions is None:
        return None
    values, *others = outputs
    nothing = np.zeros((len(values), width, segment.directions.width), np.float32)
    projections = others.pop(0) if segment.projects else nothing
    located = values[:, segment.located]
    positions = others.pop(0).astype(np.int64) if segment.locates else np.empty(located.shape, np.int64)
    return TokenReadings(projections, positions, located)
