"""The FISTA solver: designs, targets and penalties in one batch, each solved up to its own limit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spin.sparsify.solvers.fista
from spin.process_group import ProcessGroup
from spin.sparsify.solvers.fista import STEPS, Regressions, full_float32


def make_regressions(
    *, exclusive: bool, l1: list[float], l2: list[float], seed: int = 0, blocks: int = 80
) -> Regressions:
    """Two designs of 80 rows with one three-output regression per penalty, each with its own targets and weights."""
    draw = np.random.default_rng(seed)
    count, n, p = len(l1), 80, 12
    X = np.ones((2, n, p + 1))
    X[:, :, :p] = draw.normal(size=(2, n, 3)) @ draw.normal(size=(2, 3, p)) + draw.normal(size=(2, n, p))
    logits = X[0, :, None, :3] * 1.5 + draw.gumbel(size=(n, count, 3))
    targets = (logits.argmax(2)[..., None] == np.arange(3)) if exclusive else logits > 1
    weights = draw.exponential(size=(n, count, 1 if exclusive else 3))
    scales = np.append(np.geomspace(1, 0.1, p), 1)[:, None, None] * np.ones((1, count, 1))
    values = X, targets, weights / weights.sum(0), scales, np.tile(l1, (2, 1)), np.tile(l2, (2, 1))
    tensors = [torch.as_tensor(v, dtype=torch.float32) for v in values]
    return Regressions(tensors[0].split(blocks, 1), *tensors[1:], exclusive, ProcessGroup())


def design(regressions: Regressions) -> Tensor:
    """(P, n, width + 1) all rows."""
    return torch.cat(list(regressions.blocks), 1)


def objective(regressions: Regressions, V: Tensor, p: int, b: int) -> Tensor:
    """The objective of one regression, from torch's own losses in float64."""
    V = V.double()
    scores = design(regressions)[p].double() @ (regressions.scales[:, b].double() * V)
    targets, weights = regressions.targets[:, b].double(), regressions.weights[:, b].double()
    if regressions.exclusive:
        losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")[:, None]
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    penalty = regressions.l1[p, b] * V[:-1].abs().sum() + regressions.l2[p, b] * (V[:-1] ** 2).sum() / 2
    return (weights * losses).sum() + penalty


def kkt_violation(regressions: Regressions, V: Tensor, p: int, b: int) -> float:
    """The largest violation of the optimality conditions of one regression, with slopes by autograd in float64."""
    V = V.double().requires_grad_()
    smooth = replace(regressions, l1=torch.zeros_like(regressions.l1))
    objective(smooth, V, p, b).backward()
    assert V.grad is not None
    slopes, l1 = V.grad.numpy(), float(regressions.l1[p, b])
    largest = float(np.abs(slopes[-1]).max())
    for j, k in np.ndindex(slopes[:-1].shape):
        v = float(V.detach()[j, k])
        largest = max(largest, abs(slopes[j, k] + l1 * np.sign(v)) if v else abs(slopes[j, k]) - l1)
    return largest


def zero_start(regressions: Regressions) -> Tensor:
    X = design(regressions)
    return torch.zeros(X.shape[0], X.shape[2], regressions.targets.shape[1], regressions.targets.shape[2])


