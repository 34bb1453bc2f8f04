"""The network head explains its logits exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.heads.network_head import NetworkHead


def make_head(seed: int, features: int = 5, hidden: int = 7, size: float = 1.0) -> NetworkHead:
    draw = np.random.default_rng(seed)
    shapes = [(3, features), 3, (hidden, features), hidden, (3, hidden)]
    coef, intercept, inner, bias, outer = ((size * draw.normal(size=s)).astype(np.float32) for s in shapes)
    return NetworkHead(coef, intercept, inner, bias, outer)


def torch_logits(head: NetworkHead) -> Callable[[torch.Tensor], torch.Tensor]:
    """The logits of rows (n, p) or of one row (p,) as a function in float64, for autograd."""
    coef, intercept, inner, bias, outer = (torch.as_tensor(a, dtype=torch.float64) for a in head.to_tensors().values())
    return lambda x: x @ coef.T + intercept + torch.relu(x @ inner.T + bias) @ outer.T


def test_logits_equal_a_plain_formula() -> None:
    """Row by row in float64."""
    head, X = make_head(0), np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    expected = [torch_logits(head)(torch.as_tensor(x, dtype=torch.float64)).numpy() for x in X]
    np.testing.assert_allclose(head.logits(X), expected, atol=1e-5)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_slopes_are_integrated_gradients(size: float) -> None:
    """The mean of autograd's gradients along the line from the training mean, by the midpoint rule on 20,000 points."""
    head, x = make_head(1, size=size), np.random.default_rng(2).normal(size=5).astype(np.float32)
    logits, expected = torch_logits(head), np.zeros((3, 5))
    times = (np.arange(20_000) + 0.5) / 20_000
    points = torch.as_tensor(times[:, None] * x.astype(np.float64)[None])
    for k in range(3):
        path = points.clone().requires_grad_()
        logits(path)[:, k].sum().backward()
        assert path.grad is not None
        expected[k] = path.grad.numpy().mean(0)
    np.testing.assert_allclose(head.slopes(x), expected, rtol=1e-4, atol=5e-4 * max(1, size**2))


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
