"""The linear head is scikit-learn's logistic regression of scaled features, for every kind of task and penalty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from spin.arrays import Floats
from spin.heads.linear_head import LinearHead, Penalty
from spin.integrate.fit_linear import Design, fit_linear
from spin.process_group import ProcessGroup

STRENGTHS = (0.1, 1.0, 10.0)


def design(classes: int, *, exclusive: bool = True, weighted: bool = False, n: int = 240, p: int = 15) -> Design:
    """Standardised, correlated features of overlapping, unbalanced classes, the first of which speak loudest."""
    draw = np.random.default_rng(classes)
    X = draw.normal(size=(n, 4)) @ draw.normal(size=(4, p)) / 2 + draw.normal(size=(n, p))
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    drift = draw.gumbel(size=(n, classes)) if exclusive else draw.logistic(size=(n, classes)) - 1
    logits = X[:, :classes] * 1.5 + np.linspace(0, -1, classes) + drift
    has = logits.argmax(1)[:, None] == np.arange(classes) if exclusive else logits > 0
    weights = draw.exponential(size=(n, 1 if exclusive else classes)) if weighted else np.ones((n, 1))
    scales = np.geomspace(3, 0.1, p).astype(np.float32)
    weights = (weights / weights.sum(0)).astype(np.float32)
    return Design(X, has, weights, scales, exclusive, ProcessGroup())


def loss(design: Design, logits: Floats) -> float:
    """The weighted loss in float64, one row after another."""
    total = 0.0
    for row, has, s in zip(logits.astype(np.float64), design.has, design.weights.astype(np.float64), strict=True):
        if design.exclusive:
            total += float(s[0] * (np.log(np.exp(row - row.max()).sum()) + row.max() - row[has][0]))
        else:
            total += float((s * np.logaddexp(0, np.where(has, -row, row))).sum())
    return total


def objective(design: Design, head: LinearHead, penalty: Penalty, l1: float) -> float:
    """What the head minimises; `l1` is the penalty itself."""
    V = head.coef.astype(np.float64) / unit(design)
    l2 = 1 / (penalty.strength * len(design.X))
    logits = design.X.astype(np.float64) @ head.coef.T.astype(np.float64) + head.intercept
    return loss(design, logits) + l1 * np.abs(V).sum() + l2 * (V**2).sum() / 2


def unit(design: Design) -> Floats:
    scales = design.scales.astype(np.float64)
    return scales / np.sqrt((scales**2).sum())


def slopes(design: Design, logits: Floats) -> tuple[Floats, Floats]:
    """The loss by V (p, K) and by the intercepts (K,), in float64."""
    logits = logits.astype(np.float64)
    if design.exclusive:
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = odds / odds.sum(1, keepdims=True)
    else:
        probabilities = 1 / (1 + np.exp(-logits))
    residual = design.weights * (probabilities - design.has)
    return (design.X * unit(design)).T @ residual, residual.sum(0)


def steepest(design: Design) -> float:
    """The smallest L1 penalty at which every coefficient is zero: the largest slope of the null model."""
    share = (design.weights.astype(np.float64) * design.has).sum(0).clip(1e-6, 1 - 1e-6)
    null = np.log(share) if design.exclusive else np.log(share / (1 - share))
    return float(np.abs(slopes(design, np.tile(null, (len(design.X), 1)))[0]).max())


def violation(design: Design, head: LinearHead, penalty: Penalty) -> float:
    """The optimality conditions, one coefficient at a time, as a share of the steepest slope."""
    top = steepest(design)
    l1, l2 = penalty.l1 * top, 1 / (penalty.strength * len(design.X))
    by_V, by_intercept = slopes(design, design.X.astype(np.float64) @ head.coef.T + head.intercept)
    worst = float(np.abs(by_intercept).max())
    for j, k in np.ndindex(by_V.shape):
        v = float(head.coef[k, j]) / unit(design)[j]
        slope = by_V[j, k] + l2 * v
        worst = max(worst, abs(slope + l1 * np.sign(v)) if v else abs(slope) - l1)
    return worst / top


def reference(design: Design, strength: float) -> Floats:
    """Probabilities (n, K) of scikit-learn's logistic regressions."""
    X = design.X.astype(np.float64) * unit(design)
    rows = len(X) * np.broadcast_to(design.weights, design.has.shape).astype(np.float64)
    options = {"tol": 1e-9, "max_iter": 10000}
    if not design.exclusive:
        return np.stack(
            [
                LogisticRegression(C=strength, **options).fit(X, has, sample_weight=s).predict_proba(X)[:, 1]
                for has, s in zip(design.has.T, rows.T, strict=True)
            ],
            axis=1,
        )
    # two mirrored rows v and -v stand for one row 2v, whose square is twice the sum of theirs
    C = strength * (2 if design.has.shape[1] == 2 else 1)
    model = LogisticRegression(C=C, **options).fit(X, design.has.argmax(1), sample_weight=rows[:, 0])
    return model.predict_proba(X)


