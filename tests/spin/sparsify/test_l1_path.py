"""The regularisation path reaches scikit-learn's minimum and reports its distance from it correctly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh
from sklearn.linear_model import LogisticRegression

from spin.activations.extract import extract
from spin.arrays import Floats
from spin.backbone.loading import load_backbone
from spin.settings import BackboneSettings
from spin.sites import FeatureColumn
from spin.sparsify.probe import class_weights
from spin.sparsify.solvers import l1_path
from spin.sparsify.solvers.batched_l1_path import BatchedPaths
from spin.sparsify.solvers.l1_path import TOLERANCE, LassoPaths, LogisticPaths, _gather, kkt_violation
from tests.support import tiny

Problem = tuple[Floats, Floats, Floats]
"""a design, its labels and the weights of its rows"""
SHARES = [0.7, 0.3, 0.1, 1 / 30]
"""the penalties that are compared, as shares of lam_max"""


def objective(X: Floats, y: Floats, s: Floats, w: Floats, b: float, lam: float) -> float:
    """The objective that the path minimises, in float64."""
    scores = X.astype(np.float64) @ w.astype(np.float64) + b
    return float(s.astype(np.float64) @ np.logaddexp(0, -y.astype(np.float64) * scores) + lam * np.abs(w).sum())


def sklearn_objective(X: Floats, y: Floats, s: Floats, lam: float) -> float:
    """The objective at scikit-learn's solution; the large scaling leaves its intercept almost unpenalised."""
    model = LogisticRegression(C=1, l1_ratio=1, solver="liblinear", intercept_scaling=1000, tol=1e-7, max_iter=20000)
    model.fit(X.astype(np.float64), y, sample_weight=s.astype(np.float64) / lam)
    return objective(X, y, s, model.coef_[0], float(model.intercept_[0]), lam)


def loop_violation(X: Floats, y: Floats, s: Floats, w: Floats, b: float, lam: float) -> float:
    """The largest violation of the optimality conditions as a share of lam, by a plain loop over coefficients."""
    n, p = X.shape
    slopes = []
    for i in range(n):
        score = sum(float(X[i, j]) * float(w[j]) for j in range(p)) + float(b)
        slopes.append(-float(s[i]) * float(y[i]) / (1 + np.exp(float(y[i]) * score)))
    largest = abs(sum(slopes))
    for j in range(p):
        gradient = sum(float(X[i, j]) * slopes[i] for i in range(n))
        if w[j] > 0:
            distance = abs(gradient + lam)
        elif w[j] < 0:
            distance = abs(gradient - lam)
        else:
            distance = max(abs(gradient) - lam, 0.0)
        largest = max(largest, distance)
    return largest / lam


def make_weights(y: Floats, kind: str) -> Floats:
    """Row weights: equal, half for each class, or random with zeros."""
    if kind == "drawn":
        draw = np.random.default_rng(5)
        s = draw.exponential(size=len(y)) * (draw.random(len(y)) < 0.7)
    else:
        s = np.where(y > 0, 1 / (y > 0).sum(), 1 / (y < 0).sum()) if kind == "balanced" else np.ones(len(y))
    return (s / s.sum()).astype(np.float32)


def make_correlated(seed: int, n: int = 300, p: int = 60) -> tuple[Floats, Floats]:
    """Standardised float32 features that share five factors, and unbalanced noisy labels from a few of them."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 5)) @ draw.normal(size=(5, p)) + draw.normal(size=(n, p))
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    probability = 1 / (1 + np.exp(-(X[:, :4] @ [2.0, -1.0, 1.0, 0.5] - 1)))
    return X, np.where(draw.random(n) < probability, 1, -1).astype(np.float32)


class SinglePath:
    """The path of one problem."""

    def __init__(self, X: Floats, y: Floats, s: Floats) -> None:
        self._paths = LogisticPaths(X, y[None], s[None])
        [self.lam_max] = self._paths.lam_max.tolist()

    def solve(self, lam: float) -> None:
        self._paths.solve(np.array([lam]))
        [self.w], [self.b] = self._paths.coef, self._paths.intercept.tolist()


@pytest.fixture(scope="module")
def activations(backbone_folder: Path) -> tuple[Floats, Floats]:
    """Standardised activations of a tiny BERT's middle FFN on real token sequences, and their labels."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    documents = tiny.make_documents(300, seed=3)
    columns = [FeatureColumn.parse("ffn.02.mean"), FeatureColumn.parse("ffn.02.max")]
    values_by_column = extract(backbone, [d["text"] for d in documents], columns).columns
    X = np.concatenate([values_by_column[c] for c in columns], axis=1).astype(np.float64)
    X = (X - X.mean(0)) / X.std(0)
    return X.astype(np.float32), np.array([1 if d["label"] == "good" else -1 for d in documents], np.float32)


