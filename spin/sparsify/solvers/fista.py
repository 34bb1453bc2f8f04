"""FISTA: many penalised logistic regressions at once, by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TypeVar

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

    blocks: Iterable[Tensor]
    """(P, m, width + 1) each: blocks of the n rows, which are gone through twice per step and may be read from a disk.
    The last column is 1: its row of V is the intercept, which is not penalised"""
    targets: Tensor
    """(n, B, K) of 0 and 1, or (P, n, B, K) if each design has its own rows"""
    weights: Tensor
    """(n, B, 1) or (n, B, K), or those of each design: s, summing to 1 over the rows of the whole group"""
    scales: Tensor
    """(width + 1, B, 1), or that of each design: d, 1 for the intercept"""
    l1: Tensor
    """(P, B) factor of |V|_1"""
    l2: Tensor
    """(P, B) factor of |V|^2 / 2"""
    exclusive: bool
    """whether a row has exactly one of the outputs (softmax), or each is independent (sigmoid)"""
    group: ProcessGroup
    """the processes that hold the other rows"""
    basis: Tensor | None = None
    """(p, width) or (P, p, width) orthonormal, if V are coordinates in it of weights of p features, for `steepest` and
    `of_features`; `solve` takes none, since an l1 penalty depends on the coordinates"""

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
                if unsolved < violation.shape[1]:
                    batch = keep_worst(batch, violation, unsolved)
                for _ in range(STEPS):
                    batch.step(self)
        return solution

    def steepest(self, V: Tensor) -> Tensor:
        """(P, B) the largest slope of the loss at V, leaving out the intercept."""
        with full_float32():
            scores = self.scores(V, self.scales)
            residuals = self.weights * (self.probabilities(scores) - self.targets)
            gradient = self.gradient(lambda rows: residuals[:, rows], self.scales)
            return self.of_features(gradient[:, :-1]).abs().amax((1, 3))

    def of_features(self, slopes: Tensor) -> Tensor:
        """The slopes (P, p, B, K) with respect to the weights of the features, of those (P, width, B, K) of V."""
        if self.basis is None:
            return slopes
        return (self.basis @ slopes.flatten(2)).unflatten(2, slopes.shape[2:])

    def probabilities(self, scores: Tensor) -> Tensor:
        """(…, K) the probability of each output, by its score."""
        return scores.softmax(-1) if self.exclusive else scores.sigmoid()

    def bregman(self, probabilities: Tensor, moved: Tensor) -> Tensor:
        """The rise of the loss (…, K or 1) above its tangent when scores of these probabilities move.

        It is log E exp(m - E m) over the outcomes (the Bregman divergence of log-sum-exp). Computed as
        log(1 + E[exp(m - E m) - 1 - (m - E m)]), it does not lose a small rise to cancellation in float32.
        """
        if self.exclusive:
            centred = moved - (probabilities * moved).sum(-1, keepdim=True)
            return (probabilities * _excess(centred)).sum(-1, keepdim=True).log1p()
        yes, no = (1 - probabilities) * moved, -probabilities * moved
        return (probabilities * _excess(yes) + (1 - probabilities) * _excess(no)).log1p()

    def scores(self, V: Tensor, scales: Tensor) -> Tensor:
        """(P, n, B, K) the scores of all rows."""
        weights = (scales * V).flatten(2)
        return torch.cat([_multiply(block, weights) for block in self.blocks], 1).unflatten(2, V.shape[2:])

    def gradient(self, residual: Callable[[slice], Tensor], scales: Tensor) -> Tensor:
        """(P, width + 1, B, K) the gradient of the loss with respect to V, over the rows of the whole group.

        `residual` returns the derivative (P, m, B, K) of the loss with respect to the scores of m rows.
        """
        total: Tensor | None = None
        for rows, block in self.rows():
            of_rows = residual(rows)
            slopes = of_rows.flatten(2).mT @ block  # for the reason that `_multiply` gives
            total = slopes if total is None else total.add_(slopes)
        assert total is not None
        return self.group.all_reduce(total.mT.contiguous()).unflatten(2, of_rows.shape[2:]) * scales

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """The blocks, each with the rows that it holds."""
        start = 0
        for block in self.blocks:
            yield slice(start, start + block.shape[1]), block
            start += block.shape[1]


@dataclass
class Batch:
    """The regressions that are not solved yet; B is the second last axis, except in the (P, B) fields."""

    index: Tensor
    """(P, B) the regressions' positions among all"""
    targets: Tensor
    """(P, n, B, K)"""
    weights: Tensor
    """(P, n, B, K or 1)"""
    scales: Tensor
    """(P, width + 1, B, 1)"""
    V: Tensor
    """(P, width + 1, B, K)"""
    old_V: Tensor
    """V before the last step"""
    momentum: Tensor
    """(P, B) t of Nesterov's sequence"""


