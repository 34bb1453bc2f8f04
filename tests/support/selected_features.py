"""Read the features of a selection at once, which a training reads in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.data.feature_store import FeatureShards
from spin.arrays import Rows
from spin.heads.selection import Selection


def read_selection(
    shards: FeatureShards, selection: Selection, rows: Rows, words: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """The p features of a selection for m rows in ascending order, (m, p); see `FeatureShards.selection_blocks`."""
    return np.concatenate(list(shards.selection_blocks(selection, rows, words)))
