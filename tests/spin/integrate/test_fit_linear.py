"""The linear head is scikit-learn's logistic regression on scaled features, for every kind of task and strength."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

import spin.heads.feature_rows
import spin.integrate.fit_linear as fit_linear_module
from spin.arrays import Floats
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.integrate.fit_linear import fit_linear
from spin.process_group import ProcessGroup

STRENGTHS = (0.1, 1.0, 10.0)


def make_design(classes: int, *, exclusive: bool = True, weighted: bool = False, n: int = 240, p: int = 15) -> Design:
    """Standardised, correlated features of overlapping, unbalanced classes."""
    draw = np.random.default_rng(classes)
    X = draw.normal(size=(n, 4)) @ draw.normal(size=(4, p)) / 2 + draw.normal(size=(n, p))
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32)
    drift = draw.gumbel(size=(n, classes)) if exclusive else draw.logistic(size=(n, classes)) - 1
    logits = X[:, :classes] * 1.5 + np.linspace(0, -1, classes) + drift
    has = logits.argmax(1)[:, None] == np.arange(classes) if exclusive else logits > 0
    weights = draw.exponential(size=(n, 1 if exclusive else classes)) if weighted else np.ones((n, 1))
    weights = (weights / weights.sum(0)).astype(np.float32)
    return Design(FeatureRows(X), has, weights, exclusive, ProcessGroup())


def matrix(design: Design) -> Floats:
    """(n, p) the features of a design in memory."""
    values = design.features.values
    assert isinstance(values, np.ndarray)
    return values


def slopes(design: Design, logits: Floats) -> tuple[Floats, Floats]:
    """The derivatives of the loss by V (p, K) and by the intercepts (K,), in float64."""
    logits = logits.astype(np.float64)
    if design.exclusive:
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = odds / odds.sum(1, keepdims=True)
    else:
        probabilities = 1 / (1 + np.exp(-logits))
    residual = design.weights * (probabilities - design.has)
    return matrix(design).T @ residual * matrix(design).shape[1] ** -0.5, residual.sum(0)


def largest_null_slope(design: Design) -> float:
    """The largest slope of the null model."""
    share = (design.weights.astype(np.float64) * design.has).sum(0).clip(1e-6, 1 - 1e-6)
    null = np.log(share) if design.exclusive else np.log(share / (1 - share))
    return float(np.abs(slopes(design, np.tile(null, (len(design.features), 1)))[0]).max())


def kkt_violation(design: Design, head: LinearHead, strength: float) -> float:
    """The largest violation of the optimality conditions, as a share of the null slope."""
    by_V, by_intercept = slopes(design, matrix(design).astype(np.float64) @ head.coef.T + head.intercept)
    V = head.coef.T * matrix(design).shape[1] ** 0.5
    violations = by_V + V / (strength * len(design.features))
    return max(float(np.abs(by_intercept).max()), float(np.abs(violations).max())) / largest_null_slope(design)


def sklearn_probabilities(design: Design, strength: float) -> Floats:
    """Probabilities (n, K) of scikit-learn's logistic regressions."""
    X = matrix(design).astype(np.float64) * matrix(design).shape[1] ** -0.5
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
    logits = head.logits(matrix(design)).astype(np.float64)
    if not design.exclusive:
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("classes", "exclusive"), [(2, True), (3, True), (2, False), (3, False)])
def test_the_linear_head_has_the_probabilities_of_scikit_learn(classes: int, exclusive: bool, weighted: bool) -> None:
    """Multinomial or one-vs-rest, at every strength of one batch."""
    design = make_design(classes, exclusive=exclusive, weighted=weighted)
    heads = fit_linear(design, STRENGTHS, tolerance=1e-4, max_checks=300)
    for head, strength in zip(heads, STRENGTHS, strict=True):
        assert head.coef.shape == (classes, 15)
        assert head.intercept.shape == (classes,)
        assert head.coef.dtype == head.intercept.dtype == np.float32
        np.testing.assert_allclose(probabilities(design, head), sklearn_probabilities(design, strength), atol=2e-3)
        assert kkt_violation(design, head, strength) <= 1.1e-4
    spread = [head.logits(matrix(design)).std() for head in heads]
    assert spread[0] < 0.8 * spread[1] < 0.8 * spread[2], "a weaker penalty spreads the logits"


