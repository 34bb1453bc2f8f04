"""The descent: designs, problems and penalties in one batch, that stop where they are told to."""

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


def regressions(*, exclusive: bool, l1: list[float], l2: list[float], seed: int = 0) -> Regressions:
    """Two designs of 80 rows with a regression of 3 outputs a penalty, each with targets and weights of its own."""
    draw = np.random.default_rng(seed)
    count, n, p = len(l1), 80, 12
    X = np.ones((2, n, p + 1))
    X[:, :, :p] = draw.normal(size=(2, n, 3)) @ draw.normal(size=(2, 3, p)) + draw.normal(size=(2, n, p))
    logits = X[0, :, None, :3] * 1.5 + draw.gumbel(size=(n, count, 3))
    targets = (logits.argmax(2)[..., None] == np.arange(3)) if exclusive else logits > 1
    weights = draw.exponential(size=(n, count, 1 if exclusive else 3))
    scales = np.append(np.geomspace(1, 0.1, p), 1)[:, None, None] * np.ones((1, count, 1))
    values = X, targets, weights / weights.sum(0), scales, np.tile(l1, (2, 1)), np.tile(l2, (2, 1))
    return Regressions(*(torch.as_tensor(v, dtype=torch.float32) for v in values), exclusive, ProcessGroup())


def objective(of: Regressions, V: Tensor, p: int, b: int) -> Tensor:
    """What one regression minimises, by torch's own losses in float64."""
    V = V.double()
    scores = of.X[p].double() @ (of.scales[:, b].double() * V)
    targets, weights = of.targets[:, b].double(), of.weights[:, b].double()
    if of.exclusive:
        losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")[:, None]
    else:
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    penalty = of.l1[p, b] * V[:-1].abs().sum() + of.l2[p, b] * (V[:-1] ** 2).sum() / 2
    return (weights * losses).sum() + penalty


def violation(of: Regressions, V: Tensor, p: int, b: int) -> float:
    """The optimality conditions of one regression, the slopes by autograd in float64."""
    V = V.double().requires_grad_()
    smooth = replace(of, l1=torch.zeros_like(of.l1))
    objective(smooth, V, p, b).backward()
    assert V.grad is not None
    slopes, l1 = V.grad.numpy(), float(of.l1[p, b])
    worst = float(np.abs(slopes[-1]).max())
    for j, k in np.ndindex(slopes[:-1].shape):
        v = float(V.detach()[j, k])
        worst = max(worst, abs(slopes[j, k] + l1 * np.sign(v)) if v else abs(slopes[j, k]) - l1)
    return worst


def zeros(of: Regressions) -> Tensor:
    return torch.zeros(of.X.shape[0], of.X.shape[2], of.targets.shape[1], of.targets.shape[2])


@pytest.mark.parametrize("exclusive", [True, False])
def test_every_regression_of_a_batch_reaches_its_limit(exclusive: bool) -> None:
    """Two designs, five pairs of penalties and as many limits: by autograd no condition is violated by more."""
    of = regressions(exclusive=exclusive, l1=[0.0, 0.003, 0.02, 0.05, 1.0], l2=[0.01, 0.001, 0.1, 0.0, 0.0])
    limit = torch.tensor([[1e-4, 3e-5, 1e-3, 1e-4, 1e-4], [1e-3, 1e-4, 3e-5, 1e-3, 1e-4]])
    V = of.solve(zeros(of), limit, max_checks=300)
    for p, b in np.ndindex(2, 5):
        assert violation(of, V[p, :, b], p, b) <= 1.05 * float(limit[p, b]) + 1e-6
    assert not V[:, :-1, 4].any(), "nothing speaks against an L1 part as large as that"
    assert V[:, -1, 4].abs().max() > 0.1, "but the intercept, which none holds"


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_start_does_not_matter(exclusive: bool) -> None:
    """From zero or from nonsense, the same minimum; `start` itself is left as it was."""
    of = regressions(exclusive=exclusive, l1=[0.01, 0.0], l2=[0.01, 0.05])
    limit = torch.full((2, 2), 3e-5)
    nonsense = torch.randn(zeros(of).shape, generator=torch.Generator().manual_seed(0)) * 3
    before = nonsense.clone()
    cold, warm = of.solve(zeros(of), limit, 300), of.solve(nonsense, limit, 300)
    assert torch.equal(nonsense, before)
    for p, b in np.ndindex(2, 2):
        here, there = objective(of, cold[p, :, b], p, b), objective(of, warm[p, :, b], p, b)
        assert float(here) == pytest.approx(float(there), rel=1e-5)


@pytest.mark.parametrize("exclusive", [True, False])
def test_steepest_is_the_largest_slope(exclusive: bool) -> None:
    """Of the loss at a point, by autograd, the intercept's and the penalties' aside."""
    of = regressions(exclusive=exclusive, l1=[0.1, 0.2], l2=[0.3, 0.4])
    V = torch.randn(zeros(of).shape, generator=torch.Generator().manual_seed(0))
    found = of.steepest(V)
    bare = replace(of, l1=torch.zeros_like(of.l1), l2=torch.zeros_like(of.l2))
    for p, b in np.ndindex(2, 2):
        point = V[p, :, b].double().requires_grad_()
        objective(bare, point, p, b).backward()
        assert point.grad is not None
        assert float(found[p, b]) == pytest.approx(float(point.grad[:-1].abs().max()), rel=1e-4)


def test_looks_bound_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps a look and no more; the last point is given back, nearer than the start."""
    of = regressions(exclusive=True, l1=[0.0], l2=[0.001])
    steps: list[int] = []
    step = spin.sparsify.solvers.fista._Batch.step
    monkeypatch.setattr(
        spin.sparsify.solvers.fista._Batch, "step", lambda batch, problem: steps.append(1) or step(batch, problem)
    )
    V = of.solve(zeros(of), torch.full((2, 1), 1e-12), max_checks=3)
    assert len(steps) == 3 * STEPS
    assert float(objective(of, V[0, :, 0], 0, 0)) < float(objective(of, zeros(of)[0, :, 0], 0, 0)) - 0.1
    steps.clear()
    of.solve(V, torch.full((2, 1), 10.0), max_checks=3)
    assert not steps, "what is within its limit takes no step"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([1e-3, 0.1, 1.0, 5.0]), st.booleans())
def test_the_rise_above_the_tangent_is_exact(seed: int, outputs: int, size: float, exclusive: bool) -> None:
    """The loss at moved scores less its tangent, by its definition in float64; also for minute moves."""
    draw = np.random.default_rng(seed)
    scores, moved = draw.normal(size=(4, outputs)) * 2, draw.normal(size=(4, outputs)) * size
    of = regressions(exclusive=exclusive, l1=[0.0], l2=[0.0])
    probabilities = of.probabilities(torch.as_tensor(scores))
    found = of.bregman(probabilities.float(), torch.as_tensor(moved).float()).numpy()
    if exclusive:
        expected = np.logaddexp.reduce(scores + moved, axis=1) - np.logaddexp.reduce(scores, axis=1)
        expected = (expected - (probabilities.numpy() * moved).sum(1))[:, None]
    else:
        expected = np.logaddexp(0, scores + moved) - np.logaddexp(0, scores) - probabilities.numpy() * moved
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-9)


def test_full_float32_is_for_the_context_alone() -> None:
    """What the process has set comes back, after an error too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with suppress(ZeroDivisionError), full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
