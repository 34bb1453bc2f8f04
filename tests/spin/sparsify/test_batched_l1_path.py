"""The batched solver reaches scikit-learn's minimum for every design, target and penalty of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from spin.arrays import Floats
from spin.sparsify.solvers.batched_l1_path import BatchedPaths
from spin.sparsify.solvers.fista import Regressions

SHARES = np.array([0.7, 0.3, 0.1, 1 / 30])
"""the penalties that are compared, as shares of lam_max"""


def make_design(seed: int, n: int = 300, p: int = 60) -> Floats:
    """Standardised float32 features that share five factors; the last feature is constant."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 5)) @ draw.normal(size=(5, p)) + draw.normal(size=(n, p))
    X = (X - X.mean(0)) / X.std(0)
    X[:, -1] = 0
    return X.astype(np.float32)


def make_problems(X: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """Three one-vs-rest targets (3, n), 8 % of the rows in the last class, and three kinds of row weights (3, n)."""
    draw = np.random.default_rng(seed)
    n = len(X)
    logits = X[:, :3] @ np.array([[2.0, 0, 1], [-1, 1, 0], [0, 1, 2]]) + [0.5, 0, -4] + draw.gumbel(size=(n, 3))
    targets = np.where(logits.argmax(1) == np.arange(3)[:, None], 1, -1)
    balanced = np.where(targets[2] > 0, 1 / (targets[2] > 0).sum(), 1 / (targets[2] < 0).sum())
    weights = np.stack([np.ones(n), draw.exponential(size=n) * (draw.random(n) < 0.7), balanced])
    return targets.astype(np.float32), weights / weights.sum(1, keepdims=True)


def objective(X: Floats, y: Floats, s: Floats, w: Floats, b: float, lam: float) -> float:
    """The objective that the solver minimises, in float64."""
    scores = X.astype(np.float64) @ w.astype(np.float64) + b
    return float(s @ np.logaddexp(0, -y * scores) + lam * np.abs(w).sum())


def sklearn_objective(X: Floats, y: Floats, s: Floats, lam: float) -> float:
    """The objective at scikit-learn's solution; the large scaling leaves its intercept almost unpenalised."""
    model = LogisticRegression(C=1, l1_ratio=1, solver="liblinear", intercept_scaling=1000, tol=1e-8, max_iter=20000)
    model.fit(X.astype(np.float64), y, sample_weight=s / lam)
    return objective(X, y, s, model.coef_[0], float(model.intercept_[0]), lam)


def kkt_violation(X: Floats, y: Floats, s: Floats, w: Floats, b: float, lam: float) -> float:
    """The largest violation of the optimality conditions, in float64, as a share of lam."""
    X, w = X.astype(np.float64), w.astype(np.float64)
    slopes = -s * y / (1 + np.exp(y * (X @ w + b)))
    gradient = X.T @ slopes
    distance = np.where(w != 0, np.abs(gradient + lam * np.sign(w)), np.maximum(np.abs(gradient) - lam, 0))
    return float(max(distance.max(), abs(slopes.sum())) / lam)


def largest_violation(
    designs: list[Floats], targets: Floats, weights: Floats, lams: Floats, coef: Floats, b: Floats
) -> float:
    """The largest violation over all solutions."""
    return max(
        kkt_violation(X, y, s, coef[at, p, k], float(b[at, p, k]), lams[at, p, k])
        for at in range(len(lams))
        for p, X in enumerate(designs)
        for k, (y, s) in enumerate(zip(targets, weights, strict=True))
    )


def loop_lam_max(X: Floats, y: Floats, s: Floats) -> float:
    """The smallest penalty of an empty model by its formula: the largest slope at zero coefficients."""
    return float(np.abs(X.T.astype(np.float64) @ (s * ((y > 0) - s @ (y > 0)))).max())


@pytest.fixture(scope="module")
def designs() -> list[Floats]:
    return [make_design(0), make_design(1)]


@pytest.fixture(scope="module")
def batch(designs: list[Floats]) -> tuple[list[Floats], Floats, Floats]:
    """Two designs with the same three targets, which only the first design explains well."""
    return designs, *make_problems(designs[0])


@pytest.mark.parametrize("in_blocks", [False, True])
def test_every_solution_has_the_objective_of_scikit_learn(
    batch: tuple[list[Floats], Floats, Floats], in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four penalties are solved in one call under three kinds of weights; every solution meets the KKT conditions.

    On a device without room for all rows it goes through blocks of 100.
    """
    designs, targets, weights = batch
    if in_blocks:
        monkeypatch.setattr("spin.sparsify.solvers.batched_l1_path._room", lambda device: 0)
        monkeypatch.setattr("spin.sparsify.solvers.batched_l1_path._BLOCK_BYTES", 100 * 4 * 2 * 61)
    paths = BatchedPaths(*batch)
    assert [block.shape[1] for block in paths._blocks] == ([100] * 3 if in_blocks else [300])
    lams = SHARES[:, None, None] * paths.lam_max
    coef, intercept = paths.solve(lams)
    assert coef.shape == (4, 2, 3, 60)
    assert intercept.shape == (4, 2, 3)
    assert coef.dtype == intercept.dtype == np.float32
    for at, p, k in np.ndindex(4, 2, 3):
        problem = designs[p], targets[k], weights[k]
        actual = objective(*problem, coef[at, p, k], float(intercept[at, p, k]), lams[at, p, k])
        assert actual == pytest.approx(sklearn_objective(*problem, lams[at, p, k]), rel=2e-5)
    assert largest_violation(*batch, lams, coef, intercept) <= 1e-2
    assert not coef[..., -1].any(), "a constant neuron has no weight"
    assert (np.count_nonzero(coef, axis=3)[-1] > np.count_nonzero(coef, axis=3)[0]).all()


def test_designs_solved_together_equal_designs_solved_alone(batch: tuple[list[Floats], Floats, Floats]) -> None:
    """Each problem has its own penalties, and a batch of two gives the scores of two separate batches."""
    designs, targets, weights = batch
    together = BatchedPaths(*batch)
    lams = SHARES[:, None, None] * together.lam_max
    coef, intercept = together.solve(lams)
    for p, X in enumerate(designs):
        alone = BatchedPaths([X], targets, weights)
        assert alone.lam_max[0].tolist() == pytest.approx(together.lam_max[p].tolist(), rel=1e-6)
        alone_coef, alone_intercept = alone.solve(lams[:, [p]])
        actual = coef[:, p] @ X.T + intercept[:, p, :, None]
        expected = alone_coef[:, 0] @ X.T + alone_intercept[:, 0, :, None]
        np.testing.assert_allclose(actual, expected, atol=0.02)


def test_lam_max_is_the_smallest_penalty_without_a_neuron(batch: tuple[list[Floats], Floats, Floats]) -> None:
    """At lam_max the intercept is the weighted log odds; just below it, every problem selects a neuron."""
    designs, targets, weights = batch
    paths = BatchedPaths(*batch)
    for X, lam_max in zip(designs, paths.lam_max, strict=True):
        expected = [loop_lam_max(X, y, s) for y, s in zip(targets, weights, strict=True)]
        assert lam_max.tolist() == pytest.approx(expected, rel=1e-4)
    coef, intercept = paths.solve(np.array([1.0, 0.99])[:, None, None] * paths.lam_max)
    assert not coef[0].any()
    positive_share = (weights * (targets > 0)).sum(1)
    np.testing.assert_allclose(
        intercept[0], np.log(positive_share / (1 - positive_share))[None].repeat(2, 0), atol=1e-3
    )
    assert coef[1].any(2).all()


@pytest.mark.slow
def test_a_warm_start_does_not_change_the_solution(batch: tuple[list[Floats], Floats, Floats]) -> None:
    """A path that is extended penalty by penalty ends where a cold start does.

    So does one that goes back to larger penalties.
    """
    warm = BatchedPaths(*batch)
    for share in np.geomspace(1, SHARES[-1], 6):
        coef, intercept = warm.solve(share * warm.lam_max[None])
    cold = BatchedPaths(*batch)
    lams = SHARES[::-1, None, None] * cold.lam_max
    cold_coef, cold_intercept = cold.solve(lams)
    back_coef, back_intercept = warm.solve(lams)
    for p, X in enumerate(batch[0]):
        expected = cold_coef[:, p] @ X.T + cold_intercept[:, p, :, None]
        np.testing.assert_allclose(coef[0, p] @ X.T + intercept[0, p, :, None], expected[0], atol=0.02)
        np.testing.assert_allclose(back_coef[:, p] @ X.T + back_intercept[:, p, :, None], expected, atol=0.02)


def test_penalties_that_are_solved_already_need_no_step(
    batch: tuple[list[Floats], Floats, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call with penalties of the first call, in another order, returns the same solutions."""
    paths = BatchedPaths(*batch)
    lams = SHARES[:, None, None] * paths.lam_max
    coef, intercept = paths.solve(lams)
    monkeypatch.setattr("spin.sparsify.solvers.fista._Batch.step", lambda *_: pytest.fail("a step"))
    again, again_intercept = paths.solve(lams[[2, 0]])
    np.testing.assert_array_equal(again, coef[[2, 0]])
    np.testing.assert_array_equal(again_intercept, intercept[[2, 0]])


@pytest.mark.parametrize("balanced", [False, True])
def test_a_rare_class_is_learnt(balanced: bool) -> None:
    """One row in a hundred is positive, and the weights move the mean, so that the design is not centred."""
    X = make_design(4, n=600, p=30)
    rare = np.argsort(X[:, 0] + X[:, 1])[-6:]
    targets = np.full((1, 600), -1.0)
    targets[0, rare] = 1
    weights = np.where(targets > 0, 1 / 12, 1 / 1188) if balanced else np.full((1, 600), 1 / 600)
    paths = BatchedPaths([X], targets, weights)
    lams = SHARES[:, None, None] * paths.lam_max
    coef, intercept = paths.solve(lams)
    assert largest_violation([X], targets, weights, lams, coef, intercept) <= 1e-2
    for at in range(len(lams)):
        actual = objective(X, targets[0], weights[0], coef[at, 0, 0], float(intercept[at, 0, 0]), lams[at, 0, 0])
        assert actual == pytest.approx(sklearn_objective(X, targets[0], weights[0], lams[at, 0, 0]), rel=1e-3)


def test_a_target_with_a_single_class_gets_no_neurons(
    batch: tuple[list[Floats], Floats, Floats],
) -> None:
    """Its coefficients are zero, and the other targets of the batch are still solved to optimality."""
    designs, targets, weights = batch
    targets = np.concatenate([targets, -np.ones_like(targets[:1])])
    weights = np.concatenate([weights, weights[:1]])
    paths = BatchedPaths(designs, targets, weights)
    assert paths.lam_max[:, 3].max() < 1e-9
    lams = SHARES[:, None, None] * np.where(paths.lam_max > 1e-9, paths.lam_max, 1)
    coef, intercept = paths.solve(lams)
    assert not coef[:, :, 3].any()
    assert largest_violation(designs, targets, weights, lams, coef, intercept) <= 1e-2


def test_products_are_in_full_float32_whatever_precision_the_process_has_set(
    batch: tuple[list[Floats], Floats, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The solver ignores a lower matmul precision and leaves the setting as it was."""
    precisions = set()
    gradient = Regressions.gradient

    def spy(self: Regressions, *args: torch.Tensor) -> torch.Tensor:
        precisions.add(torch.get_float32_matmul_precision())
        return gradient(self, *args)

    monkeypatch.setattr(Regressions, "gradient", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        paths = BatchedPaths(*batch)
        paths.solve(0.5 * paths.lam_max[None])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions == {"highest"}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 40), st.integers(1, 30), st.booleans(), st.booleans())
def test_every_small_problem_is_solved(seed: int, n: int, p: int, duplicates: bool, constant: bool) -> None:
    """The KKT conditions hold for more features than rows, separable classes, duplicate and constant features."""
    draw = np.random.default_rng(seed)
    designs = []
    for _ in range(2):
        X = draw.normal(size=(n, p))
        X = (X - X.mean(0)) / X.std(0)
        if constant:
            X[:, 0] = 0
        designs.append((np.concatenate([X, X], axis=1) if duplicates else X).astype(np.float32))
    targets = np.stack([np.where(np.arange(n) < draw.integers(1, n), 1, -1) for _ in range(2)]).astype(np.float32)
    weights = draw.exponential(size=(2, n)) + 0.01
    weights /= weights.sum(1, keepdims=True)
    paths = BatchedPaths(designs, targets, weights)
    lams = np.array([0.5, 0.2, 0.05])[:, None, None] * np.where(paths.lam_max > 1e-9, paths.lam_max, 1)
    coef, intercept = paths.solve(lams)
    assert np.isfinite(coef).all()
    assert largest_violation(designs, targets, weights, lams, coef, intercept) <= 2e-2, "float32 rounds with six rows"
    assert not (constant and coef[..., 0].any())
