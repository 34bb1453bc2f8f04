"""The head that bends: it starts straight, learns what bends, stops in time, and explains itself exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.heads.calibration import log_loss
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.integrate.fit_linear import Design, fit_linear
from spin.integrate.fit_mlp import HIDDEN, fit_mlp
from spin.labels.label_space import LabelSpace
from spin.process_group import ProcessGroup


def bent(n: int = 400, *, exclusive: bool = True, seed: int = 0) -> Design:
    """Features of which one speaks for a class straight and two by the sign of their product; two classes or lists."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(n, 6)).astype(np.float32)
    product = 4 * X[:, 1] * X[:, 2] + X[:, 0] > 0
    has = np.stack([~product, product] if exclusive else [product, X[:, 0] > 0], axis=1)
    return Design(X, has, np.full((n, 1), 1 / n, np.float32), np.ones(6, np.float32), exclusive, ProcessGroup())


def loss(of: Design, head: LinearHead | MlpHead) -> float:
    label_space = LabelSpace(("a", "b"), multilabel=not of.exclusive)
    return log_loss(head.logits(of.X), of.has.argmax(1) if of.exclusive else of.has, label_space)


def head_of(seed: int, features: int = 5, hidden: int = 7, size: float = 1.0) -> MlpHead:
    draw = np.random.default_rng(seed)
    shapes = [(3, features), 3, (hidden, features), hidden, (3, hidden)]
    coef, intercept, inner, bias, outer = ((size * draw.normal(size=s)).astype(np.float32) for s in shapes)
    return MlpHead(LinearHead(coef, intercept), inner, bias, outer)


@pytest.mark.parametrize("exclusive", [True, False])
def test_it_starts_at_the_linear_head(exclusive: bool) -> None:
    """After no step the logits are the linear head's, bit for bit."""
    of = bent(exclusive=exclusive)
    [linear] = fit_linear(of, [Penalty(1.0)])
    head, steps = fit_mlp(linear, of, 1.0, seed=0, steps=0)
    assert steps == 0
    assert head.linear is linear
    assert head.inner.shape == (HIDDEN, 6)
    assert head.inner.any()
    np.testing.assert_array_equal(head.logits(of.X), linear.logits(of.X))


@pytest.mark.parametrize("exclusive", [True, False])
def test_it_learns_what_a_linear_head_cannot(exclusive: bool) -> None:
    """The sign of a product, on rows that it has not seen; what was straight stays known."""
    of, other = bent(exclusive=exclusive), bent(exclusive=exclusive, seed=1)
    [linear] = fit_linear(of, [Penalty(10.0)])
    head, steps = fit_mlp(linear, of, 10.0, seed=0)
    assert steps == 300
    right = [((h.logits(other.X) > 0) == other.has).mean(0) for h in (linear, head)]
    assert right[0][0] < 0.7
    assert right[1].min() > 0.85
    assert loss(other, head) < 0.6 * loss(other, linear)


def test_it_is_drawn_by_the_seed() -> None:
    """The same seed gives the same head bit for bit, another seed another one."""
    of = bent()
    [linear] = fit_linear(of, [Penalty(1.0)])
    first, second, other = (fit_mlp(linear, of, 1.0, seed=seed, steps=20)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.logits(of.X), second.logits(of.X))
    assert np.any(first.logits(of.X) != other.logits(of.X))


def test_a_strong_penalty_keeps_it_straight() -> None:
    """The smaller the strength, the less of the hidden layer is left."""
    of = bent()
    [linear] = fit_linear(of, [Penalty(1.0)])
    bends = []
    for strength in (1e-3, 0.3, 3.0):
        head, _ = fit_mlp(linear, of, strength, seed=0)
        bends.append(np.abs(head.logits(of.X) - linear.logits(of.X)).max())
    assert bends[0] < 0.05 < bends[1] < bends[2]


def test_rows_of_no_weight_are_not_there() -> None:
    """Whatever the targets of such rows, the head is the same; a design's scales are those of its features."""
    of = bent()
    weights = np.where(np.arange(400)[:, None] < 200, 1 / 200, 0).astype(np.float32)
    there = replace(of, weights=weights)
    [linear] = fit_linear(there, [Penalty(1.0)])
    poisoned = replace(there, has=np.where(weights > 0, of.has, ~of.has))
    one, two = (fit_mlp(linear, design, 1.0, seed=0, steps=30)[0] for design in (there, poisoned))
    np.testing.assert_array_equal(one.logits(of.X), two.logits(of.X))


