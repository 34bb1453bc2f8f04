"""The solver under a quadratic bound: the bound is one, its minimisers are optimal, and it takes few steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spin.sparsify.solvers.fista
from spin.sparsify.solvers import quadratic_bound
from spin.sparsify.solvers.fista import Regressions
from spin.sparsify.solvers.quadratic_bound import _invert_bound, solve_under_bound
from tests.spin.sparsify.test_fista import design, kkt_violation, make_regressions, objective, zero_start


def make_ridge(*, exclusive: bool, l2: list[float], seed: int = 0, blocks: int = 80) -> Regressions:
    """Two designs of 80 rows with one three-output regression per penalty, all with the same weights of the rows."""
    regressions = make_regressions(exclusive=exclusive, l1=[0.0] * len(l2), l2=l2, seed=seed, blocks=blocks)
    return replace(regressions, weights=regressions.weights[:, :1])


def autograd_view(regressions: Regressions) -> Regressions:
    """The same regressions with weights for each of them, as the oracles read them."""
    return replace(regressions, weights=regressions.weights.expand(-1, regressions.l2.shape[1], -1))


@pytest.mark.parametrize("blocks", [80, 33])
@pytest.mark.parametrize("exclusive", [True, False])
def test_every_regression_of_a_batch_reaches_its_limit(exclusive: bool, blocks: int) -> None:
    """Two designs and three penalties have six different limits; autograd finds no larger violation."""
    regressions = make_ridge(exclusive=exclusive, l2=[0.1, 0.01, 0.001], blocks=blocks)
    limit = torch.tensor([[1e-4, 3e-5, 1e-3], [1e-3, 1e-4, 3e-5]])
    V = solve_under_bound(regressions, zero_start(regressions), limit, max_steps=300)
    for p, b in np.ndindex(2, 3):
        assert kkt_violation(autograd_view(regressions), V[p, :, b], p, b) <= 1.05 * float(limit[p, b]) + 1e-6


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 1.0, 30.0]))
def test_the_hessian_is_nowhere_above_the_bound(seed: int, exclusive: bool, size: float) -> None:
    """Autograd's Hessian at random points, from probabilities of a half to certain ones."""
    regressions = make_ridge(exclusive=exclusive, l2=[0.001], seed=seed)
    weights, scales, ridge = (
        x[None] for x in (regressions.weights[:, 0], regressions.scales[:, 0], torch.zeros(13, 1))
    )
    ridge[:, :-1] = 0.001
    inverse = _invert_bound(regressions, weights.expand(2, -1, -1), scales.expand(2, -1, -1), ridge.expand(2, -1, -1))
    bound = torch.linalg.inv(inverse[0, :, 0].double())
    point = torch.randn(13, 3, generator=torch.Generator().manual_seed(seed)).double() * size

    def value(flat: Tensor) -> Tensor:
        return objective(autograd_view(regressions), flat.view(13, 3), 0, 0)

    hessian = torch.autograd.functional.hessian(value, point.flatten()).view(13, 3, 13, 3)
    whole = torch.einsum("ij,kl->ikjl", bound, torch.eye(3).double())
    above = (whole - hessian).reshape(39, 39)
    assert float(torch.linalg.eigvalsh((above + above.T) / 2).min()) > -1e-4


@pytest.mark.slow
@pytest.mark.parametrize("exclusive", [True, False])
def test_correlated_features_take_a_fraction_of_the_steps(exclusive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient steps are short where features are nearly the same; the bound takes them together."""
    regressions = make_ridge(exclusive=exclusive, l2=[1e-4])
    rows = design(regressions).clone()
    rows[:, :, 1:-1] = rows[:, :, :1] + 0.05 * rows[:, :, 1:-1]
    regressions = replace(regressions, blocks=[rows])
    steps: dict[str, int] = {}
    for module in (quadratic_bound, spin.sparsify.solvers.fista):
        step, name = module._Batch.step, module.__name__
        monkeypatch.setattr(
            module._Batch,
            "step",
            lambda *a, step=step, name=name: steps.update({name: steps.get(name, 0) + 1}) or step(*a),
        )
    limit = 1e-3 * regressions.steepest(zero_start(regressions))
    under_bound = solve_under_bound(regressions, zero_start(regressions), limit, max_steps=3000)
    by_gradients = autograd_view(regressions).solve(zero_start(regressions), limit, max_checks=300)
    assert steps[quadratic_bound.__name__] * 2 < steps[spin.sparsify.solvers.fista.__name__]
    for p in range(2):
        values = [float(objective(autograd_view(regressions), V[p, :, 0], p, 0)) for V in (under_bound, by_gradients)]
        assert values[0] <= values[1] * (1 + 1e-4)


def test_momentum_that_points_uphill_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With momentum that only grows a fit swings past its minimum and takes more steps."""
    regressions = make_ridge(exclusive=True, l2=[1e-3])
    limit = 1e-4 * regressions.steepest(zero_start(regressions))
    step, steps = quadratic_bound._Batch.step, Counter[str]()

    def count_step(batch: quadratic_bound._Batch, ahead: Tensor, slope: Tensor) -> None:
        steps["restarted"] += 1
        step(batch, ahead, slope)

    def step_on(batch: quadratic_bound._Batch, ahead: Tensor, slope: Tensor) -> None:
        steps["endless"] += 1
        momentum = batch.momentum
        step(batch, ahead, slope)
        batch.momentum = momentum

    for each in (count_step, step_on):
        monkeypatch.setattr(quadratic_bound._Batch, "step", each)
        solve_under_bound(regressions, zero_start(regressions), limit, max_steps=1000)
    assert steps["restarted"] < 0.8 * steps["endless"]


def test_max_steps_limits_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last point is returned, which is better than the start; a start within its limit takes no step."""
    regressions = make_ridge(exclusive=True, l2=[0.001])
    steps: list[int] = []
    step = quadratic_bound._Batch.step
    monkeypatch.setattr(quadratic_bound._Batch, "step", lambda *a: steps.append(1) or step(*a))
    V = solve_under_bound(regressions, zero_start(regressions), torch.full((2, 1), 1e-12), max_steps=4)
    assert len(steps) == 4
    at_start, at_end = (
        float(objective(autograd_view(regressions), values[0, :, 0], 0, 0)) for values in (zero_start(regressions), V)
    )
    assert at_end < at_start - 0.1
    steps.clear()
    solve_under_bound(regressions, V, torch.full((2, 1), 10.0), max_steps=4)
    assert not steps
