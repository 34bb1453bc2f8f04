"""The regularisation path finds the minimum that scikit-learn finds, and says truly how far from it it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from spin.backbone import load_backbone
from spin.extract import extract
from spin.lasso import LogisticPath, kkt_violation
from spin.settings import BackboneSettings
from spin.sites import Column
from tests import tiny

Floats = NDArray[np.floating]
SHARES = [0.7, 0.3, 0.1, 1 / 30]
"""of lam_max: the penalties that are compared"""


def objective(X: Floats, y: Floats, w: Floats, b: float, lam: float) -> float:
    """What the path minimises, in float64."""
    scores = X.astype(np.float64) @ w + b
    return float(np.logaddexp(0, -y.astype(np.float64) * scores).mean() + lam * np.abs(w).sum())


def reference(X: Floats, y: Floats, lam: float) -> float:
    """The objective at scikit-learn's solution; a large scaling leaves its intercept all but unpenalised."""
    model = LogisticRegression(
        C=1 / (len(y) * lam), l1_ratio=1, solver="liblinear", intercept_scaling=100, tol=1e-7, max_iter=20000
    ).fit(X.astype(np.float64), y)
    return objective(X, y, model.coef_[0], float(model.intercept_[0]), lam)


def loop_violation(X: Floats, y: Floats, w: Floats, b: float, lam: float) -> float:
    """The optimality conditions, one coefficient at a time in plain Python, as a share of lam."""
    n, p = X.shape
    slopes = []
    for i in range(n):
        score = sum(float(X[i, j]) * float(w[j]) for j in range(p)) + float(b)
        slopes.append(-float(y[i]) / (1 + np.exp(float(y[i]) * score)) / n)
    worst = abs(sum(slopes))
    for j in range(p):
        gradient = sum(float(X[i, j]) * slopes[i] for i in range(n))
        if w[j] > 0:
            distance = abs(gradient + lam)
        elif w[j] < 0:
            distance = abs(gradient - lam)
        else:
            distance = max(abs(gradient) - lam, 0.0)
        worst = max(worst, distance)
    return worst / lam


def correlated(seed: int, n: int = 300, p: int = 60) -> tuple[Floats, Floats]:
    """Standardised float32 features that share five factors, and unbalanced noisy labels from a few of them."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 5)) @ draw.normal(size=(5, p)) + draw.normal(size=(n, p))
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    chance = 1 / (1 + np.exp(-(X[:, :4] @ [2.0, -1.0, 1.0, 0.5] - 1)))
    return X, np.where(draw.random(n) < chance, 1, -1).astype(np.float32)


@pytest.fixture(scope="module")
def activations(backbone_folder: Path) -> tuple[Floats, Floats]:
    """Standardised activations of a tiny BERT's middle FFN on real token sequences, and their labels."""
    backbone = load_backbone(BackboneSettings(model=str(backbone_folder), dtype="float32", device="cpu"))
    documents = tiny.documents(300, seed=3)
    columns = [Column.parse("ffn.02.mean"), Column.parse("ffn.02.max")]
    found = extract(backbone, [d["text"] for d in documents], columns).columns
    X = np.concatenate([found[c] for c in columns], axis=1).astype(np.float64)
    X = (X - X.mean(0)) / X.std(0)
    return X.astype(np.float32), np.array([1 if d["label"] == "good" else -1 for d in documents], np.float32)


@pytest.fixture(params=["correlated 0", "correlated 1", "activations"])
def problem(request: pytest.FixtureRequest) -> tuple[Floats, Floats]:
    """Two random problems and a real one."""
    if request.param == "activations":
        return request.getfixturevalue("activations")
    return correlated(int(request.param.split()[1]))


def test_path_reaches_the_minimum_of_scikit_learn(problem: tuple[Floats, Floats]) -> None:
    """Along a warm-started path the objective is scikit-learn's within 1e-4, and the KKT conditions hold."""
    X, y = problem
    path = LogisticPath(X, y)
    for share in SHARES:
        lam = share * path.lam_max
        path.solve(lam)
        assert objective(X, y, path.w, path.b, lam) == pytest.approx(reference(X, y, lam), rel=1e-4)
        assert kkt_violation(X, y, path.w, path.b, lam) <= 1e-2
    assert 0 < np.count_nonzero(path.w) < X.shape[1]


def test_lam_max_is_the_smallest_penalty_without_a_neuron(problem: tuple[Floats, Floats]) -> None:
    """At lam_max the solution is zero with the classes' log odds as intercept; just below it is not."""
    X, y = problem
    path = LogisticPath(X, y)
    path.solve(path.lam_max)
    assert not path.w.any()
    share = (y > 0).mean()
    assert path.b == pytest.approx(np.log(share / (1 - share)), abs=1e-4)
    assert path.lam_max == pytest.approx(np.abs(X.T @ ((y > 0) - share)).max() / len(y), rel=1e-4)
    path.solve(0.99 * path.lam_max)
    assert path.w.any()


def test_a_warm_start_changes_nothing(problem: tuple[Floats, Floats]) -> None:
    """The solution at the end of a path is that of a path which jumps there at once."""
    X, y = problem
    warm, cold = LogisticPath(X, y), LogisticPath(X, y)
    lam = warm.lam_max * SHARES[-2]
    for share in np.geomspace(1, SHARES[-2], 8):
        warm.solve(warm.lam_max * share)
    cold.solve(lam)
    assert objective(X, y, warm.w, warm.b, lam) == pytest.approx(objective(X, y, cold.w, cold.b, lam), rel=1e-5)
    np.testing.assert_allclose(X @ warm.w + warm.b, X @ cold.w + cold.b, atol=0.02)


def test_kkt_violation_equals_a_plain_loop() -> None:
    """At solutions, where it is small, and at arbitrary points, where it is not."""
    X, y = correlated(2, n=80, p=12)
    path = LogisticPath(X, y)
    lam = 0.2 * path.lam_max
    path.solve(lam)
    assert kkt_violation(X, y, path.w, path.b, lam) == pytest.approx(
        loop_violation(X, y, path.w, path.b, lam), abs=1e-4
    )
    draw = np.random.default_rng(0)
    for _ in range(5):
        w, b = draw.normal(size=12) * (draw.random(12) < 0.5), float(draw.normal())
        found = loop_violation(X, y, w, b, lam)
        assert found > 0.1
        assert kkt_violation(X, y, w, b, lam) == pytest.approx(found, rel=1e-3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 40), st.integers(1, 30), st.booleans(), st.booleans())
def test_every_small_problem_is_solved(seed: int, n: int, p: int, twins: bool, silent: bool) -> None:
    """More features than rows, separable classes, twin and silent features: the KKT conditions hold all along."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, p))
    X = (X - X.mean(0)) / X.std(0)
    if silent:
        X[:, 0] = 0
    if twins:
        X = np.concatenate([X, X], axis=1)
    X = X.astype(np.float32)
    y = np.where(np.arange(n) < draw.integers(1, n), 1, -1).astype(np.float32)
    path = LogisticPath(X, y)
    for share in (0.5, 0.2, 0.05):
        lam = share * (path.lam_max or 1.0)
        path.solve(lam)
        assert np.isfinite(path.w).all()
        # on so few rows float32 may see no further descent when the penalty is minute
        assert kkt_violation(X, y, path.w, path.b, lam) * lam <= 1e-2 * lam + 5e-5
    assert not (silent and path.w[0])