@pytest.mark.parametrize(
    ("losses", "asked", "taken"),
    [
        ([5.0, 4.0, 3.0, 4.0, 4.0, 4.0, 4.0, 0.0], 7, 20),  # four times no better: stopped, the best is given
        ([5.0, 5.0, 5.0, 5.0, 5.0, 0.0], 5, 0),  # never better than straight
        ([5.0, 4.0, 4.0, 4.0, 3.0, 4.0, 4.0, 4.0, 2.0, 1.0], 10, 90),  # better in time, to the last step
    ],
)
def test_it_stops_when_the_judge_says_so(losses: list[float], asked: int, taken: int) -> None:
    """Asked every ten steps; the head that is given is the one that was judged best."""
    of, seen = bent(100), []
    [linear] = fit_linear(of, [Penalty(1.0)])
    script = iter(losses)

    def judge(head: MlpHead) -> float:
        seen.append(head.logits(of.X))
        return next(script)

    head, steps = fit_mlp(linear, of, 1.0, seed=0, judge=judge, steps=90)
    assert (len(seen), steps) == (asked, taken)
    np.testing.assert_array_equal(head.logits(of.X), seen[taken // 10])
    again, _ = fit_mlp(linear, of, 1.0, seed=0, steps=taken)
    np.testing.assert_allclose(again.logits(of.X), head.logits(of.X), atol=1e-5)


def test_a_judge_on_other_rows_keeps_it_from_learning_by_heart() -> None:
    """Where nothing is to be learnt, the head that is given is hardly worse than the linear one on new rows."""
    draw = np.random.default_rng(0)

    def noise() -> Design:
        y = draw.integers(0, 2, 60)
        has = y[:, None] == np.arange(2)
        X = draw.normal(size=(60, 20)).astype(np.float32)
        return Design(X, has, np.full((60, 1), 1 / 60, np.float32), np.ones(20, np.float32), True, ProcessGroup())

    of, valid, other = noise(), noise(), noise()
    [linear] = fit_linear(of, [Penalty(1.0)])
    judged, steps = fit_mlp(linear, of, 100.0, seed=0, judge=lambda head: loss(valid, head))
    free, _ = fit_mlp(linear, of, 100.0, seed=0)
    assert steps < 300
    assert loss(valid, judged) <= loss(valid, linear)
    assert loss(other, judged) < loss(other, free)


# What it says of itself


def torch_logits(head: MlpHead) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head as a function in float64, for autograd."""
    coef, intercept, inner, bias, outer = (
        torch.as_tensor(a, dtype=torch.float64)
        for a in (head.linear.coef, head.linear.intercept, head.inner, head.inner_bias, head.outer)
    )
    return lambda x: coef @ x + intercept + outer @ torch.tanh(inner @ x + bias)


def test_logits_equal_a_plain_formula() -> None:
    """Row by row in float64."""
    head, X = head_of(0), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    expected = [torch_logits(head)(torch.as_tensor(x, dtype=torch.float64)).numpy() for x in X]
    np.testing.assert_allclose(head.logits(X), expected, atol=1e-5)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_slopes_are_integrated_gradients(size: float) -> None:
    """The mean of autograd's slopes along the line from the training mean, by the midpoint rule on 4,000 points."""
    head, x = head_of(1, size=size), np.random.default_rng(2).normal(size=5).astype(np.float32)
    logits, total = torch_logits(head), np.zeros((3, 5))
    times = (np.arange(4000) + 0.5) / 4000
    points = torch.as_tensor(times[:, None] * x.astype(np.float64)[None])
    for k in range(3):
        several = points.clone().requires_grad_()
        torch.stack([logits(point)[k] for point in several]).sum().backward()
        assert several.grad is not None
        total[k] = several.grad.numpy().mean(0)
    np.testing.assert_allclose(head.slopes(x), total, rtol=1e-4, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-8, 1e-3, 0.1, 1.0, 5.0]), st.sampled_from([1e-3, 0.3, 1.0]))
def test_slopes_are_complete(seed: int, far: float, size: float) -> None:
    """Features times slopes, and the bias, are the logits, however near the mean or far from it a text is."""
    head = head_of(seed, size=size)
    x = (far * np.random.default_rng(seed + 1).normal(size=5)).astype(np.float32)
    logits = torch_logits(head)(torch.as_tensor(x, dtype=torch.float64)).numpy()
    told = head.slopes(x) @ x.astype(np.float64) + head.bias
    np.testing.assert_allclose(told, logits, atol=1e-5 * max(1, np.abs(logits).max()))
    np.testing.assert_allclose(head.logits(x[None])[0], logits, atol=1e-5 * max(1, np.abs(logits).max()))


def test_at_the_training_mean_there_is_the_bias_alone() -> None:
    """Where no feature departs from its mean the slopes are the gradient there, finite, and the logits the bias."""
    head, nothing = head_of(3), np.zeros(5, np.float32)
    point = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.functional.jacobian(torch_logits(head), point).numpy()
    np.testing.assert_allclose(head.slopes(nothing), expected, atol=1e-5)
    np.testing.assert_allclose(head.logits(nothing[None])[0], head.bias, atol=1e-6)


def test_a_cooled_head_gives_the_logits_over_the_temperature() -> None:
    """Its slopes and bias too; and stays float32."""
    head, X = head_of(4), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    with_temperature = head.with_temperature(2.5)
    np.testing.assert_allclose(with_temperature.logits(X), head.logits(X) / 2.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(with_temperature.slopes(X[0]), head.slopes(X[0]) / 2.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(with_temperature.bias, head.bias / 2.5, rtol=1e-4, atol=1e-5)
    assert with_temperature.outer.dtype == with_temperature.linear.coef.dtype == np.float32
