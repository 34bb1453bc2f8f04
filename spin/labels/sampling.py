"""Stratified samples: fewer rows with every class, or other stratum, in its share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Rows


def sample_rows(rows: Rows, strata: NDArray[np.int64], most: int, seed: int) -> Rows:
    """The rows, ascending, or a sample of `most` of them if there are more.

    `strata` (n,) numbers the stratum of each row. The sample holds each stratum in its share, and at least one row of
    it if there are no more than `most` strata.
    """
    if len(rows) <= most:
        return np.sort(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    of_rows = strata[order]
    # the rows of a stratum lie at equal distances on a line from 0 to 1; the sample is what lies near its start
    places = np.empty(len(rows))
    for stratum in np.unique(of_rows):
        members = np.flatnonzero(of_rows == stratum)
        places[members] = np.arange(len(members)) / len(members)
    return np.sort(rows[order[np.argsort(places, kind="stable")[:most]]])
