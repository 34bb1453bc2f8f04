"""Training data: which rows make choices, and on which further rows the final heads are fitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spin.labels.cross_validation import Fold
from spin.labels.label_space import LabelSpace
from spin.labels.splits import rows_in_split
from spin.labels.training_data import TrainingData

CLASSES, TWO = LabelSpace(("a", "b", "rare")), LabelSpace(("a", "b"))
SPLITS = (["train"] * 7 + ["valid"] * 2 + ["test"]) * 1000


def make_targets() -> Any:
    """10,000 documents, of which one per cent have the rare class."""
    draw = np.random.default_rng(0)
    return np.where(draw.random(10_000) < 0.01, 2, draw.integers(0, 2, 10_000))


def make_data(documents: int | None, seed: int = 0, **changes: Any) -> TrainingData:
    return TrainingData.from_splits(
        make_targets(), SPLITS, CLASSES, metric="accuracy", seed=seed, documents=documents, **changes
    )


@pytest.mark.parametrize("documents", [None, 9_000, 20_000])
def test_all_rows_are_in_the_folds_if_there_are_not_too_many(documents: int | None) -> None:
    data = make_data(documents)
    [fold] = data.folds
    np.testing.assert_array_equal(fold.train, rows_in_split(SPLITS, "train"))
    np.testing.assert_array_equal(fold.valid, rows_in_split(SPLITS, "valid"))
    assert data.not_sampled is None
    np.testing.assert_array_equal(data.all_rows, data.rows)


def test_a_sample_holds_every_class_of_either_split_in_its_share() -> None:
    """And nothing is lost: sample and rest are all rows that train or validate, and no test row is among them."""
    data = make_data(6_000)
    [fold] = data.folds
    assert data.not_sampled is not None
    assert len(data.rows) == 6_000
    for split, rows in (("train", fold.train), ("valid", fold.valid)):
        of_split = rows_in_split(SPLITS, split)
        assert np.isin(rows, of_split).all()
        for k in range(3):
            expected = (data.y[of_split] == k).sum() * 6_000 / 9_000
            assert abs((data.y[rows] == k).sum() - expected) <= 1
    assert not np.isin(data.not_sampled, data.rows).any()
    np.testing.assert_array_equal(data.all_rows, np.flatnonzero(np.array(SPLITS) != "test"))


@pytest.mark.parametrize(("documents", "expected"), [(9_000, 5_400), (5_200, 5_200)])
def test_a_sample_is_drawn_from_given_rows(documents: int, expected: int) -> None:
    """Those that neither train nor validate are left out; the other rows are for the heads alone."""
    among = np.arange(6_000)
    data = make_data(documents, sampled_from=among)
    assert len(data.rows) == expected
    assert np.isin(data.rows, among).all()
    np.testing.assert_array_equal(data.all_rows, np.flatnonzero(np.array(SPLITS) != "test"))


def test_the_sample_depends_on_the_seed_alone() -> None:
    np.testing.assert_array_equal(make_data(6_000).rows, make_data(6_000).rows)
    assert not np.array_equal(make_data(6_000).rows, make_data(6_000, seed=1).rows)


def test_a_small_sample_is_cross_validated(all_folds: None) -> None:
    """Below 5,000 documents each of the sample validates, however many labels there are."""
    data = make_data(3_000)
    assert len(data.folds) == 5
    validated = np.sort(np.concatenate([fold.valid for fold in data.folds]))
    np.testing.assert_array_equal(validated, data.rows)
    assert len(data.rows) == 3_000


def test_the_data_of_the_folds_alone_is_the_same_numbered_anew() -> None:
    groups = np.arange(10_000, dtype=np.uint64) * 7
    data = make_data(6_000, groups=groups)
    alone = data.of_folds()
    assert (len(alone.y), alone.not_sampled, len(alone.folds)) == (6_000, None, 1)
    for part in ("train", "valid"):
        own, before = getattr(alone.folds[0], part), getattr(data.folds[0], part)
        np.testing.assert_array_equal(data.rows[own], before)
        np.testing.assert_array_equal(alone.y[own], data.y[before])
        assert alone.groups is not None
        np.testing.assert_array_equal(alone.groups[own], groups[before])


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_are_held_back_share_no_group_with_those_that_fit(grouped: bool) -> None:
    """They are a tenth of the rows outside the folds, in whole groups; the rows of the folds stay."""
    draw = np.random.default_rng(0)
    y = draw.choice(2, 20_000, p=[0.8, 0.2])
    groups = draw.integers(0, 15_000, 20_000).astype(np.uint64) if grouped else None
    folds = (Fold(np.arange(0, 600), np.arange(600, 800)),)
    data = TrainingData(y, folds, TWO, groups=groups, not_sampled=np.arange(800, 18_000))
    less, held_back = data.hold_back()
    assert (len(held_back) == 1_720) if groups is None else (1_700 < len(held_back) <= 1_720)
    assert held_back.tolist() == sorted(held_back)
    assert less.folds is data.folds
    assert less.not_sampled is not None
    assert not np.isin(held_back, less.all_rows).any()
    if groups is None:
        assert sorted([*less.all_rows, *held_back]) == list(range(18_000))
    else:
        assert not np.isin(groups[held_back], groups[less.all_rows]).any()
        assert len(less.all_rows) == 18_000 - len(held_back), "no other row is left out"
    assert abs(y[held_back].mean() - y[:18_000].mean()) < 0.04


def test_large_groups_are_not_held_back() -> None:
    """A few of them would be most of what calibrates: here each has a hundred rows."""
    groups = np.arange(40_000, dtype=np.uint64)
    groups[2_000:32_000] = 100_000 + np.arange(30_000) // 100
    folds = (Fold(np.arange(0, 600), np.arange(600, 800)),)
    data = TrainingData(np.arange(40_000) % 2, folds, TWO, groups=groups, not_sampled=np.arange(800, 40_000))
    _, held_back = data.hold_back()
    assert len(held_back) == 3_920
    assert (groups[held_back] < 100_000).all()


def test_few_rows_are_not_held_back() -> None:
    """The validation rows of the folds calibrate better; and at most 5,000 rows are."""
    folds = (Fold(np.arange(0, 600), np.arange(600, 800)),)
    data = TrainingData(np.arange(200_000) % 2, folds, TWO, not_sampled=np.arange(800, 10_790))
    less, held_back = data.hold_back()
    assert less is data
    assert len(held_back) == 0
    assert len(replace(data, not_sampled=None).hold_back()[1]) == 0
    assert len(replace(data, not_sampled=np.arange(800, 200_000)).hold_back()[1]) == 5_000
