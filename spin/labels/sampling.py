"""Stratified samples: fewer rows with every class, or other stratum, in its share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Hashes, Rows


def sample_rows(rows: Rows, strata: NDArray[np.int64], most: int, seed: int) -> Rows:
    """The rows, ascending, or a sample of `most` of them if there are more.

    `strata` (n,) numbers the stratum of each row. The sample holds each stratum in its share, and at least one row of
    it if there are no more than `most` strata.
    """
    if len(rows) <= most:
        return np.sort(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    of_rows = strata[order]
    # The rows of a stratum lie at equal distances on a line from 0 to 1; the sample is what lies near its start. All of
    # it lies before `most` / n, where there are `most` rows at least, and the rows beyond take no memory here.
    members: list[Rows] = []
    places: list[Floats] = []
    for stratum in np.unique(strata):
        of_stratum = np.flatnonzero(of_rows == stratum)
        near = -(-len(of_stratum) * most // len(rows))
        members.append(of_stratum[:near].copy())
        places.append(np.arange(near) / len(of_stratum))
    near_start = np.concatenate(members)
    chosen = near_start[np.lexsort((near_start, np.concatenate(places)))[:most]]
    return np.sort(rows[order[chosen]])


def one_per_group(rows: Rows, groups: Hashes) -> Rows:
    """The first of the n rows of each group, in ascending order; `groups` (n,) are those of the rows."""
    order = np.argsort(groups, kind="stable")  # `np.unique` does the same and takes twice the memory
    is_first = np.ones(len(order), bool)
    is_first[1:] = groups[order[1:]] != groups[order[:-1]]
    return np.sort(rows[order[is_first]])