@pytest.mark.parametrize(("classes", "exclusive"), [(2, True), (3, True), (3, False)])
def test_the_default_tolerance_is_close_to_scikit_learn(classes: int, exclusive: bool) -> None:
    """The default limits end weakly penalised fits early, so the probabilities agree less closely."""
    design = make_design(classes, exclusive=exclusive)
    for head, strength in zip(fit_linear(design, STRENGTHS), STRENGTHS, strict=True):
        np.testing.assert_allclose(probabilities(design, head), sklearn_probabilities(design, strength), atol=0.08)
        assert kkt_violation(design, head, strength) <= 3.3e-3


@pytest.mark.parametrize("exclusive", [True, False])
def test_strengths_fitted_together_equal_strengths_fitted_alone(exclusive: bool) -> None:
    """In one batch, which converged heads leave, every head equals the one fitted by itself."""
    design = make_design(3, exclusive=exclusive)
    together = fit_linear(design, STRENGTHS, tolerance=1e-4, max_checks=300)
    assert len(together) == len(STRENGTHS)
    for head, strength in zip(together, STRENGTHS, strict=True):
        [alone] = fit_linear(design, [strength], tolerance=1e-4, max_checks=300)
        np.testing.assert_allclose(head.logits(matrix(design)), alone.logits(matrix(design)), atol=5e-3)


def test_repeating_every_row_equals_twice_the_strength() -> None:
    """The penalty is divided by the number of rows."""
    design = make_design(3)
    repeats = np.tile(np.arange(len(design.features)), 2)
    twice = replace(
        design,
        features=FeatureRows(matrix(design)[repeats]),
        has=design.has[repeats],
        weights=design.weights[repeats] / 2,
    )
    [repeated_head], [original_head] = (
        fit_linear(twice, [0.5], tolerance=1e-4),
        fit_linear(design, [1.0], tolerance=1e-4),
    )
    np.testing.assert_allclose(repeated_head.logits(matrix(design)), original_head.logits(matrix(design)), atol=5e-3)


def test_the_number_of_features_does_not_change_what_a_strength_means() -> None:
    """Features that are all there twice give the same logits."""
    design = make_design(3)
    [head] = fit_linear(design, [1.0], tolerance=1e-4)
    duplicated = replace(design, features=FeatureRows(np.tile(matrix(design), 2)))
    [duplicates] = fit_linear(duplicated, [1.0], tolerance=1e-4)
    np.testing.assert_allclose(duplicates.logits(matrix(duplicated)), head.logits(matrix(design)), atol=5e-3)
    assert duplicated.unit == pytest.approx(30**-0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 1, 3, 7])
