"""Stratified samples, and one row per group, against plain loops."""

import numpy as np
import pytest

from spin.labels.sampling import one_per_group, sample_rows


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 4, 37, 200, 499])
def test_a_sample_is_what_lies_nearest_to_the_start_of_each_stratum(most: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    strata = draw.choice(9, 500, p=draw.dirichlet(np.full(9, 0.4)))
    rows = np.sort(draw.choice(2_000, 500, replace=False))
    order = np.random.default_rng(seed).permutation(500).tolist()
    sizes = np.bincount(strata)
    met = dict.fromkeys(range(9), 0)
    places: list[tuple[float, int]] = []  # of each row in its stratum, in the order of the draw
    for position in order:
        stratum = int(strata[position])
        places.append((met[stratum] / sizes[stratum], len(places)))
        met[stratum] += 1
    expected = sorted(rows[order[at]] for _, at in sorted(places)[:most])
    assert sample_rows(rows, strata, most, seed).tolist() == expected


def test_a_sample_of_as_many_rows_as_strata_has_each_stratum() -> None:
    strata = np.array([0] * 90 + [1] * 9 + [2])
    assert set(strata[sample_rows(np.arange(100), strata, 3, seed=0)]) == {0, 1, 2}


def test_all_rows_are_taken_if_there_are_no_more() -> None:
    assert sample_rows(np.array([5, 2, 9]), np.zeros(3, np.int64), 3, seed=0).tolist() == [2, 5, 9]


def test_one_row_per_group_is_its_first() -> None:
    draw = np.random.default_rng(0)
    groups = draw.choice(draw.integers(0, 2**64, 60, dtype=np.uint64), 300)
    rows = np.sort(draw.choice(1_000, 300, replace=False))
    first: dict[int, int] = {}
    for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
        first.setdefault(group, row)
    assert one_per_group(rows, groups).tolist() == sorted(first.values())


def test_no_rows_have_no_groups() -> None:
    assert one_per_group(np.empty(0, np.int64), np.empty(0, np.uint64)).tolist() == []