@pytest.fixture(params=["even correlated", "balanced correlated", "drawn correlated", "even real", "drawn real"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """A random design and one of real activations, with rows weighted in three ways."""
    kind, source = request.param.split()
    X, y = request.getfixturevalue("activations") if source == "real" else make_correlated(0)
    return X, y, make_weights(y, kind)


def test_the_path_reaches_the_objective_of_scikit_learn(problem: Problem) -> None:
    """Along a warm-started path the objective agrees within 1e-4, and the KKT conditions hold."""
    path = SinglePath(*problem)
    for share in SHARES:
        lam = share * path.lam_max
        path.solve(lam)
        assert objective(*problem, path.w, path.b, lam) == pytest.approx(sklearn_objective(*problem, lam), rel=1e-4)
        assert kkt_violation(*problem, path.w, path.b, lam) <= 1e-2
    assert 0 < np.count_nonzero(path.w) < problem[0].shape[1]


def test_a_row_of_weight_three_counts_as_three_rows() -> None:
    """Integer weights give the scores of repeated rows; a row of weight zero is ignored."""
    X, y = make_correlated(3, n=120, p=20)
    counts = np.random.default_rng(0).integers(0, 4, 120)
    weighted = SinglePath(X, y, (counts / counts.sum()).astype(np.float32))
    repeats = np.repeat(np.arange(120), counts)
    repeated = SinglePath(X[repeats], y[repeats], np.full(len(repeats), 1 / len(repeats), np.float32))
    assert weighted.lam_max == pytest.approx(repeated.lam_max, rel=1e-4)
    for path in (weighted, repeated):
        path.solve(0.1 * weighted.lam_max)
    np.testing.assert_allclose(X @ weighted.w + weighted.b, X @ repeated.w + repeated.b, atol=0.02)


def test_lam_max_is_the_smallest_penalty_without_a_neuron(problem: Problem) -> None:
    """At lam_max the solution is empty with the weighted log odds as intercept; just below it, a neuron is selected."""
    X, y, s = problem
    path = SinglePath(X, y, s)
    path.solve(path.lam_max)
    assert not path.w.any()
    positive_share = s[y > 0].sum(dtype=np.float64)
    assert path.b == pytest.approx(np.log(positive_share / (1 - positive_share)), abs=1e-4)
    assert path.lam_max == pytest.approx(np.abs(X.T @ (s * ((y > 0) - positive_share))).max(), rel=1e-4)
    path.solve(0.99 * path.lam_max)
    assert path.w.any()


def test_a_warm_start_does_not_change_the_solution(problem: Problem) -> None:
    """The end of a path is the solution of a path that goes there directly."""
    warm, cold = SinglePath(*problem), SinglePath(*problem)
    lam = warm.lam_max * SHARES[-2]
    for share in np.geomspace(1, SHARES[-2], 8):
        warm.solve(warm.lam_max * share)
    cold.solve(lam)
    assert objective(*problem, warm.w, warm.b, lam) == pytest.approx(objective(*problem, cold.w, cold.b, lam), rel=1e-5)
    np.testing.assert_allclose(problem[0] @ warm.w + warm.b, problem[0] @ cold.w + cold.b, atol=0.02)


@pytest.mark.parametrize("kind", ["even", "drawn"])
def test_kkt_violation_equals_a_plain_loop(kind: str) -> None:
    """At solutions, where it is small, and at arbitrary points, where it is large."""
    X, y = make_correlated(2, n=80, p=12)
    problem = X, y, make_weights(y, kind)
    path = SinglePath(*problem)
    lam = 0.2 * path.lam_max
    path.solve(lam)
    expected = loop_violation(*problem, path.w, path.b, lam)
    assert kkt_violation(*problem, path.w, path.b, lam) == pytest.approx(expected, abs=1e-4)
    draw = np.random.default_rng(0)
    for _ in range(5):
        w, b = draw.normal(size=12) * (draw.random(12) < 0.5), float(draw.normal())
        expected = loop_violation(*problem, w, b, lam)
        assert expected > 0.1
        assert kkt_violation(*problem, w, b, lam) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 40), st.integers(1, 30), st.booleans(), st.booleans(), st.booleans())
