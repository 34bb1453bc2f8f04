"""The integrated heads: one small classifier over the selected neurons of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from spin.descent import Regressions
from spin.team import Team

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LinearHead:
    """Logistic regression with an elastic net on standardised features: multinomial, or a sigmoid a class."""

    coef: Floats
    """(K, p)"""
    intercept: Floats
    """(K,)"""

    def logits(self, X: Floats) -> Floats:
        """(n, K) of standardised features (n, p)."""
        return X @ self.coef.T + self.intercept

    def slopes(self, x: Floats) -> Floats:
        """(K, p) by which features (p,) add to the logits: x * slopes, summed over p, and `bias` are the logits."""
        return self.coef

    @property
    def bias(self) -> Floats:
        """(K,) the logits of a text whose features are all at their training mean."""
        return self.intercept

    def cooled(self, temperature: float) -> LinearHead:
        """The head whose logits are these over a temperature."""
        return LinearHead(self.coef / np.float32(temperature), self.intercept / np.float32(temperature))

    def keep(self, wanted: NDArray[np.bool_]) -> LinearHead:
        """The head of some of its features."""
        return replace(self, coef=self.coef[:, wanted])


@dataclass(frozen=True)
class Penalty:
    """How strongly a head is regularised, in units that neither documents nor neurons change."""

    strength: float
    """the prior variance of a logit that the L2 part grants: small is strongly regularised"""
    l1: float = 0.0
    """the L1 penalty, as a share of the smallest at which every coefficient is zero"""


def fit_linear(
    X: Floats,
    has: NDArray[np.bool_],
    weights: Floats,
    scales: Floats,
    penalties: Sequence[Penalty],
    *,
    exclusive: bool,
    team: Team,
    device: str = "cpu",
    tolerance: float = 1e-3,
    looks: int = 60,
) -> list[LinearHead]:
    """One head a penalty on standardised features `X` (n, p), all solved at once.

    Minimises sum_i s_i loss_i + l1 |V|_1 + |V|^2 / (2 strength N) over V, where the coefficients are V times `scales`
    (p,), first divided by their norm so that the features of a text have length 1 in expectation, and N counts the
    rows of the whole team. `has` (n, K) are the targets, each column of `weights` (n, 1 or K) sums to 1
    over the team. `X`, `has` and
    `weights` are this member's rows; every member gets the same heads. Ends where no optimality condition is
    violated by more than `tolerance` of the steepest slope of the null model, or after `looks` looks.
    """
    n, p = X.shape
    design = torch.ones(1, n, p + 1, device=device)
    design[0, :, :p] = torch.as_tensor(X)
    targets = torch.as_tensor(has, dtype=torch.float32, device=device)[:, None]
    row_weights = torch.as_tensor(weights, dtype=torch.float32, device=device)[:, None]
    scale = torch.ones(p + 1, 1, 1, device=device)
    scale[:p, 0, 0] = torch.as_tensor(scales / max(float(np.linalg.norm(scales)), 1e-12), device=device)
    count = float(team.sum(torch.tensor([float(n)], dtype=torch.float64))[0])
    l2 = torch.tensor([[1 / (penalty.strength * count) for penalty in penalties]], device=device)
    null = Regressions(design, targets, row_weights, scale, torch.zeros_like(l2), l2, exclusive, team)
    share = team.sum((row_weights * targets).sum(0)).clamp(1e-6, 1 - 1e-6)
    start = torch.zeros(1, p + 1, len(penalties), targets.shape[2], device=device)
    start[:, p] = share.log() if exclusive else share.logit()
    steepest = null.steepest(start)
    problems = replace(null, l1=steepest * torch.tensor([[penalty.l1 for penalty in penalties]], device=device))
    found = (problems.minimise(start, tolerance * steepest, looks)[0] * scale).permute(1, 2, 0).cpu().numpy()
    return [LinearHead(np.ascontiguousarray(V[:, :p]), np.ascontiguousarray(V[:, p])) for V in found]
