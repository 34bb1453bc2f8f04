"""The ridge regression on all columns equals scikit-learn's, and its importance is that of every neuron together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import spin.sparsify.ridge
from spin.arrays import Floats, Rows
from spin.labels.cross_validation import Fold
from spin.labels.label_errors import LabelCheck
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.training_data import TrainingData
from spin.sites import FeatureColumn
from spin.sparsify.ridge import LeftOutPredictions, ReadRows, RidgeImportance, choose_rows, fit_ridge
from spin.sparsify.solvers.ridge_regression import predict_left_out

pytestmark = pytest.mark.usefixtures("plain_deviations")

COLUMNS = [FeatureColumn.parse(text) for text in ("ffn.01.mean", "resid.01.mean", "ffn.02.mean")]
THREE = LabelSpace(("a", "b", "c"))


def make_activations(y: Targets, label_space: LabelSpace = THREE, seed: int = 0) -> dict[FeatureColumn, Floats]:
    """Three columns on different scales; the first neurons of each move with the classes."""
    draw, has = np.random.default_rng(seed), label_space.indicator(y)
    activations = {}
    for number, column in enumerate(COLUMNS):
        values = draw.normal(size=(len(y), 20 + number))
        values[:, : has.shape[1]] += has
        values[:, -1] = 3
        activations[column] = (values * 10.0**number - 2).astype(np.float32)
    return activations


def make_data(n: int = 120, label_space: LabelSpace = THREE) -> TrainingData:
    draw = np.random.default_rng(3)
    y: Targets = draw.random((n, 3)) < 0.4 if label_space.multilabel else draw.integers(0, 3, n)
    order = draw.permutation(n)
    folds = (Fold(np.sort(order[n // 4 :]), np.sort(order[: n // 4])),)
    return TrainingData(y, folds, label_space, "macro_f1")


def standardize_all(activations: Mapping[FeatureColumn, Floats], rows: Rows) -> Floats:
    """All activations, standardised by those of some rows; neurons that are constant on these are only centred."""
    X = np.concatenate(list(activations.values()), axis=1).astype(np.float64)
    deviation = X[rows].std(0)
    return np.asarray((X - X[rows].mean(0)) / np.where(deviation > 1e-3, deviation, 1))


def standardize(activations: Mapping[FeatureColumn, Floats], rows: Rows) -> Floats:
    """The activations of some rows, standardised by themselves."""
    return np.asarray(standardize_all(activations, rows)[rows])


def expected_importance(X: Floats, targets: Floats, penalty: float) -> Floats:
    """By scikit-learn's primal solution; X is (n, p) and the penalty a share of the mean squared length of a row."""
    centred = X - X.mean(0)
    lam = penalty * (centred**2).sum() / len(X)
    weights = Ridge(alpha=lam, solver="cholesky").fit(X, targets).coef_
    squares = weights**2 / (weights**2).sum(1, keepdims=True)
    return np.asarray(squares.sum(0))


def test_left_out_predictions_are_those_of_scikit_learn() -> None:
    """Each left-out prediction is that of a regression which was fitted without the row."""
    draw = np.random.default_rng(0)
    X, targets = draw.normal(size=(30, 50)) + 1, draw.normal(size=(30, 2))
    lam = 0.5 * ((X - X.mean(0)) ** 2).sum() / 30
    left_out = predict_left_out(torch.from_numpy(X @ X.T), torch.from_numpy(targets), 0.5)
    for row in range(30):
        others = np.arange(30) != row
        expected = Ridge(alpha=lam).fit(X[others], targets[others]).predict(X[[row]])[0]
        np.testing.assert_allclose(left_out[row], expected, atol=1e-8)