def probabilities(design: Design, head: LinearHead) -> Floats:
    logits = head.logits(design.X).astype(np.float64)
    if not design.exclusive:
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("classes", "exclusive"), [(2, True), (3, True), (2, False), (3, False)])
def test_the_head_is_logistic_regression(classes: int, exclusive: bool, weighted: bool) -> None:
    """Probabilities are scikit-learn's, multinomial or one-vs-rest, at every strength of one batch."""
    of = design(classes, exclusive=exclusive, weighted=weighted)
    heads = fit_linear(of, [Penalty(strength) for strength in STRENGTHS], tolerance=1e-4, max_checks=300)
    for head, strength in zip(heads, STRENGTHS, strict=True):
        assert head.coef.shape == (classes, 15)
        assert head.intercept.shape == (classes,)
        assert head.coef.dtype == head.intercept.dtype == np.float32
        np.testing.assert_allclose(probabilities(of, head), reference(of, strength), atol=2e-3)
        assert violation(of, head, Penalty(strength)) <= 1.1e-4
    spread = [head.logits(of.X).std() for head in heads]
    assert spread[0] < 0.8 * spread[1] < 0.8 * spread[2], "a weaker penalty lets logits spread"


@pytest.mark.parametrize(("classes", "exclusive"), [(2, True), (3, True), (3, False)])
def test_the_defaults_are_close_enough(classes: int, exclusive: bool) -> None:
    """At the tolerance that fits use, probabilities are near those of scikit-learn; weakly held heads end early's."""
    of = design(classes, exclusive=exclusive)
    for head, strength in zip(fit_linear(of, [Penalty(s) for s in STRENGTHS]), STRENGTHS, strict=True):
        np.testing.assert_allclose(probabilities(of, head), reference(of, strength), atol=0.08)
        assert violation(of, head, Penalty(strength)) <= 3.3e-3


@pytest.mark.parametrize("strength", [0.3, 3.0])
@pytest.mark.parametrize("share", [0.03, 0.3])
@pytest.mark.parametrize(("classes", "exclusive"), [(3, True), (2, False)])
def test_the_elastic_net_is_that_of_scikit_learn(classes: int, exclusive: bool, share: float, strength: float) -> None:
    """Its objective is saga's and no optimality condition is violated; some coefficients are exactly zero."""
    of, penalty = design(classes, exclusive=exclusive, weighted=True), Penalty(strength, share)
    [head] = fit_linear(of, [penalty], tolerance=1e-4, max_checks=300)
    assert violation(of, head, penalty) <= 1.1e-4
    assert 0 < (head.coef == 0).mean() < 1
    l1, l2 = share * steepest(of), 1 / (strength * len(of.X))
    weights = np.broadcast_to(of.weights, of.has.shape) / (l1 + l2)
    saga = LogisticRegression(C=1, l1_ratio=l1 / (l1 + l2), solver="saga", tol=1e-7, max_iter=50000)
    X = of.X.astype(np.float64) * unit(of)
    problems = [(of.has.argmax(1), weights[:, 0])] if exclusive else list(zip(of.has.T, weights.T, strict=True))
    found = [saga.fit(X, y, sample_weight=s) and (saga.coef_, saga.intercept_) for y, s in problems]
    other = LinearHead(np.concatenate([w for w, _ in found]) * unit(of), np.concatenate([b for _, b in found]))
    assert objective(of, head, penalty, l1) == pytest.approx(objective(of, other, penalty, l1), rel=1e-4)


def test_an_l1_part_of_one_leaves_nothing() -> None:
    """The share is of the smallest penalty that zeroes all: just below it something speaks, above it nothing."""
    for exclusive in (True, False):
        of = design(3, exclusive=exclusive, weighted=True)
        none, some = fit_linear(of, [Penalty(1.0, 1.001), Penalty(1.0, 0.98)], tolerance=1e-4)
        assert not none.coef.any()
        assert some.coef.any()
        share = (of.weights * of.has).sum(0)
        np.testing.assert_allclose(probabilities(of, none)[0], share, atol=1e-4)


@pytest.mark.parametrize("exclusive", [True, False])
def test_many_penalties_at_once_are_each_alone(exclusive: bool) -> None:
    """In one batch, which the converged ones leave, every head is the one that it is by itself."""
    of = design(3, exclusive=exclusive)
    penalties = [Penalty(s, l1) for s in STRENGTHS for l1 in (0.0, 0.1, 0.9)]
    together = fit_linear(of, penalties, tolerance=1e-4, max_checks=300)
    assert len(together) == len(penalties)
    for head, penalty in zip(together, penalties, strict=True):
        [alone] = fit_linear(of, [penalty], tolerance=1e-4, max_checks=300)
        np.testing.assert_allclose(head.logits(of.X), alone.logits(of.X), atol=5e-3)