@pytest.mark.parametrize("blocks", [80, 33])
@pytest.mark.parametrize("exclusive", [True, False])
def test_every_regression_of_a_batch_reaches_its_limit(exclusive: bool, blocks: int) -> None:
    """Two designs and five pairs of penalties have ten different limits; autograd finds no larger violation.

    The rows are one block, or three.
    """
    regressions = make_regressions(
        exclusive=exclusive, l1=[0.0, 0.003, 0.02, 0.05, 1.0], l2=[0.01, 0.001, 0.1, 0.0, 0.0], blocks=blocks
    )
    limit = torch.tensor([[1e-4, 3e-5, 1e-3, 1e-4, 1e-4], [1e-3, 1e-4, 3e-5, 1e-3, 1e-4]])
    V = regressions.solve(zero_start(regressions), limit, max_checks=300)
    for p, b in np.ndindex(2, 5):
        assert kkt_violation(regressions, V[p, :, b], p, b) <= 1.05 * float(limit[p, b]) + 1e-6
    assert not V[:, :-1, 4].any(), "an L1 penalty as large as that leaves no coefficient"
    assert V[:, -1, 4].abs().max() > 0.1, "the intercept is not penalised"


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_minimum_does_not_depend_on_the_start(exclusive: bool) -> None:
    """A start at zero and a random start reach the same minimum; `start` itself is not changed."""
    regressions = make_regressions(exclusive=exclusive, l1=[0.01, 0.0], l2=[0.01, 0.05])
    limit = torch.full((2, 2), 3e-5)
    random_start = torch.randn(zero_start(regressions).shape, generator=torch.Generator().manual_seed(0)) * 3
    copy_of_start = random_start.clone()
    cold, warm = regressions.solve(zero_start(regressions), limit, 300), regressions.solve(random_start, limit, 300)
    assert torch.equal(random_start, copy_of_start)
    for p, b in np.ndindex(2, 2):
        cold_objective, warm_objective = (
            objective(regressions, cold[p, :, b], p, b),
            objective(regressions, warm[p, :, b], p, b),
        )
        assert float(cold_objective) == pytest.approx(float(warm_objective), rel=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_steepest_is_the_largest_slope_of_the_loss(exclusive: bool) -> None:
    """It equals autograd's slope at a point, without the intercept's slope and without the penalties."""
    regressions = make_regressions(exclusive=exclusive, l1=[0.1, 0.2], l2=[0.3, 0.4])
    V = torch.randn(zero_start(regressions).shape, generator=torch.Generator().manual_seed(0))
    steepest = regressions.steepest(V)
    unpenalised = replace(regressions, l1=torch.zeros_like(regressions.l1), l2=torch.zeros_like(regressions.l2))
    for p, b in np.ndindex(2, 2):
        point = V[p, :, b].double().requires_grad_()
        objective(unpenalised, point, p, b).backward()
        assert point.grad is not None
        assert float(steepest[p, b]) == pytest.approx(float(point.grad[:-1].abs().max()), rel=1e-4)


def test_max_checks_limits_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver takes ten steps per check and returns the last point, which is better than the start."""
    regressions = make_regressions(exclusive=True, l1=[0.0], l2=[0.001])
    steps: list[int] = []
    step = spin.sparsify.solvers.fista._Batch.step
    monkeypatch.setattr(
        spin.sparsify.solvers.fista._Batch, "step", lambda batch, problem: steps.append(1) or step(batch, problem)
    )
    V = regressions.solve(zero_start(regressions), torch.full((2, 1), 1e-12), max_checks=3)
    assert len(steps) == 3 * STEPS
    assert (
        float(objective(regressions, V[0, :, 0], 0, 0))
        < float(objective(regressions, zero_start(regressions)[0, :, 0], 0, 0)) - 0.1
    )
    steps.clear()
    regressions.solve(V, torch.full((2, 1), 10.0), max_checks=3)
    assert not steps, "a start within its limit needs no step"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([1e-3, 0.1, 1.0, 5.0]), st.booleans())
def test_bregman_is_the_loss_minus_its_tangent(seed: int, outputs: int, size: float, exclusive: bool) -> None:
    """It is accurate against the definition in float64, also for minute moves."""
    draw = np.random.default_rng(seed)
    scores, moved = draw.normal(size=(4, outputs)) * 2, draw.normal(size=(4, outputs)) * size
    regressions = make_regressions(exclusive=exclusive, l1=[0.0], l2=[0.0])
    probabilities = regressions.probabilities(torch.as_tensor(scores))
    actual = regressions.bregman(probabilities.float(), torch.as_tensor(moved).float()).numpy()
    if exclusive:
        expected = np.logaddexp.reduce(scores + moved, axis=1) - np.logaddexp.reduce(scores, axis=1)
        expected = (expected - (probabilities.numpy() * moved).sum(1))[:, None]
    else:
        expected = np.logaddexp(0, scores + moved) - np.logaddexp(0, scores) - probabilities.numpy() * moved
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-9)


def test_full_float32_restores_the_precision_of_the_process() -> None:
    """The previous setting comes back after an error too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with suppress(ZeroDivisionError), full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("exclusive", [True, False])
def test_slopes_in_a_basis_are_those_of_the_features(exclusive: bool) -> None:
    """The weights are coordinates; how steep the loss is does not depend on the basis."""
    regressions = make_regressions(exclusive=exclusive, l1=[0.0, 0.0], l2=[0.01, 0.1])
    regressions = replace(regressions, scales=torch.ones_like(regressions.scales))
    X = design(regressions)
    basis = torch.linalg.qr(torch.from_numpy(np.random.default_rng(3).normal(size=(12, 12)).astype(np.float32)))[0]
    turned = replace(regressions, blocks=[torch.cat([X[..., :-1] @ basis, X[..., -1:]], 2)], basis=basis)
    V = torch.from_numpy(np.random.default_rng(4).normal(size=zero_start(regressions).shape).astype(np.float32))
    coordinates = torch.cat([(basis.T @ V[:, :-1].flatten(2)).unflatten(2, V.shape[2:]), V[:, -1:]], 1)
    torch.testing.assert_close(turned.steepest(coordinates), regressions.steepest(V), rtol=1e-4, atol=1e-6)
