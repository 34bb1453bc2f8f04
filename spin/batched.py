"""L1 logistic regression by matrix products: all penalties, problems and designs at once, as a GPU wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
TOLERANCE = 1e-3
"""relative KKT violation at which a solution is accepted"""
STEPS = 10
"""between two looks at the violation: a look costs a product and waits for the device"""
MAX_LOOKS = 300
"""after which what has not converged is given back as it is"""


class BatchedPaths:
    """The minimisers of sum_i s_ki log(1 + exp(-y_ki (x_i w + b))) + lam |w|_1 for P designs, K problems, L penalties.

    Accelerated proximal gradient (FISTA, Beck & Teboulle 2009), restarted where the momentum points uphill
    (O'Donoghue & Candès 2015), on all P × L × K problems in one batch, which the converged ones leave. Every problem
    takes steps as long as the curvature on its own way allows, not as the worst of all directions would. What
    float32 or `MAX_LOOKS` keeps from `TOLERANCE` is returned without a mark: the caller certifies.
    """

    lam_max: NDArray[np.float64]
    """(P,) for each design the smallest penalty at which the solutions of all K problems are zero"""

    def __init__(self, designs: Sequence[Floats], targets: Floats, weights: Floats, *, device: str = "cpu") -> None:
        """`designs` are P arrays (n, width), float32 and standardised; `targets` (K, n) is -1 or 1.

        Each row of `weights` (K, n) sums to 1.
        """
        self._positive = torch.as_tensor(targets > 0, device=device).float().T  # (n, K)
        self._weights = torch.as_tensor(weights, dtype=torch.float32, device=device).T  # (n, K)
        n, width = designs[0].shape
        self._X = torch.ones(len(designs), n, width + 1, device=device)  # the last column is the intercept's
        for mine, design in zip(self._X, designs, strict=True):
            mine[:, :width] = torch.as_tensor(design, device=device)
        # a problem without one of its classes would have its intercept at infinity
        share = (self._positive * self._weights).sum(0).clamp(1e-6, 1 - 1e-6)
        start = torch.zeros(len(designs), width + 1, 1, len(share), device=device)
        start[:, width] = share.logit()
        with _full_float32():
            gradient = self._X[:, :, :width].mT @ (self._weights * (share - self._positive))
        self.lam_max = gradient.abs().amax((1, 2)).double().cpu().numpy()
        self._lams, self._solved = self.lam_max[None], start  # (L, P) and (P, width + 1, L, K), for a warm start

    def solve(self, lams: Floats) -> tuple[Floats, Floats]:
        """The solutions at the penalties `lams` (L, P): coef (L, P, K, width) and intercept (L, P, K) in float32.

        Each starts from the solution of the last call at the nearest penalty, in the first call from zero.
        """
        apart = np.abs(np.log(np.maximum(self._lams, 1e-30)) - np.log(lams)[:, None])  # (L, L last, P)
        nearest = torch.as_tensor(apart.argmin(1).T, device=self._X.device)  # (P, L)
        shape = *self._solved.shape[:2], len(lams), self._solved.shape[3]
        w = self._solved.gather(2, nearest[:, None, :, None].expand(shape)).flatten(2)
        penalties = torch.as_tensor(lams.T, dtype=torch.float32, device=w.device)
        with _full_float32(), torch.no_grad():
            self._minimise(w, penalties.repeat_interleave(shape[3], 1))
        self._lams, self._solved = np.array(lams), w.view(shape)
        found = self._solved.permute(2, 0, 3, 1).cpu().numpy()
        return np.ascontiguousarray(found[..., :-1]), np.ascontiguousarray(found[..., -1])

    def _minimise(self, solution: Tensor, lam: Tensor) -> None:
        """Move `solution` (P, width + 1, B) to the minimisers at `lam` (P, B); problem b of a design is b % K."""
        batch = _Batch.at(self._X, solution, lam, self._positive, self._weights)
        for look in range(MAX_LOOKS + 1):
            violation = batch.violation(self._X)
            solution.scatter_(2, batch.index[:, None].expand_as(batch.w), batch.w)
            left = int((violation > TOLERANCE).sum(1).max())
            if left == 0 or look == MAX_LOOKS:
                break
            if left < violation.shape[1]:  # a design that has fewer left than another goes on with its worst
                batch = batch.keep(violation.argsort(1, descending=True)[:, :left])
            for _ in range(STEPS):
                batch.step(self._X)


@dataclass
class _Batch:
    """The problems that are still being solved, along the last axis of every field."""

    index: Tensor
    """(P, B) which of all"""
    lam: Tensor
    """(P, B)"""
    positive: Tensor
    """(P, n, B) 1 where the target is 1, else 0"""
    weights: Tensor
    """(P, n, B)"""
    w: Tensor
    """(P, width + 1, B) the coefficients, then the intercept"""
    scores: Tensor
    """(P, n, B) of the rows at w"""
    old_w: Tensor
    """where the last step came from"""
    old_scores: Tensor
    momentum: Tensor
    """(P, B) t of FISTA"""
    curvature: Tensor
    """(P, B) one over the step"""

    @classmethod
    def at(cls, X: Tensor, w: Tensor, lam: Tensor, positive: Tensor, weights: Tensor) -> _Batch:
        """A batch that starts at `w`; `positive` and `weights` are (n, K)."""
        index = torch.arange(lam.shape[1], device=X.device).expand_as(lam)
        positive, weights = (
            x.repeat(1, lam.shape[1] // x.shape[1]).expand(len(X), -1, -1) for x in (positive, weights)
        )
        w, scores, one = w.clone(), X @ w, torch.ones_like(lam)
        return cls(index, lam, positive, weights, w, scores, w, scores, one, one)

    def keep(self, chosen: Tensor) -> _Batch:
        """Only the problems `chosen` (P, B') among these."""
        taken = {}
        for name in (f.name for f in fields(self)):
            x = getattr(self, name)
            taken[name] = x.gather(-1, (chosen if x.ndim == 2 else chosen[:, None].expand(-1, x.shape[1], -1)))
        return _Batch(**taken)

    def step(self, X: Tensor) -> None:
        """One proximal gradient step from a point ahead of `w`, undone for a problem whose step was too long.

        It was not if the largest second derivative of the loss between the two points is at most `curvature`: an
        upper bound of the loss that, unlike a difference of losses, float32 does not blur.
        """
        momentum = (1 + (1 + 4 * self.momentum**2).sqrt()) / 2
        pace = ((self.momentum - 1) / momentum)[:, None]
        ahead = self.w + pace * (self.w - self.old_w)
        ahead_scores = self.scores + pace * (self.scores - self.old_scores)
        gradient = X.mT @ (self.weights * (ahead_scores.sigmoid() - self.positive))
        new = _shrink(ahead - gradient / self.curvature[:, None], self.lam / self.curvature)
        move = new - ahead
        moved = X @ move
        new_scores = ahead_scores + moved
        nearest = torch.minimum(ahead_scores.abs(), new_scores.abs()) * (ahead_scores * new_scores > 0)
        steepest = nearest.sigmoid() * (-nearest).sigmoid()
        fits = (self.weights * steepest * moved**2).sum(1) <= self.curvature * (move**2).sum(1)
        uphill = (move * (new - self.w)).sum(1) < 0
        self.momentum = torch.where(fits, torch.where(uphill, 1, momentum), self.momentum)
        self.curvature = (self.curvature * torch.where(fits, 0.9, 2.0)).clamp(min=1e-4)
        fits = fits[:, None]
        self.old_w, self.w = torch.where(fits, self.w, self.old_w), torch.where(fits, new, self.w)
        self.old_scores = torch.where(fits, self.scores, self.old_scores)
        self.scores = torch.where(fits, new_scores, self.scores)

    def violation(self, X: Tensor) -> Tensor:
        """(P, B) at `w`, as `spin.lasso.kkt_violation` defines it.

        Takes both scores afresh: steps only add to them, and the momentum lets rounding errors grow.
        """
        self.scores, self.old_scores = X @ self.w, X @ self.old_w
        gradient = X.mT @ (self.weights * (self.scores.sigmoid() - self.positive))
        slope, w = gradient[:, :-1], self.w[:, :-1]
        lam = self.lam[:, None]
        distance = torch.where(w != 0, (slope + lam * w.sign()).abs(), (slope.abs() - lam).clamp(min=0))
        return torch.maximum(distance.amax(1), gradient[:, -1].abs()) / self.lam


def _shrink(w: Tensor, by: Tensor) -> Tensor:
    """Coefficients `w` (P, width + 1, B) moved towards zero by at most `by` (P, B), save the intercept."""
    shrunk = w.sign() * (w.abs() - by[:, None]).clamp(min=0)
    shrunk[:, -1] = w[:, -1]
    return shrunk


@contextmanager
def _full_float32() -> Iterator[None]:
    """Matrix products without TF32, whatever the process has set: its ten bits would drown the violation."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