def test_more_documents_of_the_same_kind_weaken_the_penalty() -> None:
    """Each row twice is each row once at twice the strength: the penalty is over the count of rows."""
    of = design(3)
    again = np.tile(np.arange(len(of.X)), 2)
    twice = replace(of, X=of.X[again], has=of.has[again], weights=of.weights[again] / 2)
    [of_twice], [of_once] = (
        fit_linear(twice, [Penalty(0.5)], tolerance=1e-4),
        fit_linear(of, [Penalty(1.0)], tolerance=1e-4),
    )
    np.testing.assert_allclose(of_twice.logits(of.X), of_once.logits(of.X), atol=5e-3)


def test_only_the_proportions_of_the_scales_matter() -> None:
    """Louder features all alike, or twins of half the square each: the same head."""
    of = design(3)
    [head] = fit_linear(of, [Penalty(1.0)], tolerance=1e-4)
    [louder] = fit_linear(replace(of, scales=of.scales * 1000), [Penalty(1.0)], tolerance=1e-4)
    np.testing.assert_allclose(louder.logits(of.X), head.logits(of.X), atol=1e-3)
    both = replace(of, X=np.tile(of.X, 2), scales=np.tile(of.scales, 2))
    [twins] = fit_linear(both, [Penalty(1.0)], tolerance=1e-4)
    np.testing.assert_allclose(twins.logits(both.X), head.logits(of.X), atol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(both.unit), 1, atol=1e-6)


def test_a_part_is_a_design_of_some_features() -> None:
    """Features taken out of a design are a design, with the same rows and scales of their own norm."""
    of, where = design(3), np.array([7, 0, 3])
    part = of.part(where)
    np.testing.assert_array_equal(part.X, of.X[:, [7, 0, 3]])
    np.testing.assert_allclose(part.unit, of.scales[where] / np.sqrt((of.scales[where] ** 2).sum()), rtol=1e-6)
    assert (part.count, part.has is of.has, part.weights is of.weights) == (240, True, True)
    [head] = fit_linear(part, [Penalty(1.0)], tolerance=1e-4)
    assert violation(part, head, Penalty(1.0)) <= 1.1e-4


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(4, 40),
    st.integers(1, 20),
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.02, 0.5]),
)
def test_every_small_problem_is_solved(
    seed: int, n: int, p: int, classes: int, exclusive: bool, twins: bool, l1: float
) -> None:
    """More features than rows, absent classes, twin features, rows of no weight: optimal at every strength."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, p)).astype(np.float32)
    X = np.tile(X, 2) if twins else X
    y = draw.integers(0, classes, n)
    has = y[:, None] == np.arange(classes) if exclusive else draw.random((n, classes)) < 0.5
    weights = draw.exponential(size=(n, 1 if exclusive else classes)) * (draw.random((n, 1)) < 0.8) + 1e-6
    of = Design(
        X,
        has,
        (weights / weights.sum(0)).astype(np.float32),
        np.ones(X.shape[1], np.float32),
        exclusive,
        ProcessGroup(),
    )
    penalties = [Penalty(strength, l1) for strength in (0.1, 10.0)]
    for head, penalty in zip(fit_linear(of, penalties, tolerance=1e-3, max_checks=300), penalties, strict=True):
        assert np.isfinite(head.coef).all()
        if steepest(of) > 1e-3:  # one class alone has nothing to be told from
            assert violation(of, head, penalty) <= 2e-3


# The head itself


def head_of(seed: int = 0) -> LinearHead:
    draw = np.random.default_rng(seed)
    return LinearHead(draw.normal(size=(3, 5)).astype(np.float32), draw.normal(size=3).astype(np.float32))


def test_features_and_bias_add_up_to_the_logits() -> None:
    """Row by row: each feature times its slope, summed, and the bias."""
    head, X = head_of(), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    for x, logits in zip(X, head.logits(X), strict=True):
        for k in range(3):
            by_hand = sum(float(x[j]) * float(head.coef[k, j]) for j in range(5)) + float(head.intercept[k])
            assert logits[k] == pytest.approx(by_hand, abs=1e-5)
            assert (head.slopes(x) @ x + head.bias)[k] == pytest.approx(by_hand, abs=1e-5)


def test_a_cooled_head_gives_the_logits_over_the_temperature() -> None:
    """And stays float32."""
    head, X = head_of(), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    with_temperature = head.with_temperature(2.5)
    np.testing.assert_allclose(with_temperature.logits(X), head.logits(X) / 2.5, rtol=1e-5, atol=1e-6)
    assert with_temperature.coef.dtype == with_temperature.intercept.dtype == np.float32


def test_features_of_no_weight_can_go() -> None:
    """The head of the features that are kept gives the same logits, where the others weighed nothing."""
    head, X = head_of(), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    head.coef[:, [1, 3]] = 0
    wanted = head.coef.any(0)
    np.testing.assert_allclose(head.keep(wanted).logits(X[:, wanted]), head.logits(X), atol=1e-6)
    assert head.keep(wanted).coef.shape == (3, 3)
