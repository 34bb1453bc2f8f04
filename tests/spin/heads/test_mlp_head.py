"""The MLP head starts at the linear head, learns interactions, stops in time and explains its logits exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.heads.calibration import log_loss
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.head import FitTask
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import HIDDEN, MlpHead
from spin.integrate.fit_linear import fit_linear
from spin.labels.label_space import LabelSpace
from spin.process_group import ProcessGroup
from tests.spin.integrate.test_fit_linear import matrix


def make_design(n: int = 400, *, exclusive: bool = True, seed: int = 0) -> Design:
    """One feature with a linear effect and two that act through the sign of their product."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 6)).astype(np.float32)
    product = 4 * X[:, 1] * X[:, 2] + X[:, 0] > 0
    has = np.stack([~product, product] if exclusive else [product, X[:, 0] > 0], axis=1)
    return Design(
        FeatureRows(X), has, np.full((n, 1), 1 / n, np.float32), np.ones(6, np.float32), exclusive, ProcessGroup()
    )


def loss(design: Design, head: LinearHead) -> float:
    label_space = LabelSpace(("a", "b"), multilabel=not design.exclusive)
    return log_loss(head.logits(matrix(design)), design.has.argmax(1) if design.exclusive else design.has, label_space)


@pytest.fixture(scope="module")
def design() -> Design:
    """A design of 400 rows and two exclusive classes."""
    return make_design()


@pytest.fixture(scope="module")
def linear(design: Design) -> LinearHead:
    """The linear head of the design at a strength of 1."""
    [head] = fit_linear(design, [Penalty(1.0)])
    return head


def make_head(seed: int, features: int = 5, hidden: int = 7, size: float = 1.0) -> MlpHead:
    draw = np.random.default_rng(seed)
    shapes = [(3, features), 3, (hidden, features), hidden, (3, hidden)]
    coef, intercept, inner, bias, outer = ((size * draw.normal(size=s)).astype(np.float32) for s in shapes)
    return MlpHead(coef, intercept, inner, bias, outer)


@pytest.mark.parametrize("exclusive", [True, False])
def test_an_mlp_head_starts_at_the_linear_head(exclusive: bool) -> None:
    """Before the first step the logits are those of the linear head, bit for bit."""
    design = make_design(exclusive=exclusive)
    [linear] = fit_linear(design, [Penalty(1.0)])
    head, steps = MlpHead.fit(FitTask(linear, design, 1.0, seed=0, steps=0))
    assert steps == 0
    assert (head.coef is linear.coef, head.intercept is linear.intercept) == (True, True)
    assert head.inner.shape == (HIDDEN, 6)
    assert head.inner.any()
    np.testing.assert_array_equal(head.logits(matrix(design)), linear.logits(matrix(design)))


@pytest.mark.parametrize("exclusive", [True, False])
def test_an_mlp_head_learns_an_interaction_that_a_linear_head_misses(exclusive: bool) -> None:
    """It learns the sign of a product on unseen rows, and keeps the linear effect."""
    design, unseen = make_design(exclusive=exclusive), make_design(exclusive=exclusive, seed=1)
    [linear] = fit_linear(design, [Penalty(10.0)])
    head, steps = MlpHead.fit(FitTask(linear, design, 10.0, seed=0))
    assert steps == 300
    accuracies = [((h.logits(matrix(unseen)) > 0) == unseen.has).mean(0) for h in (linear, head)]
    assert accuracies[0][0] < 0.7
    assert accuracies[1].min() > 0.85
    assert loss(unseen, head) < 0.6 * loss(unseen, linear)