@pytest.mark.parametrize("exclusive", [True, False])
def test_features_in_a_file_give_the_same_heads(exclusive: bool, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block holds a few of the rows. The first blocks may stay in memory, and only the others are read again."""
    design = make_design(3, exclusive=exclusive, weighted=True)
    strengths = [0.3, 3.0]
    monkeypatch.setattr(spin.heads.feature_rows, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(spin.heads.feature_rows, "BLOCK_BYTES", 4 * 37 * design.features.shape[1])
    on_disk = replace(design, features=FeatureRows.collect(design.features.blocks(), len(design.features)))
    block_bytes = 4 * 37 * (design.features.shape[1] + 1)
    monkeypatch.setattr("spin.heads.design.MOST_IN_MEMORY", (kept + 1) * block_bytes - 1)
    computed: list[int] = []
    compute = FeatureRows._compute

    def count_and_compute(self: FeatureRows, values: Floats) -> Floats:
        computed.append(len(values))
        return compute(self, values)

    blocks = on_disk.blocks()
    assert [len(block[0]) for block in blocks] == [37] * 6 + [18]
    with monkeypatch.context() as patch:
        patch.setattr(FeatureRows, "_compute", count_and_compute)
        again = list(blocks)
    assert computed == ([37] * 6 + [18])[kept:]
    for first, second in zip(on_disk.blocks(), again, strict=True):
        assert torch.equal(first, second)
    fits = [fit_linear(each, strengths, tolerance=1e-5, max_checks=100) for each in (design, on_disk)]
    for in_memory, streamed in zip(*fits, strict=True):
        np.testing.assert_allclose(streamed.coef, in_memory.coef, atol=1e-3)
        np.testing.assert_allclose(streamed.intercept, in_memory.intercept, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("classes", "exclusive"), [(2, True), (3, True), (3, False)])
def test_heads_on_far_more_features_than_rows_are_the_same_in_the_space_of_the_rows(
    classes: int, exclusive: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if rows repeat, which then span fewer dimensions."""
    design = make_design(classes, exclusive=exclusive, weighted=weighted)
    few = np.r_[0:30, 0:10]
    noise = np.random.default_rng(1).normal(size=(len(few), 200)).astype(np.float32)
    noise[30:] = noise[:10]
    weights = design.weights[few]
    wide = replace(
        design,
        features=FeatureRows(np.concatenate([matrix(design)[few], noise], axis=1)),
        has=design.has[few],
        weights=weights / weights.sum(0),
    )
    strengths = [0.3, 30.0]
    assert fit_linear_module._is_wide(wide, len(strengths))
    in_row_space = fit_linear(wide, strengths, tolerance=1e-5, max_checks=200)
    for head, strength in zip(fit_linear(wide, strengths), strengths, strict=True):
        assert kkt_violation(wide, head, strength) < 3.1e-3
    monkeypatch.setattr(fit_linear_module, "_is_wide", lambda *_: False)
    in_feature_space = fit_linear(wide, strengths, tolerance=1e-5, max_checks=200)
    for head, expected in zip(in_row_space, in_feature_space, strict=True):
        np.testing.assert_allclose(head.coef, expected.coef, atol=1e-3)
        np.testing.assert_allclose(head.intercept, expected.intercept, atol=1e-3)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(4, 40),
    st.integers(1, 20),
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
)
def test_every_small_problem_is_solved(
    seed: int, n: int, p: int, classes: int, exclusive: bool, duplicates: bool
) -> None:
    """Every fit is optimal.

    The problems have more features than rows, absent classes, duplicates or rows of no weight.
    """
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, p)).astype(np.float32)
    X = np.tile(X, 2) if duplicates else X
    y = draw.integers(0, classes, n)
    has = y[:, None] == np.arange(classes) if exclusive else draw.random((n, classes)) < 0.5
    weights = draw.exponential(size=(n, 1 if exclusive else classes)) * (draw.random((n, 1)) < 0.8) + 1e-6
    design = Design(
        FeatureRows(X),
        has,
        (weights / weights.sum(0)).astype(np.float32),
        exclusive,
        ProcessGroup(),
    )
    strengths = (0.1, 10.0)
    for head, strength in zip(fit_linear(design, strengths, tolerance=1e-3, max_checks=300), strengths, strict=True):
        assert np.isfinite(head.coef).all()
        if largest_null_slope(design) > 1e-3:  # a single class has no slope to compare with
            assert kkt_violation(design, head, strength) <= 2e-3


# The head itself


def make_head(seed: int = 0) -> LinearHead:
    draw = np.random.default_rng(seed)
    return LinearHead(draw.normal(size=(3, 5)).astype(np.float32), draw.normal(size=3).astype(np.float32))


def test_features_times_slopes_and_the_bias_add_up_to_the_logits() -> None:
    """Row by row, against a sum over features."""
    head, X = make_head(), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    for x, logits in zip(X, head.logits(X), strict=True):
        for k in range(3):
            by_hand = sum(float(x[j]) * float(head.coef[k, j]) for j in range(5)) + float(head.intercept[k])
            assert logits[k] == pytest.approx(by_hand, abs=1e-5)
            assert (head.slopes(x) @ x + head.bias)[k] == pytest.approx(by_hand, abs=1e-5)
