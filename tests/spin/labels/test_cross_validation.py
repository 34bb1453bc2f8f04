"""One division where labels are many; where they are few, every labelled row is judged as often as any other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.labels.cross_validation import Fold, jackknife_rows, labelled_rows, make_folds, standard_error
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.splits import CROSS_VALIDATION_BELOW

ONE, LISTS = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train, to validate and to leave alone, in no order."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :]


def judged(folds: tuple[Fold, ...], n: int) -> np.ndarray:
    """How often each row judges."""
    return np.bincount(np.concatenate([fold.valid for fold in folds]), minlength=n)


def test_many_labels_are_divided_once() -> None:
    """From a thousand on, the rows to train and to validate are what they were, in their order."""
    for n in (CROSS_VALIDATION_BELOW, CROSS_VALIDATION_BELOW + 500):
        train, valid = np.arange(n)[::-1][: n - 100], np.arange(100)
        [fold] = make_folds(ONE, np.arange(n) % 3, train, valid, seed=0)
        assert fold.train is train
        assert fold.valid is valid
        assert labelled_rows([fold]).tolist() == list(range(n))
    fewer = np.arange(100, CROSS_VALIDATION_BELOW - 1)
    assert len(make_folds(ONE, np.arange(CROSS_VALIDATION_BELOW) % 3, fewer, valid, seed=0)) > 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.integers(24, 200), st.booleans(), st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3)
)
def test_every_row_judges_once_a_repeat(seed: int, n: int, lists: bool, shares: list[float]) -> None:
    """As often as any other, and never trains in that fold; rows of the test are in none."""
    draw, label_space = np.random.default_rng(seed), LISTS if lists else ONE
    train, valid, test = rows(n, seed)
    pool = np.concatenate([train, valid])
    y: Targets = draw.random((n, 3)) < shares if lists else draw.choice(3, n, p=np.array(shares) / sum(shares))
    if lists:
        y[pool[:3]], y[pool[3:6]] = np.eye(3, dtype=bool), np.eye(3, dtype=bool)
    else:
        y[pool[:6]] = [0, 1, 2, 0, 1, 2]
    folds = make_folds(label_space, y, train, valid, seed=0)
    parts = int(np.clip(label_space.indicator(y[pool]).sum(0).min(), 2, 5))
    times = judged(folds, n)
    assert len(set(times[pool].tolist())) == 1
    repeats = int(times[pool[0]])
    assert repeats >= 2
    assert len(folds) == parts * repeats
    assert not times[test].any()
    for fold in folds:
        assert sorted([*fold.train, *fold.valid]) == sorted(pool)
    for at in range(repeats):
        assert sorted(np.concatenate([f.valid for f in folds[at * parts : (at + 1) * parts]])) == sorted(pool)
    assert labelled_rows(folds).tolist() == sorted(pool)


def test_classes_are_in_every_part_alike() -> None:
    """A fifth of each class judges in each fold, to a document."""
    train, valid, _ = rows(400)
    y = np.random.default_rng(1).choice(3, 400, p=[0.7, 0.2, 0.1])
    counts = np.bincount(y[np.concatenate([train, valid])])
    for fold in make_folds(ONE, y, train, valid, seed=0):
        assert (np.abs(np.bincount(y[fold.valid], minlength=3) - counts / 5) <= 1).all()


def test_the_rarest_class_of_a_list_is_in_every_part_alike() -> None:
    """A list is where its rarest class is: that one is divided to a document, rare and frequent ones nearly."""
    train, valid, _ = rows(400)
    y = np.random.default_rng(1).random((400, 3)) < [0.6, 0.3, 0.05]
    counts = y[np.concatenate([train, valid])].sum(0)
    for fold in make_folds(LISTS, y, train, valid, seed=0):
        off = np.abs(y[fold.valid].sum(0) - counts / 5)
        assert off[2] <= 1
        assert (off <= 10).all()


@pytest.mark.parametrize("lists", [False, True])
def test_a_class_of_two_documents_trains_and_judges(lists: bool) -> None:
    """With two, there are two parts, and each of them has one."""
    y = np.array([0, 1] * 30)
    y[[10, 33]] = 2
    targets: Targets = ONE.indicator(y) if lists else y
    folds = make_folds(LISTS if lists else ONE, targets, np.arange(40), np.arange(40, 60), seed=0)
    assert len(folds) >= 4
    for fold in folds:
        assert (y[fold.train] == 2).sum() == (y[fold.valid] == 2).sum() == 1


def test_folds_are_drawn_by_the_seed() -> None:
    """The same seed gives the same folds whatever the order of the rows, another seed and each repeat others."""
    train, valid, _ = rows(200)
    y = np.arange(200) % 3
    first, second = make_folds(ONE, y, train, valid, seed=1), make_folds(ONE, y, valid[::-1], train[::-1], seed=1)
    other = make_folds(ONE, y, train, valid, seed=2)
    assert all(np.array_equal(a.valid, b.valid) for a, b in zip(first, second, strict=True))
    assert not any(np.array_equal(a.valid, b.valid) for a, b in zip(first, other, strict=True))
    assert len({tuple(fold.valid) for fold in first}) == len(first)


def test_the_standard_error_is_that_of_nadeau_and_bengio() -> None:
    """By its formula, one column after another."""
    folds = tuple(Fold(np.arange(80), np.arange(80, 100)) for _ in range(6))
    differences = np.random.default_rng(0).normal(size=(6, 3))
    expected = []
    for column in differences.T:
        mean = sum(column) / 6
        variance = sum((x - mean) ** 2 for x in column) / 5
        expected.append((variance * (1 / 6 + 20 / 80)) ** 0.5)
    np.testing.assert_allclose(standard_error(differences, folds), expected)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 113])
def test_parts_of_a_division_are_left_out_in_turn(count: int) -> None:
    """Every row is missing once, in parts of about one size; a single row stays."""
    left = [set(range(count)) - set(rows.tolist()) for rows in jackknife_rows(count)]
    assert len(left) == min(count, 20)
    if count > 1:
        assert sorted(row for part in left for row in part) == list(range(count))
        assert max(map(len, left)) - min(map(len, left)) <= 1


def test_the_jackknife_agrees_with_the_error_of_a_mean() -> None:
    """The difference between two accuracies is a mean over documents, whose standard error has a formula."""
    draw = np.random.default_rng(0)
    right = draw.random((2000, 2)) < (0.7, 0.8)
    scores = np.array([right[rows].mean(0) for rows in jackknife_rows(2000)])
    fold = Fold(np.arange(8000), np.arange(2000))
    found = standard_error(scores[:, 0] - scores[:, 1], [fold])
    each = right[:, 0].astype(float) - right[:, 1]
    assert found == pytest.approx(each.std() / 2000**0.5, rel=0.35)
