"""One split if there are many labels; with few, cross-validation that validates on every labelled row equally often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from spin.errors import UserError
from spin.labels.cross_validation import (
    Fold,
    confident_margin,
    count_repeats,
    jackknife_error,
    jackknife_rows,
    labelled_rows,
    make_folds,
    score_folds,
    standard_error,
)
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.labels.splits import CROSS_VALIDATION_BELOW, FEW_LABELS, VERY_FEW_LABELS

pytestmark = pytest.mark.usefixtures("all_folds")
SINGLE_LABEL, MULTILABEL = LabelSpace(("a", "b", "c")), LabelSpace(("a", "b", "c"), multilabel=True)


def draw_rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return training, validation and test rows, in random order."""
    order = np.random.default_rng(seed).permutation(n)
    return order[: n // 2], order[n // 2 : 3 * n // 4], order[3 * n // 4 :]


def count_validations(folds: tuple[Fold, ...], n: int) -> np.ndarray:
    """Return how often each row is used for validation."""
    return np.bincount(np.concatenate([fold.valid for fold in folds]), minlength=n)


def test_many_labels_give_one_fold_with_the_given_rows() -> None:
    """From CROSS_VALIDATION_BELOW labels on, the rows keep their split and their order."""
    for n in (CROSS_VALIDATION_BELOW, CROSS_VALIDATION_BELOW + 500):
        train, valid = np.arange(n)[::-1][: n - 100], np.arange(100)
        [fold] = make_folds(SINGLE_LABEL, np.arange(n) % 3, train, valid, seed=0)
        assert fold.train is train
        assert fold.valid is valid
        assert labelled_rows([fold]).tolist() == list(range(n))
    fewer = np.arange(100, CROSS_VALIDATION_BELOW - 1)
    assert len(make_folds(SINGLE_LABEL, np.arange(CROSS_VALIDATION_BELOW) % 3, fewer, valid, seed=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("n", "repeats"), [(VERY_FEW_LABELS - 1, 2), (VERY_FEW_LABELS, 1), (CROSS_VALIDATION_BELOW - 1, 1)]
)
def test_only_few_labels_are_validated_twice(n: int, repeats: int, grouped: bool) -> None:
    """From VERY_FEW_LABELS on every row validates once in five folds, with groups too."""
    train, valid, groups = np.arange(n - 100), np.arange(n - 100, n), np.arange(n, dtype=np.uint64) // 2
    folds = make_folds(SINGLE_LABEL, np.arange(n) % 3, train, valid, 0, groups if grouped else None)
    assert len(folds) == 5 * repeats
    assert count_validations(folds, n).tolist() == [repeats] * n
    assert count_repeats(folds) == repeats


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.integers(24, 200), st.booleans(), st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3)
)
def test_every_row_is_used_for_validation_once_per_repeat(
    seed: int, n: int, multilabel: bool, shares: list[float]
) -> None:
    """A validation row does not train in the same fold, and test rows are in no fold."""
    draw, label_space = np.random.default_rng(seed), MULTILABEL if multilabel else SINGLE_LABEL
    train, valid, test = draw_rows(n, seed)
    pool = np.concatenate([train, valid])
    y: Targets = draw.random((n, 3)) < shares if multilabel else draw.choice(3, n, p=np.array(shares) / sum(shares))
    if multilabel:
        y[pool[:3]], y[pool[3:6]] = np.eye(3, dtype=bool), np.eye(3, dtype=bool)
    else:
        y[pool[:6]] = [0, 1, 2, 0, 1, 2]
    folds = make_folds(label_space, y, train, valid, seed=0)
    parts = 5
    validations = count_validations(folds, n)
    assert len(set(validations[pool].tolist())) == 1
    repeats = int(validations[pool[0]])
    assert repeats >= 2
    assert len(folds) == parts * repeats
    assert not validations[test].any()
    for fold in folds:
        assert sorted([*fold.train, *fold.valid]) == sorted(pool)
    for repeat in range(repeats):
        assert sorted(np.concatenate([f.valid for f in folds[repeat * parts : (repeat + 1) * parts]])) == sorted(pool)
    assert labelled_rows(folds).tolist() == sorted(pool)


def test_folds_are_stratified_by_class() -> None:
    """Each fold validates on a fifth of each class, give or take one document."""
    train, valid, _ = draw_rows(400)
    y = np.random.default_rng(1).choice(3, 400, p=[0.7, 0.2, 0.1])
    counts = np.bincount(y[np.concatenate([train, valid])])
    for fold in make_folds(SINGLE_LABEL, y, train, valid, seed=0):
        assert (np.abs(np.bincount(y[fold.valid], minlength=3) - counts / 5) <= 1).all()


