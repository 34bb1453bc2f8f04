"""FISTA: many penalised logistic regressions at once, by matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from spin.process_group import ProcessGroup

STEPS = 10
"""steps between two checks of the violation: a check costs a product and waits for the device"""


@dataclass(frozen=True)
class Regressions:
    """P designs with B regressions each, of K outputs.

    Each minimises sum_i s_i loss(y_i, (d x_i) V + b) + l1 |V|_1 + l2 |V|^2 / 2 over V (width, K) and b (K,).
    """

    X: Tensor
    """(P, n, width + 1), the last column 1: its row of V is the intercept, which is not penalised"""
    targets: Tensor
    """(n, B, K) of 0 and 1"""
    weights: Tensor
    """(n, B, 1) or (n, B, K): s, summing to 1 over the rows of the whole group"""
    scales: Tensor
    """(width + 1, B, 1): d, 1 for the intercept"""
    l1: Tensor
    """(P, B)"""
    l2: Tensor
    """(P, B)"""
    exclusive: bool
    """whether a row has exactly one of the outputs (softmax), or each is independent (sigmoid)"""
    group: ProcessGroup
    """the processes that hold the other rows"""

    def solve(self, start: Tensor, limit: Tensor, max_checks: int) -> Tensor:
        """The minimisers (P, width + 1, B, K), to within a violation of `limit` (P, B) of the optimality conditions.

        Descends from `start` by FISTA (Beck & Teboulle 2009), restarted where the momentum points uphill (O'Donoghue &
        Candès 2015). All regressions take their steps in one batch, which converged ones leave; the step size of each
        follows the curvature along its own path. Those that `max_checks` or float32 keeps from the limit are returned
        as they are.
        """
        solution = start.clone()
        with full_float32(), torch.no_grad():
            batch = _Batch.at(self, solution)
            for check in range(max_checks + 1):
                violation = batch.violation(self) / limit.gather(1, batch.index)
                solution.scatter_(2, batch.index[:, None, :, None].expand_as(batch.V), batch.V)
                unsolved = int((violation > 1).sum(1).max())
                if unsolved == 0 or check == max_checks:
                    break
                if unsolved < violation.shape[1]:  # a design with fewer unsolved ones continues with its worst
                    batch = batch.keep(violation.argsort(1, descending=True)[:, :unsolved])
                for _ in range(STEPS):
                    batch.step(self)
        return solution

    def steepest(self, V: Tensor) -> Tensor:
        """(P, B) the largest slope of the loss at V, leaving out the intercept."""
        with full_float32():
            residual = self.weights * (self.probabilities(self.scores(V, self.scales)) - self.targets)
            return self.gradient(residual, self.scales)[:, :-1].abs().amax((1, 3))

    def probabilities(self, scores: Tensor) -> Tensor:
        """The probability of each output, (…, K)."""
        return scores.softmax(-1) if self.exclusive else scores.sigmoid()

    def bregman(self, probabilities: Tensor, moved: Tensor) -> Tensor:
        """By how much the loss (…, K or 1) rises above its tangent when scores of these probabilities move.

        log E exp(m - E m) over the outcomes, summed without the cancellation that float32 would blur.
        """
        if self.exclusive:
            centred = moved - (probabilities * moved).sum(-1, keepdim=True)
            return (probabilities * _excess(centred)).sum(-1, keepdim=True).log1p()
        yes, no = (1 - probabilities) * moved, -probabilities * moved
        return (probabilities * _excess(yes) + (1 - probabilities) * _excess(no)).log1p()

    def scores(self, V: Tensor, scales: Tensor) -> Tensor:
        """(P, n, B, K) of all rows."""
        return (self.X @ (scales * V).flatten(2)).unflatten(2, V.shape[2:])

    def gradient(self, residual: Tensor, scales: Tensor) -> Tensor:
        """(P, width + 1, B, K) the gradient of the loss with respect to V, over the rows of the whole group."""
        # few rows times X: a CPU multiplies that up to four times as fast as X transposed times few columns
        slopes = (residual.flatten(2).mT @ self.X).mT.contiguous()
        return self.group.all_reduce(slopes).unflatten(2, residual.shape[2:]) * scales


@dataclass
class _Batch:
    """The regressions that are not solved yet; B is the second last axis, except in the (P, B) fields."""

    index: Tensor
    """(P, B) their positions among all regressions"""
    l1: Tensor
    """(P, B)"""
    l2: Tensor
    targets: Tensor
    """(P, n, B, K)"""
    weights: Tensor
    """(P, n, B, K or 1)"""
    scales: Tensor
    """(P, width + 1, B, 1)"""
    V: Tensor
    """(P, width + 1, B, K)"""
    scores: Tensor
    """(P, n, B, K) at V"""
    old_V: Tensor
    """V before the last step"""
    old_scores: Tensor
    momentum: Tensor
    """(P, B) t of FISTA"""
    curvature: Tensor
    """(P, B) the inverse of the step size"""

    @classmethod
    def at(cls, of: Regressions, V: Tensor) -> _Batch:
        designs, _, count, _ = V.shape
        targets, weights, scales = (x.expand(designs, -1, count, -1) for x in (of.targets, of.weights, of.scales))
        index = torch.arange(count, device=V.device).expand(designs, -1)
        one = torch.ones_like(of.l1)
        V, scores = V.clone(), of.scores(V, scales)
        return cls(index, of.l1, of.l2, targets, weights, scales, V, scores, V, scores, one, one)

    def keep(self, chosen: Tensor) -> _Batch:
        """The batch with only some of its regressions, given by their positions (P, B')."""

        def taken(x: Tensor) -> Tensor:
            if x.ndim == 2:
                return x.gather(1, chosen)
            return x.gather(2, chosen[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

        return _Batch(**{f.name: taken(getattr(self, f.name)) for f in fields(self)})

    def step(self, of: Regressions) -> None:
        """One proximal gradient step from a point ahead of V, undone for a regression whose step was too long."""
        momentum = (1 + (1 + 4 * self.momentum**2).sqrt()) / 2
        pace = ((self.momentum - 1) / momentum)[:, None, :, None]
        ahead = self.V + pace * (self.V - self.old_V)
        ahead_scores = self.scores + pace * (self.scores - self.old_scores)
        probabilities = of.probabilities(ahead_scores)
        gradient = of.gradient(self.weights * (probabilities - self.targets), self.scales)
        new = self._shrink(ahead - gradient / self.curvature[:, None, :, None])
        move = new - ahead
        moved = of.scores(move, self.scales)
        rise = of.group.all_reduce((self.weights * of.bregman(probabilities, moved)).sum((1, 3)))
        length, slope = of.group.broadcast(torch.stack([(move**2).sum((1, 3)), (move * (new - self.V)).sum((1, 3))]))
        fits, uphill = rise <= self.curvature / 2 * length, slope < 0
        self.momentum = torch.where(fits, torch.where(uphill, 1, momentum), self.momentum)
        self.curvature = (self.curvature * torch.where(fits, 0.9, 2.0)).clamp(min=1e-6)
        fits = fits[:, None, :, None]
        self.old_V, self.V = torch.where(fits, self.V, self.old_V), torch.where(fits, new, self.V)
        self.old_scores = torch.where(fits, self.scores, self.old_scores)
        self.scores = torch.where(fits, ahead_scores + moved, self.scores)

    def violation(self, of: Regressions) -> Tensor:
        """(P, B) the largest violation of the optimality conditions.

        Takes both scores afresh: steps only add to them, and the momentum lets rounding errors grow.
        """
        self.scores, self.old_scores = of.scores(self.V, self.scales), of.scores(self.old_V, self.scales)
        gradient = of.gradient(self.weights * (of.probabilities(self.scores) - self.targets), self.scales)
        V, l1, l2 = self.V[:, :-1], self.l1[:, None, :, None], self.l2[:, None, :, None]
        slope = gradient[:, :-1] + l2 * V
        distance = torch.where(V != 0, (slope + l1 * V.sign()).abs(), (slope.abs() - l1).clamp(min=0))
        return torch.maximum(distance.amax((1, 3)), gradient[:, -1].abs().amax(2))

    def _shrink(self, V: Tensor) -> Tensor:
        """The proximal map of the elastic net, which leaves the intercept as it is."""
        l1, l2 = ((x / self.curvature)[:, None, :, None] for x in (self.l1, self.l2))
        shrunk = V.sign() * (V.abs() - l1).clamp(min=0) / (1 + l2)
        shrunk[:, -1] = V[:, -1]
        return shrunk


def _excess(m: Tensor) -> Tensor:
    """exp(m) - 1 - m, by its series where float32 would cancel."""
    return torch.where(m.abs() < 0.02, m**2 * (0.5 + m / 6), m.expm1() - m)


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products without TF32, whatever the process has set: its ten bits of mantissa would hide the violation."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