def test_left_out_predictions_are_by_all_neurons_and_no_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rows that the regression uses by one without them, of all others by one on the rows that it uses."""
    monkeypatch.setattr(spin.sparsify.ridge, "PENALTIES", (0.5,))
    monkeypatch.setattr(spin.sparsify.ridge, "MOST_ROWS", 40)
    monkeypatch.setattr(spin.sparsify.ridge, "find_suspects", lambda probabilities, y: np.zeros(len(y), bool))
    data = make_data(60)
    activations, used = make_activations(data.y), choose_rows(data)
    _, left_out = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    assert left_out.rows.tolist() == list(range(60))
    X = standardize_all(activations, used)
    targets = data.label_space.indicator(data.y).astype(float)
    lam = 0.5 * (X[used] ** 2).sum() / 40
    for row in range(60):
        others = used[used != row]
        expected = Ridge(alpha=lam).fit(X[others], targets[others]).predict(X[[row]])[0]
        np.testing.assert_allclose(left_out.values[row], expected, atol=1e-4)
    restored = LeftOutPredictions.from_bytes(left_out.to_bytes())
    np.testing.assert_array_equal(restored.rows, left_out.rows)
    np.testing.assert_array_equal(restored.values, left_out.values)


def test_rows_that_are_left_out_for_their_labels_move_no_prediction_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by the share of their class, which the intercept would hold."""
    monkeypatch.setattr(spin.sparsify.ridge, "PENALTIES", (0.5,))
    monkeypatch.setattr(spin.sparsify.ridge, "MOST_ROWS", 40)
    monkeypatch.setattr(spin.sparsify.ridge, "_trusted", lambda left_out, y: np.arange(len(y)) >= 8)
    data = make_data(60)
    activations, used = make_activations(data.y), choose_rows(data)
    _, left_out = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    X, kept, others = standardize_all(activations, used), used[8:], np.setdiff1d(np.arange(60), used)
    targets = data.label_space.indicator(data.y).astype(float)
    lam = 0.5 * ((X[kept] - X[kept].mean(0)) ** 2).sum() / len(kept)
    expected = Ridge(alpha=lam).fit(X[kept], targets[kept]).predict(X[others])
    np.testing.assert_allclose(left_out.values[others], expected, atol=1e-4)


@pytest.mark.slow
def test_flipped_labels_are_found_among_few_documents_with_many_neurons() -> None:
    """Of 20 % flipped labels among 400 at least half, and more than a third of what is suspect.

    Each of 1,000 of 6,000 neurons moves a little with the class. Selected with the flipped labels, neurons repeat them:
    left-out predictions by the most important twentieth of these neurons find 13 % of the flips.
    """
    found, flips, suspects = 0, 0, 0
    for seed in range(4):
        draw = np.random.default_rng(seed)
        truth, flipped = draw.integers(0, 3, 400), draw.random(400) < 0.2
        X = draw.normal(size=(400, 6000)).astype(np.float32)
        X[:, :1000] += 0.12 * draw.normal(size=(3, 1000))[truth]
        y = np.where(flipped, (truth + draw.integers(1, 3, 400)) % 3, truth)
        data = TrainingData(y, (Fold(np.arange(320), np.arange(320, 400)),), THREE)
        _, left_out = fit_ridge(_reader(X), COLUMNS[:1], data)
        check = LabelCheck.of(left_out.values.clip(0, 1), y, THREE)
        found, flips = found + int((check.suspect & flipped).sum()), flips + int(flipped.sum())
        suspects += int(check.suspect.sum())
    assert found >= 0.5 * flips
    assert found >= 0.35 * suspects


@pytest.mark.parametrize("kind", ["multi-class", "multi-label"])
def test_importance_is_that_of_a_regression_on_all_columns(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On all labelled rows, and on the training rows of the fold; every class counts the same."""
    monkeypatch.setattr(spin.sparsify.ridge, "PENALTIES", (0.5,))
    monkeypatch.setattr(spin.sparsify.ridge, "find_suspects", lambda probabilities, y: np.zeros(len(y), bool))
    data = make_data(label_space=LabelSpace(("a", "b", "c"), multilabel=kind == "multi-label"))
    activations = make_activations(data.y, data.label_space)
    ridge, _ = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    assert [of_column.column for of_column in ridge] == COLUMNS
    X, targets = standardize(activations, data.rows), data.label_space.indicator(data.y).astype(float)
    actual = np.concatenate([of_column.importance for of_column in ridge])
    np.testing.assert_allclose(actual, expected_importance(X, targets, 0.5), rtol=1e-3, atol=1e-6)
    train = data.folds[0].train
    actual = np.concatenate([of_column.folds[0] for of_column in ridge])
    np.testing.assert_allclose(actual, expected_importance(X[train], targets[train], 0.5), rtol=1e-3, atol=1e-6)
    assert not any(of_column.importance[-1] > 1e-9 for of_column in ridge), "a constant neuron has no importance"


@pytest.mark.parametrize(("votes", "elected"), [((0.3, 1.0, 0.3, 3.0), 0.3), ((0.3, 1.0, 1.0, 0.3), 1.0)])
def test_all_rows_take_the_penalty_that_most_folds_chose(
    votes: Sequence[float], elected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of penalties that as many folds chose, the largest."""
    data = make_data()
    rows, activations = data.rows, make_activations(data.y)
    data = replace(data, folds=tuple(Fold(np.setdiff1d(rows, rows[k::4]), rows[k::4]) for k in range(4)))
    fit_part, wanted, tried = spin.sparsify.ridge._fit_part, iter(votes), []

    def choose(*part: Any) -> Any:
        *of_part, penalties = part
        tried.append(tuple(penalties))
        return fit_part(*of_part, [next(wanted, penalties[0])])

    monkeypatch.setattr(spin.sparsify.ridge, "_fit_part", choose)
    fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    assert tried == [spin.sparsify.ridge.PENALTIES] * 4 + [(elected,)]


def test_validation_labels_do_not_reach_the_importance_of_the_fold() -> None:
    data = make_data()
    activations = make_activations(data.y)
    before, _ = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    data.y[data.folds[0].valid] = (data.y[data.folds[0].valid] + 1) % 3
    after, _ = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.folds[0], other.folds[0])
        assert not np.array_equal(one.importance, other.importance)