def test_multilabel_folds_are_stratified_by_the_rarest_class_of_a_document() -> None:
    """The rarest class is divided equally, give or take one document, and the others approximately."""
    train, valid, _ = draw_rows(400)
    y = np.random.default_rng(1).random((400, 3)) < [0.6, 0.3, 0.05]
    counts = y[np.concatenate([train, valid])].sum(0)
    for fold in make_folds(MULTILABEL, y, train, valid, seed=0):
        deviation = np.abs(y[fold.valid].sum(0) - counts / 5)
        assert deviation[2] <= 1
        assert (deviation <= 10).all()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize(("n", "repeats"), [(60, 2), (899, 1), (FEW_LABELS, 1)])
def test_a_class_of_two_documents_makes_folds_neither_fewer_nor_smaller(
    n: int, repeats: int, multilabel: bool, grouped: bool
) -> None:
    """Each of the five folds trains on four fifths of the rows and on every class, though only two validate on it."""
    y, groups = np.arange(n) % 2, np.arange(n, dtype=np.uint64) // 2
    y[[10, 33]] = 2
    targets: Targets = SINGLE_LABEL.indicator(y) if multilabel else y
    label_space = MULTILABEL if multilabel else SINGLE_LABEL
    folds = make_folds(label_space, targets, np.arange(40), np.arange(40, n), 0, groups if grouped else None)
    assert [round(len(fold.train) / n, 1) for fold in folds] == [0.8] * 5 * repeats
    assert all(set(y[fold.train]) == {0, 1, 2} for fold in folds)
    assert sorted((y[fold.valid] == 2).sum() for fold in folds) == [0] * 3 * repeats + [1] * 2 * repeats


def test_two_documents_of_a_class_with_others_are_never_validated_together() -> None:
    """Stratified by other classes of theirs, they may fall into one part, which is then drawn again."""
    y = np.zeros((40, 4), bool)
    y[::2, 0] = True
    y[[3, 13], 1] = y[[5, 15], 2] = y[[3, 5], 3] = True
    label_space = LabelSpace(("a", "b", "c", "d"), multilabel=True)
    for seed in range(20):
        for fold in make_folds(label_space, y, np.arange(30), np.arange(30, 40), seed):
            assert y[fold.train].any(0).all()


def test_a_class_of_one_document_is_not_learned_in_one_fold_of_five() -> None:
    """Without groups, as in a sample of a corpus, it is no obstacle."""
    y = np.arange(60) % 2
    y[10] = 2
    folds = make_folds(SINGLE_LABEL, y, np.arange(40), np.arange(40, 60), seed=0)
    assert [(y[fold.train] == 2).sum() for fold in folds].count(0) == 2
    assert len(folds) == 10


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    """A different seed gives different folds, and so does each repeat."""
    train, valid, _ = draw_rows(200)
    y = np.arange(200) % 3
    first = make_folds(SINGLE_LABEL, y, train, valid, seed=1)
    reordered = make_folds(SINGLE_LABEL, y, valid[::-1], train[::-1], seed=1)
    other = make_folds(SINGLE_LABEL, y, train, valid, seed=2)
    assert all(np.array_equal(a.valid, b.valid) for a, b in zip(first, reordered, strict=True))
    assert not any(np.array_equal(a.valid, b.valid) for a, b in zip(first, other, strict=True))
    assert len({tuple(fold.valid) for fold in first}) == len(first)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(30, 150), st.booleans(), st.integers(1, 12))
def test_the_documents_of_a_group_are_never_divided(seed: int, n: int, multilabel: bool, largest: int) -> None:
    """Each fold trains on every class, and each row validates once per repeat, as without groups."""
    draw, label_space = np.random.default_rng(seed), MULTILABEL if multilabel else SINGLE_LABEL
    train, valid, _ = draw_rows(n, seed)
    pool = np.concatenate([train, valid])
    groups = np.repeat(np.arange(n, dtype=np.uint64), draw.integers(1, largest + 1, n))[:n] * 7
    y: Targets = draw.random((n, 3)) < 0.3 if multilabel else draw.integers(3, size=n)
    for k in range(3):  # at least two groups per class, also where all rows are few
        if multilabel:
            y[pool[k::3][:4], k] = True
        else:
            y[pool[k::3][:4]] = k
    indicator = label_space.indicator(y)
    if min(len(np.unique(groups[pool][indicator[pool, k]])) for k in range(3)) < 2:
        return
    folds = make_folds(label_space, y, train, valid, 0, groups)
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.valid])
        assert indicator[fold.train].any(0).all()
        assert sorted([*fold.train, *fold.valid]) == sorted(pool)
    assert len(set(count_validations(folds, n)[pool].tolist())) == 1