def test_every_small_problem_is_solved(
    seed: int, n: int, p: int, duplicates: bool, constant: bool, weighted: bool
) -> None:
    """The KKT conditions hold for more features than rows, separable classes, duplicate and constant features."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, p))
    X = (X - X.mean(0)) / X.std(0)
    if constant:
        X[:, 0] = 0
    if duplicates:
        X = np.concatenate([X, X], axis=1)
    X = X.astype(np.float32)
    y = np.where(np.arange(n) < draw.integers(1, n), 1, -1).astype(np.float32)
    s = draw.exponential(size=n) + 0.01 if weighted else np.ones(n)
    s = (s / s.sum()).astype(np.float32)
    path = SinglePath(X, y, s)
    for share in (0.5, 0.2, 0.05):
        lam = share * (path.lam_max or 1.0)
        path.solve(lam)
        assert np.isfinite(path.w).all()
        # on so few rows float32 may see no further descent when the penalty is minute
        assert kkt_violation(X, y, s, path.w, path.b, lam) * lam <= 1e-2 * lam + 5e-5
    assert not (constant and path.w[0])


# Many problems


def make_rare_classes(n: int = 3000, p: int = 24, K: int = 12) -> tuple[Floats, Floats, Floats]:
    """A design, and exclusive targets (K, n) and weights of which the rarest class has about 1 % of the rows."""
    X, _ = make_correlated(7, n, p)
    draw = np.random.default_rng(7)
    logits = 2 * X @ draw.normal(size=(p, K)) / p**0.5 - np.log(np.arange(K) + 1) + draw.gumbel(size=(n, K))
    targets = np.where(logits.argmax(1) == np.arange(K)[:, None], 1, -1).astype(np.float32)
    return X, targets, class_weights(targets, "none")


def test_rare_classes_are_solved_to_the_tolerance() -> None:
    """All classes of a path together, each at its own penalties; the objective is that of scikit-learn."""
    X, targets, weights = make_rare_classes()
    paths = LogisticPaths(X, targets, weights)
    for share in np.geomspace(1, SHARES[-1], 8):
        paths.solve(share * paths.lam_max)
        assert kkt_violation(X, targets, weights, paths.coef, paths.intercept, share * paths.lam_max) <= TOLERANCE
    for k in (0, 5, 11):
        problem, lam = (X, targets[k], weights[k]), SHARES[-1] * paths.lam_max[k]
        actual = objective(*problem, paths.coef[k], float(paths.intercept[k]), lam)
        assert actual == pytest.approx(sklearn_objective(*problem, lam), rel=1e-4)


def test_problems_solved_together_equal_problems_solved_alone() -> None:
    X, targets, weights = make_rare_classes()
    together = LogisticPaths(X, targets, weights)
    for share in SHARES:
        together.solve(share * together.lam_max)
    for k in (0, 11):
        alone = SinglePath(X, targets[k], weights[k])
        assert alone.lam_max == pytest.approx(together.lam_max[k], rel=1e-5)
        for share in SHARES:
            alone.solve(share * together.lam_max[k])
        scores = X @ together.coef[k] + together.intercept[k]
        np.testing.assert_allclose(scores, X @ alone.w + alone.b, atol=0.02)


def test_the_second_derivatives_of_a_rare_class_take_few_rows_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Gram matrix of all rows stands for the others; the more rows are taken, the closer is the model."""
    X, targets, weights = make_rare_classes()
    paths = LogisticPaths(X, targets, weights)
    for share in SHARES:
        paths.solve(share * paths.lam_max)
    probability = 1 / (1 + np.exp(-(X @ paths.coef[-1] + paths.intercept[-1])))
    curvature = (weights[-1] * probability * (1 - probability)).astype(np.float32)
    taken: list[int] = []
    monkeypatch.setattr(l1_path, "_gather", lambda X, rows, *rest: taken.append(len(rows)) or _gather(X, rows, *rest))
    columns = np.arange(3, 20)
    X = X + np.float32(0.5)  # so that the intercept has something to do with the features
    expected = _derivatives(X[:, columns], curvature)
    for curved, low, high in ((2.0, 0.4, 2.0), (1.0, 0.6, 1.5), (0.0, 0.9999, 1.0001)):
        model = l1_path._Design(X).model(columns, curvature, curved)
        actual = np.block([[model.hessian, model.cross[:, None]], [model.cross, model.total]])
        ratios = eigh(actual, expected, eigvals_only=True)
        assert low <= ratios.min() <= ratios.max() <= high
    assert taken[0] < taken[1] < len(X) / 2
    assert taken[2] == len(X)


def _derivatives(X: Floats, curvature: Floats) -> Floats:
    """The second derivatives of coefficients and intercept, from all rows in float64."""
    extended = np.c_[X, np.ones(len(X))].astype(np.float64)
    return np.asarray(extended.T @ (curvature[:, None] * extended))


