"""Division of documents at random: near-identical ones stay on one side, and every side has the classes' proportions.

`train_test_split` of scikit-learn knows no groups, and its `StratifiedGroupKFold` no sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Hashes, Rows
from spin.labels.label_space import Targets


def divide(y: Targets, groups: Hashes, sizes: Sequence[int], seed: int) -> list[Rows]:
    """Rows of disjoint sides of the given sizes, ascending, with no group on two of them or on one and left over.

    `y` are the classes (n,) and `groups` the groups (n,). Groups of several documents are placed first, one after
    another, each on a side drawn by the sides' sizes among those with room for it; what is left over counts as a side.
    Then single documents fill every class of every side. So the sizes are exact as long as every group finds room.
    """
    if sum(sizes) > len(y):
        raise ValueError(f"{sum(sizes)} of {len(y)} documents cannot be drawn")
    draw, counts = np.random.default_rng(seed), np.bincount(y)
    room = _rooms(counts, [*sizes, len(y) - sum(sizes)])
    shares = room.sum(1) / len(y)
    group_of_row = np.unique(groups, return_inverse=True)[1]
    size_of_group = np.bincount(group_of_row)
    side = np.full(len(y), len(sizes))
    for group in draw.permutation(np.flatnonzero(size_of_group > 1)):
        rows = np.flatnonzero(group_of_row == group)
        needed = np.bincount(y[rows], minlength=len(counts))
        fits = shares * (room >= needed).all(1)
        chosen = draw.choice(len(shares), p=fits / fits.sum()) if fits.any() else len(sizes)
        side[rows] = chosen
        room[chosen] -= needed
    for k in range(len(counts)):
        singles = draw.permutation(np.flatnonzero((size_of_group[group_of_row] == 1) & (y == k)))
        borders = np.cumsum(room[:-1, k])
        for chosen, rows in enumerate(np.split(singles, borders)[:-1]):
            side[rows] = chosen
    return [np.flatnonzero(side == chosen) for chosen in range(len(sizes))]


def draw_per_class(y: Targets, groups: Hashes, pool: Rows, count: int, seed: int) -> list[Rows]:
    """For each class at random `count` rows of `pool`, of near-identical documents only one."""
    shuffled = np.random.default_rng(seed).permutation(pool)
    distinct = shuffled[np.sort(np.unique(groups[shuffled], return_index=True)[1])]
    return [distinct[y[distinct] == k][:count] for k in np.unique(y)]


def draw_until_each_class(has: Targets, groups: Hashes, pool: Rows, count: int, seed: int) -> list[Rows]:
    """At random rows of `pool`, of near-identical documents only one, until each class of `has` (n, K) has `count`.

    For each class, the rarest first, as many rows as those drawn before leave missing: so rows add up to about
    `count` per class where classes rarely meet, and to fewer where they do. The last ones have no class at all.
    """
    shuffled = np.random.default_rng(seed).permutation(pool)
    distinct = shuffled[np.sort(np.unique(groups[shuffled], return_index=True)[1])]
    own = np.column_stack([has[distinct], ~has[distinct].any(1)])
    drawn, parts = np.zeros(len(distinct), bool), []
    for k in [*np.argsort(own[:, :-1].sum(0), kind="stable"), own.shape[1] - 1]:
        missing = max(0, count - int(own[drawn, k].sum()))
        chosen = np.flatnonzero(own[:, k] & ~drawn)[:missing]
        drawn[chosen] = True
        parts.append(distinct[chosen])
    return parts


def _rooms(counts: NDArray[np.int64], sizes: Sequence[int]) -> NDArray[np.int64]:
    """(sides, classes) documents of each class on each side: sums are `sizes` and `counts`, proportions are kept."""
    exact = np.outer(sizes, counts) / counts.sum()
    room = np.floor(exact).astype(np.int64)
    # Each missing document goes where the most is missing, among sides and classes that both still miss some.
    while (missing_of_side := np.asarray(sizes) - room.sum(1)).any():
        missing_of_class = counts - room.sum(0)
        open_cells = np.outer(missing_of_side > 0, missing_of_class > 0)
        cell = np.unravel_index(np.where(open_cells, exact - room, -np.inf).argmax(), room.shape)
        room[cell] += 1
    return room