def test_groups_of_one_document_change_nothing() -> None:
    train, valid, _ = draw_rows(200)
    y = np.arange(200) % 3
    plain = make_folds(SINGLE_LABEL, y, train, valid, 0)
    grouped = make_folds(SINGLE_LABEL, y, train, valid, 0, np.arange(200, dtype=np.uint64))
    assert [fold.valid.tolist() for fold in plain] == [fold.valid.tolist() for fold in grouped]


def test_folds_of_groups_are_stratified_as_far_as_groups_allow() -> None:
    """With pairs of documents, each fold validates on a fifth of each class, give or take two pairs."""
    y = np.repeat(np.random.default_rng(1).choice(3, 200, p=[0.6, 0.25, 0.15]), 2)
    groups = np.repeat(np.arange(200, dtype=np.uint64), 2)
    folds = make_folds(SINGLE_LABEL, y, np.arange(300), np.arange(300, 400), 0, groups)
    assert len(folds) >= 5
    for fold in folds:
        assert (np.abs(np.bincount(y[fold.valid], minlength=3) - np.bincount(y) / 5) <= 4).all()
    assert len({tuple(fold.valid) for fold in folds}) == len(folds)


def test_classes_that_no_division_into_groups_can_all_train_are_refused() -> None:
    """Each of two classes is in one group alone."""
    y, groups = np.array([0] * 30 + [1] * 30), np.repeat(np.array([1, 2], np.uint64), 30)
    message = r"cross-validation: found no division of 60 documents in 2 groups .* every class .*data\.group"
    with pytest.raises(UserError, match=message):
        make_folds(LabelSpace(("a", "b")), y, np.arange(40), np.arange(40, 60), 0, groups)


def test_classes_of_two_documents_each_are_divided_by_their_groups() -> None:
    """There are fewer documents per class than folds could be."""
    y, groups = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 2, 1, 3, 2, 3], np.uint64)
    with pytest.raises(UserError, match="found no division"):  # two folds cannot keep three pairs apart
        make_folds(SINGLE_LABEL, y, np.arange(3), np.arange(3, 6), 0, groups)
    for fold in make_folds(SINGLE_LABEL, y, np.arange(3), np.arange(3, 6), 0, np.array([1, 2, 1, 3, 4, 3], np.uint64)):
        assert set(y[fold.train]) == {0, 1, 2}


def test_groups_count_for_nothing_where_labels_are_many() -> None:
    """The split itself keeps groups together there."""
    n = CROSS_VALIDATION_BELOW
    train, valid = np.arange(n - 100), np.arange(n - 100, n)
    [fold] = make_folds(SINGLE_LABEL, np.arange(n) % 3, train, valid, 0, np.zeros(n, np.uint64))
    assert fold.train is train


def test_the_standard_error_over_folds_is_the_one_of_nadeau_and_bengio() -> None:
    """Each column equals the formula."""
    folds = tuple(Fold(np.arange(80), np.arange(80, 100)) for _ in range(6))
    differences = np.random.default_rng(0).normal(size=(6, 3))
    expected = []
    for column in differences.T:
        mean = sum(column) / 6
        variance = sum((x - mean) ** 2 for x in column) / 5
        expected.append((variance * (1 / 6 + 20 / 80)) ** 0.5)
    np.testing.assert_allclose(standard_error(differences, folds), expected)


def test_the_standard_error_counts_the_mean_size_of_unequal_folds() -> None:
    """Groups make folds of different sizes."""
    folds = (Fold(np.arange(90), np.arange(90, 100)), Fold(np.arange(70), np.arange(70, 100)))
    differences = np.array([[0.1], [0.3]])
    np.testing.assert_allclose(standard_error(differences, folds), ((1 / 2 + 40 / 160) * 0.02) ** 0.5)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 113])
def test_the_jackknife_leaves_every_row_out_once(count: int) -> None:
    """The parts that are left out have about the same size; a single row is never left out."""
    left_out = [set(range(count)) - set(rows.tolist()) for rows in jackknife_rows(count)]
    assert len(left_out) == min(count, 20)
    if count > 1:
        assert sorted(row for part in left_out for row in part) == list(range(count))
        assert max(map(len, left_out)) - min(map(len, left_out)) <= 1


