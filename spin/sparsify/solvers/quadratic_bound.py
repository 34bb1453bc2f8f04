"""Ridge logistic regressions at once, by steps under a quadratic bound of the loss: few of them, each by a matrix.

The Hessian of a logistic loss is nowhere above a constant matrix (Böhning & Lindsay 1988; for several classes Böhning
1992). To minimise the quadratic with that matrix in place of the Hessian never raises the loss and needs no line
search. It takes correlated features together, on which a gradient step has to be short.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spin.sparsify.solvers.fista import Batch, Regressions, full_float32, keep_worst

MOST_WIDTH = 4096
"""features of a design up to which its bound is inverted: memory grows with their square, time with their cube"""
_JITTER = 1e-6
"""added to the diagonal of the bound, as a share of its trace, so that float32 can factorise it"""


def solve_under_bound(problem: Regressions, start: Tensor, limit: Tensor, max_steps: int) -> Tensor:
    """The minimisers (P, width + 1, B, K), to within a violation of `limit` (P, B) of the optimality conditions.

    The regressions have no L1 penalty, and those of a design have their weights in common. Steps are accelerated
    (Nesterov 1983) and restarted where the momentum points uphill (O'Donoghue & Candès 2015). Regressions leave the
    batch once they are within their limits; those that `max_steps` keeps from it are returned as they are.
    """
    solution = start.clone()
    with full_float32(), torch.no_grad():
        batch = _Batch.at(problem, solution, limit)
        for step in range(max_steps + 1):
            ahead, slope = batch.look_ahead(problem)
            solution.scatter_(2, batch.index[:, None, :, None].expand_as(ahead), ahead)
            violation = _violation(problem, slope) / batch.limit
            unsolved = int((violation > 1).sum(1).max())
            if unsolved == 0 or step == max_steps:
                break
            batch.step(ahead, slope)
            if unsolved < violation.shape[1]:
                batch = keep_worst(batch, violation, unsolved)
    return solution


def _violation(problem: Regressions, slope: Tensor) -> Tensor:
    """(P, B) the largest slope of the objective, with respect to the weight of any feature or to an intercept."""
    return torch.maximum(problem.of_features(slope[:, :-1]).abs().amax((1, 3)), slope[:, -1].abs().amax(2))


@dataclass
class _Batch(Batch):
    """The regressions while they descend under the bound."""

    limit: Tensor
    """(P, B) largest violation with which a regression counts as solved"""
    ridge: Tensor
    """(P, width + 1, B, 1) the penalty of each weight: 0 for the intercept"""
    inverse: Tensor
    """(P, width + 1, B, width + 1) inverse of the bound of the objective's Hessian, the same for all K outputs"""

    @classmethod
    def at(cls, of: Regressions, V: Tensor, limit: Tensor) -> _Batch:
        designs, _, count, _ = V.shape
        targets, weights, scales = (x.expand(designs, -1, count, -1) for x in (of.targets, of.weights, of.scales))
        index = torch.arange(count, device=V.device).expand(designs, -1)
        ridge = of.l2[:, None, :, None].repeat(1, V.shape[1], 1, 1)
        ridge[:, -1] = 0
        inverse = _invert_bound(of, weights[:, :, 0], scales[:, :, 0], ridge[..., 0])
        return cls(index, targets, weights, scales, V, V, torch.ones_like(limit), limit, ridge, inverse)

    def look_ahead(self, of: Regressions) -> tuple[Tensor, Tensor]:
        """The point ahead of V in the direction of the last step, and the slope of the objective there."""
        self.momentum, before = (1 + (1 + 4 * self.momentum**2).sqrt()) / 2, self.momentum
        pace = (before - 1) / self.momentum
        ahead = self.V + pace[:, None, :, None] * (self.V - self.old_V)
        residual = self.weights * (of.probabilities(of.scores(ahead, self.scales)) - self.targets)
        return ahead, of.gradient(lambda rows: residual[:, rows], self.scales) + self.ridge * ahead

    def step(self, ahead: Tensor, slope: Tensor) -> None:
        """Go to the minimum of the quadratic that bounds the objective, and touches it at the point ahead."""
        new = ahead - torch.einsum("pvbw,pwbk->pvbk", self.inverse, slope)
        uphill = (slope * (new - self.V)).sum((1, 3)) > 0
        self.momentum = torch.where(uphill, 1, self.momentum)
        self.old_V, self.V = self.V, new


def _invert_bound(of: Regressions, weights: Tensor, scales: Tensor, ridge: Tensor) -> Tensor:
    """(P, width + 1, B, width + 1) the inverse of the bound of the objective's Hessian.

    `weights` are (P, n, K or 1), `scales` (P, width + 1, 1) and the penalties `ridge` (P, width + 1, B). The curvature
    of the loss by the scores of a row is at most half its weight for exclusive classes: no eigenvalue of
    diag(p) - p p^T is above 1/2. For independent classes it is at most a quarter, since p (1 - p) is.
    """
    largest = weights.amax(2, keepdim=True) * (0.5 if of.exclusive else 0.25)
    gram = torch.zeros(())
    for rows, block in of.rows():
        gram = gram + (block * largest[:, rows]).mT @ block
    gram = of.group.all_reduce(gram) * scales * scales.mT
    jitter = _JITTER * gram.diagonal(dim1=1, dim2=2).sum(1)
    inverse = gram.new_empty(len(gram), ridge.shape[2], *gram.shape[1:])
    for index, penalties in enumerate(ridge.unbind(2)):  # one by one, since a factor takes as much memory as an inverse
        bound = gram.clone()
        bound.diagonal(dim1=1, dim2=2).add_(penalties + jitter[:, None])
        inverse[:, index] = torch.cholesky_inverse(torch.linalg.cholesky(bound))
    return inverse.transpose(1, 2)