def test_wrong_labels_choose_fewer_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quarter of the labels flipped, leaving out suspects finds more of the 20 neurons that know the class."""

    def count_hits() -> int:
        hits = 0
        for seed in range(8):
            draw = np.random.default_rng(seed)
            truth = draw.integers(0, 2, 500)
            X = draw.normal(size=(500, 300)).astype(np.float32)
            X[:, :20] += 0.3 * (truth[:, None] * 2 - 1)
            y = np.where(draw.random(500) < 0.25, 1 - truth, truth)
            data = TrainingData(y, (Fold(np.arange(400), np.arange(400, 500)),), LabelSpace(("a", "b")))
            [of_column], _ = fit_ridge(_reader(X), COLUMNS[:1], data)
            hits += int((np.argsort(-of_column.importance)[:20] < 20).sum())
        return hits

    without_suspects = count_hits()
    monkeypatch.setattr(spin.sparsify.ridge, "find_suspects", lambda probabilities, y: np.zeros(len(y), bool))
    assert without_suspects > count_hits()


def _reader(X: Floats) -> ReadRows:
    return lambda column, rows: X[rows]


def test_many_rows_are_sampled_in_the_proportions_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rare class keeps at least one row, and all results are those of the sample."""
    monkeypatch.setattr(spin.sparsify.ridge, "MOST_ROWS", 100)
    y = np.array([0] * 600 + [1] * 395 + [2] * 5)
    data = TrainingData(y, (Fold(np.arange(0, 1000, 2), np.arange(1, 1000, 2)),), THREE, seed=4)
    rows = choose_rows(data)
    counts = np.bincount(y[rows])
    assert counts.sum() == 100
    assert counts == pytest.approx([60, 39, 1], abs=2)
    assert counts.min() > 0
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() == choose_rows(data).tolist()


def test_left_out_predictions_are_by_other_groups() -> None:
    """Near-identical documents would vouch for the label of each other, as the documents of an author would."""
    draw = np.random.default_rng(0)
    X, targets = draw.normal(size=(40, 60)) + 1, draw.normal(size=(40, 2))
    groups = np.array([*[0] * 15, *[1, 2] * 5, *range(3, 18)], np.uint64)
    lam = 0.5 * ((X - X.mean(0)) ** 2).sum() / 40
    left_out = predict_left_out(torch.from_numpy(X @ X.T), torch.from_numpy(targets), 0.5, groups)
    for group in np.unique(groups):
        own = groups == group
        expected = Ridge(alpha=lam).fit(X[~own], targets[~own]).predict(X[own])
        np.testing.assert_allclose(left_out[own], expected, atol=1e-5)


def test_rows_of_one_group_have_finite_predictions() -> None:
    """There are no others to predict them by, and their block of the hat matrix has no inverse."""
    left_out = predict_left_out(torch.ones(2, 2), torch.eye(2), 0.5, np.zeros(2, np.uint64))
    assert torch.isfinite(left_out).all()


def test_rows_that_the_regression_has_not_used_are_predicted_if_their_groups_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All rows of a group take part, such as the answers of a thread after its question."""
    monkeypatch.setattr(spin.sparsify.ridge, "MOST_ROWS", 40)
    groups = np.repeat(np.arange(30), 2).astype(np.uint64)
    data = replace(make_data(60), groups=groups)
    activations, used = make_activations(data.y), choose_rows(data)
    assert len(used) > len(np.unique(groups[used]))
    _, left_out = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    others = [row for row in range(60) if groups[row] not in groups[used]]
    assert left_out.rows.tolist() == sorted([*used.tolist(), *others])


def test_importance_survives_storage() -> None:
    data = make_data()
    activations = make_activations(data.y)
    ridge, _ = fit_ridge(lambda column, rows: activations[column][rows], COLUMNS, data)
    restored = [RidgeImportance.from_bytes(of_column.column, of_column.to_bytes()) for of_column in ridge]
    for actual, expected in zip(restored, ridge, strict=True):
        assert actual.column == expected.column
        np.testing.assert_array_equal(actual.importance, expected.importance)
        np.testing.assert_array_equal(actual.folds, expected.folds)