def test_a_penalty_starts_where_the_last_two_solutions_point() -> None:
    """The line over the logarithm of the penalty gives the coefficient that lies on it; a sign does not change."""
    problem = l1_path._Problem.at_zero(np.ones(2, np.float32), np.ones(2, np.float32), 3)
    ahead = []
    for lam, w, b in ((8.0, [1.0, 2.0, 0.0], 1.0), (4.0, [2.0, 0.5, 0.0], 1.5), (1.0, [0.0, 0.0, 0.0], 0.0)):
        problem.begin(lam, problem.scores)
        ahead.append(problem.extrapolate())
        problem.w, problem.b = np.array(w), b
    assert not any(change.any() or intercept for change, intercept in ahead[:2])
    change, intercept = ahead[2]
    assert (np.array([2.0, 0.5, 0.0]) + change).tolist() == pytest.approx([4.0, 0.0, 0.0])
    assert 1.5 + intercept == pytest.approx(2.5)


# Many paths, and the two solvers


def make_batch(kind: str) -> tuple[list[Floats], Floats, Floats]:
    """Three designs and three targets that only the first explains, with 7 % of the rows in the last class."""
    (X, _), *others = (make_correlated(seed, 240, 40) for seed in (0, 1, 2))
    draw = np.random.default_rng(0)
    logits = X[:, :3] @ np.array([[2.0, 0, 1], [-1, 1, 0], [0, 1, 2]]) + [0.5, 0, -4] + draw.gumbel(size=(240, 3))
    targets = np.where(logits.argmax(1) == np.arange(3)[:, None], 1, -1).astype(np.float32)
    return [X, *(design for design, _ in others)], targets, class_weights(targets, kind)


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_every_solution_of_many_paths_has_the_objective_of_scikit_learn(kind: str) -> None:
    """Each design and problem has its own penalties, which may be divided over several calls."""
    designs, targets, weights = make_batch(kind)
    paths = LassoPaths(designs, targets, weights)
    expected = [[SinglePath(X, y, s).lam_max for y, s in zip(targets, weights, strict=True)] for X in designs]
    np.testing.assert_allclose(paths.lam_max, expected, rtol=1e-5)
    lams = np.array(SHARES)[:, None, None] * np.array(expected)
    parts = [paths.solve(lams[:3]), paths.solve(lams[3:])]
    coef, intercept = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert coef.shape == (4, 3, 3, 40)
    assert intercept.shape == (4, 3, 3)
    assert coef.dtype == intercept.dtype == np.float32
    for at, p, k in np.ndindex(4, 3, 3):
        problem = designs[p], targets[k], weights[k]
        actual = objective(*problem, coef[at, p, k], float(intercept[at, p, k]), lams[at, p, k])
        assert actual == pytest.approx(sklearn_objective(*problem, lams[at, p, k]), rel=1e-4)


def test_a_class_that_every_row_has_gets_no_neurons() -> None:
    """Its smallest penalty without neurons is rounding noise; a larger one leaves the solution at zero."""
    X = make_batch("none")[0][0]
    targets = np.ones((1, len(X)), np.float32)
    paths = LassoPaths([X], targets, class_weights(targets, "none"))
    assert paths.lam_max.max() < 1e-9
    coef, intercept = paths.solve(np.array([1.0, 0.1, 0.01])[:, None, None])
    assert not coef.any()
    assert np.isfinite(intercept).all()


@pytest.mark.parametrize("kind", ["none", "balanced"])
def test_the_batched_solver_agrees_with_the_plain_solver(kind: str) -> None:
    """In lam_max, objective and scores, for several designs, targets and class weights."""
    designs, targets, weights = make_batch(kind)
    plain, batched = LassoPaths(designs, targets, weights), BatchedPaths(designs, targets, weights)
    np.testing.assert_allclose(batched.lam_max, plain.lam_max, rtol=1e-5)
    lams = np.array(SHARES)[:, None, None] * plain.lam_max
    (coef, b), (batched_coef, batched_b) = plain.solve(lams), batched.solve(lams)
    for at, p, k in np.ndindex(4, 3, 3):
        problem, lam = (designs[p], targets[k], weights[k]), lams[at, p, k]
        plain_w, batched_w = coef[at, p, k], batched_coef[at, p, k]
        assert objective(*problem, plain_w, float(b[at, p, k]), lam) == pytest.approx(
            objective(*problem, batched_w, float(batched_b[at, p, k]), lam), rel=5e-5
        )
        np.testing.assert_allclose(
            designs[p] @ plain_w + b[at, p, k], designs[p] @ batched_w + batched_b[at, p, k], atol=0.02
        )