@dataclass
class _Batch(Batch):
    """The regressions while they descend by FISTA."""

    l1: Tensor
    """(P, B) factor of |V|_1"""
    l2: Tensor
    """(P, B) factor of |V|^2 / 2"""
    scores: Tensor
    """(P, n, B, K) scores of the rows at V"""
    old_scores: Tensor
    """scores at `old_V`"""
    curvature: Tensor
    """(P, B) the inverse of the step size"""

    @classmethod
    def at(cls, of: Regressions, V: Tensor) -> _Batch:
        designs, _, count, _ = V.shape
        targets, weights, scales = (x.expand(designs, -1, count, -1) for x in (of.targets, of.weights, of.scales))
        index = torch.arange(count, device=V.device).expand(designs, -1)
        one = torch.ones_like(of.l1)
        V, scores = V.clone(), of.scores(V, scales)
        return cls(index, targets, weights, scales, V, V, one, of.l1, of.l2, scores, scores, one)

    def step(self, of: Regressions) -> None:
        """Take one proximal gradient step from a point ahead of V; a regression whose step is too long stays.

        The quadratic with curvature 1 / step size touches the loss at the point ahead. A step is too long where that
        quadratic lies below the loss at the new point (Beck & Teboulle 2009).
        """
        # t' = (1 + sqrt(1 + 4 t^2)) / 2, and the point ahead is V + (t - 1) / t' (V - old V)
        momentum = (1 + (1 + 4 * self.momentum**2).sqrt()) / 2
        pace = ((self.momentum - 1) / momentum)[:, None, :, None]
        ahead = self.V + pace * (self.V - self.old_V)
        gradient = of.gradient(lambda rows: self._residual(of, self._ahead(pace, rows), rows), self.scales)
        new = self._shrink(ahead - gradient / self.curvature[:, None, :, None])
        move = new - ahead
        new_scores, rise = self._move(of, pace, move)
        # rounding may differ among members: the first one's numbers decide, so that all take the same steps
        length, slope = of.group.broadcast(torch.stack([(move**2).sum((1, 3)), (move * (new - self.V)).sum((1, 3))]))
        # move points along minus the generalised gradient: a negative product with the step from V means uphill
        fits, uphill = rise <= self.curvature / 2 * length, slope < 0
        self.momentum = torch.where(fits, torch.where(uphill, 1, momentum), self.momentum)
        # each step that fits lets the next one be longer, so that the curvature may also fall along the path
        self.curvature = (self.curvature * torch.where(fits, 0.9, 2.0)).clamp(min=1e-6)
        fits = fits[:, None, :, None]
        self.old_V, self.V = torch.where(fits, self.V, self.old_V), torch.where(fits, new, self.V)
        self.old_scores = torch.where(fits, self.scores, self.old_scores)
        self.scores = torch.where(fits, new_scores, self.scores)

    def _ahead(self, pace: Tensor, rows: slice) -> Tensor:
        """(P, m, B, K) the scores of some rows at the point ahead of V: without a product, as they are linear in V."""
        scores = self.scores[:, rows]
        return scores + pace * (scores - self.old_scores[:, rows])

    def _residual(self, of: Regressions, scores: Tensor, rows: slice) -> Tensor:
        """(P, m, B, K) the derivative of the loss with respect to the scores of some rows."""
        return self.weights[:, rows] * (of.probabilities(scores) - self.targets[:, rows])

    def _move(self, of: Regressions, pace: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
        """The scores (P, n, B, K) after a move of V from the point ahead, and the rise (P, B) of the loss.

        The rise is that above the tangent at the point ahead.
        """
        scores, rise = torch.empty_like(self.scores), torch.zeros_like(self.curvature)
        weights = (self.scales * move).flatten(2)
        for rows, block in of.rows():
            ahead, moved = self._ahead(pace, rows), _multiply(block, weights).unflatten(2, move.shape[2:])
            rise += (self.weights[:, rows] * of.bregman(of.probabilities(ahead), moved)).sum((1, 3))
            scores[:, rows] = ahead + moved
        return scores, of.group.all_reduce(rise)

    def violation(self, of: Regressions) -> Tensor:
        """(P, B) the largest violation of the optimality conditions.

        Both scores are computed afresh: steps only add to them, and the momentum lets rounding errors grow.
        """
        self.scores, self.old_scores = of.scores(self.V, self.scales), of.scores(self.old_V, self.scales)
        gradient = of.gradient(lambda rows: self._residual(of, self.scores[:, rows], rows), self.scales)
        V, l1, l2 = self.V[:, :-1], self.l1[:, None, :, None], self.l2[:, None, :, None]
        slope = gradient[:, :-1] + l2 * V
        # the distance of the negative slope from the subdifferential of l1 |V|_1
        distance = torch.where(V != 0, (slope + l1 * V.sign()).abs(), (slope.abs() - l1).clamp(min=0))
        return torch.maximum(distance.amax((1, 3)), gradient[:, -1].abs().amax(2))

    def _shrink(self, V: Tensor) -> Tensor:
        """The proximal map of the elastic net, which leaves the intercept as it is: shrink by l1, divide by l2."""
        l1, l2 = ((x / self.curvature)[:, None, :, None] for x in (self.l1, self.l2))
        shrunk = V.sign() * (V.abs() - l1).clamp(min=0) / (1 + l2)
        shrunk[:, -1] = V[:, -1]
        return shrunk


AnyBatch = TypeVar("AnyBatch", bound=Batch)


def keep_worst(batch: AnyBatch, violation: Tensor, count: int) -> AnyBatch:
    """The batch with only the `count` regressions of each design whose `violation` (P, B) is largest."""
    chosen = violation.argsort(1, descending=True)[:, :count]

    def taken(x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x.gather(1, chosen)
        return x.gather(2, chosen[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    return replace(batch, **{f.name: taken(getattr(batch, f.name)) for f in fields(batch)})


def _multiply(block: Tensor, weights: Tensor) -> Tensor:
    """(P, m, c) the product of a block (P, m, w) and weights (P, w, c) of few columns.

    It is computed as a product of few rows, which a CPU multiplies two to four times as fast as few columns.
    """
    return (weights.mT @ block.mT).mT.contiguous()


def _excess(m: Tensor) -> Tensor:
    """exp(m) - 1 - m, by its series below 0.02, where the difference would cancel in float32."""
    return torch.where(m.abs() < 0.02, m**2 * (0.5 + m / 6), m.expm1() - m)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute matrix products without TF32 within the context: its ten bits of mantissa would hide the violation."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