def test_the_jackknife_agrees_with_the_standard_error_of_a_mean() -> None:
    """A difference of accuracies is a mean over documents, for whose standard error there is a formula."""
    draw = np.random.default_rng(0)
    correct = draw.random((2000, 2)) < (0.7, 0.8)
    scores = np.array([correct[rows].mean(0) for rows in jackknife_rows(2000)])
    fold = Fold(np.arange(8000), np.arange(2000))
    estimate = standard_error(scores[:, 0] - scores[:, 1], [fold])
    differences = correct[:, 0].astype(float) - correct[:, 1]
    assert estimate == pytest.approx(differences.std() / 2000**0.5, rel=0.35)


def test_the_jackknife_leaves_out_whole_groups() -> None:
    """With its groups, an interval of 95 % misses the true difference of accuracies in about one of twenty samples.

    The documents of a group are often right or wrong together. Parts of groups hide how much groups differ, and the
    interval misses in more than a third of the samples.
    """
    misses = {"rows": 0, "groups": 0}
    for seed in range(200):
        draw = np.random.default_rng(seed)
        groups = draw.permutation(np.repeat(np.arange(60, dtype=np.uint64), 10))
        right = np.where(draw.random(600) < 0.7, draw.integers(-1, 2, 60)[groups], draw.integers(-1, 2, 600))
        for name, documents in (("rows", None), ("groups", groups)):
            without = np.array([right[rows].mean() for rows in jackknife_rows(600, documents)])
            misses[name] += abs(right.mean()) > 2.09 * jackknife_error(without)  # Student's t, 19 degrees of freedom
    assert misses["groups"] <= 20
    assert misses["rows"] > 67


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_folds_of_a_repeat_are_scored_together(metric: str) -> None:
    """Not fold by fold: of each repeat the score of all rows, and without the documents of each part."""
    draw = np.random.default_rng(0)
    y, groups = draw.choice(3, 90, p=[0.6, 0.3, 0.1]), np.arange(90, dtype=np.uint64) // 2
    folds = make_folds(SINGLE_LABEL, y, np.arange(70), np.arange(70, 90), 0, groups)
    rows = np.concatenate([fold.valid for fold in folds])
    predicted = np.where(draw.random(len(rows)) < 0.7, y[rows], draw.integers(0, 3, len(rows)))
    halves = np.split(np.arange(len(rows)), 2)
    expected = np.mean([score(metric, y[rows[half]], predicted[half]) for half in halves])
    value, without = score_folds(metric, y[rows], predicted, folds, groups)
    assert value == pytest.approx(expected)
    for part, left in enumerate(without):
        kept = [half[groups[rows[half]] % 20 != part] for half in halves]
        assert left == pytest.approx(np.mean([score(metric, y[rows[half]], predicted[half]) for half in kept]))
    assert len(without) == 20


def test_the_score_of_pooled_folds_is_that_of_many_documents() -> None:
    """Averaged over folds, which lack a rare class or have one document of it, macro-F1 would be 3.5 points too low."""
    pooled, averaged, truth = [], [], []
    for seed in range(100):
        draw = np.random.default_rng(seed)
        y = draw.permutation(np.repeat([0, 1, 2], [30, 14, 4]))
        folds = make_folds(SINGLE_LABEL, y, np.arange(40), np.arange(40, 48), seed)
        rows = np.concatenate([fold.valid for fold in folds])
        predicted = np.where(draw.random(48) < 0.6, y, 0)
        pooled.append(score_folds("macro_f1", y[rows], predicted[rows], folds)[0])
        averaged.append(np.mean([score("macro_f1", y[fold.valid], predicted[fold.valid]) for fold in folds]))
        truth.append(score("macro_f1", y, predicted))
    assert np.mean(pooled) == pytest.approx(np.mean(truth))
    assert np.mean(averaged) < np.mean(truth) - 0.03


@pytest.mark.parametrize("parts", [5, 12, 20])
def test_a_confident_margin_is_a_quantile_of_student_s_distribution(parts: int) -> None:
    values = np.random.default_rng(parts).normal(size=parts)
    assert confident_margin(values) == pytest.approx(t.ppf(0.95, parts - 1) * jackknife_error(values))


@pytest.mark.parametrize("groups", [1, 4])
def test_a_few_groups_prove_nothing(groups: int) -> None:
    """The documents of all of them may be alike, and then the error that their parts show is 0."""
    rows = np.arange(600)
    values = np.array([(rows[kept] >= 0).mean() for kept in jackknife_rows(600, rows % groups)])
    assert jackknife_error(values) == 0
    assert confident_margin(values) == np.inf