def test_the_same_seed_gives_the_same_mlp_head(design: Design, linear: LinearHead) -> None:
    """Equal bit for bit; another seed gives another head."""
    first, second, other = (MlpHead.fit(FitTask(linear, design, 1.0, seed=seed, steps=20))[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.logits(matrix(design)), second.logits(matrix(design)))
    assert np.any(first.logits(matrix(design)) != other.logits(matrix(design)))


@pytest.mark.slow
def test_a_strong_penalty_keeps_an_mlp_head_nearly_linear(design: Design, linear: LinearHead) -> None:
    """The smaller the strength, the closer the logits are to those of the linear head."""
    differences = []
    for strength in (1e-3, 0.3, 3.0):
        head, _ = MlpHead.fit(FitTask(linear, design, strength, seed=0))
        differences.append(np.abs(head.logits(matrix(design)) - linear.logits(matrix(design))).max())
    assert differences[0] < 0.05 < differences[1] < differences[2]


def test_rows_without_weight_do_not_affect_the_mlp_head(design: Design) -> None:
    """Other targets in such rows give the same head, bit for bit."""
    weights = np.where(np.arange(400)[:, None] < 200, 1 / 200, 0).astype(np.float32)
    weighted = replace(design, weights=weights)
    [linear] = fit_linear(weighted, [Penalty(1.0)])
    flipped = replace(weighted, has=np.where(weights > 0, design.has, ~design.has))
    expected, actual = (MlpHead.fit(FitTask(linear, each, 1.0, seed=0, steps=30))[0] for each in (weighted, flipped))
    np.testing.assert_array_equal(expected.logits(matrix(design)), actual.logits(matrix(design)))


@pytest.mark.parametrize(
    ("losses", "checks", "best_step"),
    [
        ([5.0, 4.0, 3.0, 4.0, 4.0, 4.0, 4.0, 0.0], 7, 20),  # four checks without improvement
        ([5.0, 5.0, 5.0, 5.0, 5.0, 0.0], 5, 0),  # never better than the linear head
        ([5.0, 4.0, 4.0, 4.0, 3.0, 4.0, 4.0, 4.0, 2.0, 1.0], 10, 90),  # each improvement comes in time
    ],
)
def test_fitting_stops_after_four_checks_without_improvement(losses: list[float], checks: int, best_step: int) -> None:
    """A check happens every ten steps, and the returned head is the one with the lowest judged loss."""
    design, judged_logits = make_design(100), []
    [linear] = fit_linear(design, [Penalty(1.0)])
    losses_to_return = iter(losses)

    def judge(head: MlpHead) -> float:
        judged_logits.append(head.logits(matrix(design)))
        return next(losses_to_return)

    head, steps = MlpHead.fit(FitTask(linear, design, 1.0, seed=0, judge=judge, steps=90))
    assert (len(judged_logits), steps) == (checks, best_step)
    np.testing.assert_array_equal(head.logits(matrix(design)), judged_logits[best_step // 10])
    refitted, _ = MlpHead.fit(FitTask(linear, design, 1.0, seed=0, steps=best_step))
    np.testing.assert_allclose(refitted.logits(matrix(design)), head.logits(matrix(design)), atol=1e-5)


def test_a_judge_on_held_out_rows_prevents_overfitting() -> None:
    """Where there is nothing to learn, the judged head is hardly worse than the linear one on unseen rows."""
    draw = np.random.default_rng(0)

    def make_noise() -> Design:
        y = draw.integers(0, 2, 60)
        has = y[:, None] == np.arange(2)
        X = draw.normal(size=(60, 20)).astype(np.float32)
        return Design(
            FeatureRows(X), has, np.full((60, 1), 1 / 60, np.float32), np.ones(20, np.float32), True, ProcessGroup()
        )

    design, valid, unseen = make_noise(), make_noise(), make_noise()
    [linear] = fit_linear(design, [Penalty(1.0)])
    judged, steps = MlpHead.fit(FitTask(linear, design, 100.0, seed=0, judge=lambda head: loss(valid, head)))
    unjudged, _ = MlpHead.fit(FitTask(linear, design, 100.0, seed=0))
    assert steps < 300
    assert loss(valid, judged) <= loss(valid, linear)
    assert loss(unseen, judged) < loss(unseen, unjudged)


@pytest.mark.parametrize("exclusive", [True, False])
def test_features_in_a_file_give_the_same_mlp_head(exclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are added up over blocks of rows."""
    design = make_design(exclusive=exclusive)
    [linear] = fit_linear(design, [Penalty(1.0)])
    monkeypatch.setattr("spin.heads.feature_rows.MOST_IN_MEMORY", 0)
    monkeypatch.setattr("spin.heads.feature_rows.BLOCK_BYTES", 4 * 37 * design.features.shape[1])
    on_disk = replace(design, features=FeatureRows.collect(design.features.blocks(), len(design.features)))
    assert not on_disk.features.in_memory
    expected, actual = (MlpHead.fit(FitTask(linear, each, 1.0, seed=0, steps=40))[0] for each in (design, on_disk))
    np.testing.assert_allclose(actual.logits(matrix(design)), expected.logits(matrix(design)), atol=1e-3)
    assert np.abs(expected.logits(matrix(design)) - linear.logits(matrix(design))).max() > 0.1


# Logits and slopes


def torch_logits(head: MlpHead) -> Callable[[torch.Tensor], torch.Tensor]:
    """The logits of rows (n, p) or of one row (p,) as a function in float64, for autograd."""
    coef, intercept, inner, bias, outer = (torch.as_tensor(a, dtype=torch.float64) for a in head.to_tensors().values())
    return lambda x: x @ coef.T + intercept + torch.tanh(x @ inner.T + bias) @ outer.T


def test_logits_equal_a_plain_formula() -> None:
    """Row by row in float64."""
    head, X = make_head(0), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    expected = [torch_logits(head)(torch.as_tensor(x, dtype=torch.float64)).numpy() for x in X]
    np.testing.assert_allclose(head.logits(X), expected, atol=1e-5)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_slopes_are_integrated_gradients(size: float) -> None:
    """The mean of autograd's gradients along the line from the training mean, by the midpoint rule on 4,000 points."""
    head, x = make_head(1, size=size), np.random.default_rng(2).normal(size=5).astype(np.float32)
    logits, expected = torch_logits(head), np.zeros((3, 5))
    times = (np.arange(4000) + 0.5) / 4000
    points = torch.as_tensor(times[:, None] * x.astype(np.float64)[None])
    for k in range(3):
        path = points.clone().requires_grad_()
        logits(path)[:, k].sum().backward()
        assert path.grad is not None
        expected[k] = path.grad.numpy().mean(0)
    np.testing.assert_allclose(head.slopes(x), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-8, 1e-3, 0.1, 1.0, 5.0]), st.sampled_from([1e-3, 0.3, 1.0]))
def test_features_times_slopes_and_the_bias_add_up_to_the_logits(seed: int, distance: float, size: float) -> None:
    """However near the training mean or far from it a text is."""
    head = make_head(seed, size=size)
    x = (distance * np.random.default_rng(seed + 1).normal(size=5)).astype(np.float32)
    logits = torch_logits(head)(torch.as_tensor(x, dtype=torch.float64)).numpy()
    actual = head.slopes(x) @ x.astype(np.float64) + head.bias
    np.testing.assert_allclose(actual, logits, atol=1e-5 * max(1, np.abs(logits).max()))
    np.testing.assert_allclose(head.logits(x[None])[0], logits, atol=1e-5 * max(1, np.abs(logits).max()))


def test_at_the_training_mean_the_logits_are_the_bias() -> None:
    """The slopes there are the gradient, and finite."""
    head, zero = make_head(3), np.zeros(5, np.float32)
    point = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.functional.jacobian(torch_logits(head), point).numpy()
    np.testing.assert_allclose(head.slopes(zero), expected, atol=1e-5)
    np.testing.assert_allclose(head.logits(zero[None])[0], head.bias, atol=1e-6)


def test_with_temperature_divides_logits_slopes_and_bias() -> None:
    """The arrays stay float32."""
    head, X = make_head(4), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    with_temperature = head.with_temperature(2.5)
    np.testing.assert_allclose(with_temperature.logits(X), head.logits(X) / 2.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(with_temperature.slopes(X[0]), head.slopes(X[0]) / 2.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(with_temperature.bias, head.bias / 2.5, rtol=1e-4, atol=1e-5)
    assert with_temperature.outer.dtype == with_temperature.coef.dtype == np.float32
