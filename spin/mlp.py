"""A head that bends: the linear one and a hidden layer that learns what it missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spin.head import LinearHead
from spin.team import Team

Floats = NDArray[np.floating]
HIDDEN = 32
_RATE, _STEPS, _LOOK, _PATIENCE = 0.01, 300, 10, 4


@dataclass(frozen=True)
class MlpHead:
    """linear(x) + outer tanh(inner x + inner_bias) on standardised features."""

    linear: LinearHead
    inner: Floats
    """(H, p)"""
    inner_bias: Floats
    """(H,)"""
    outer: Floats
    """(K, H)"""

    def logits(self, X: Floats) -> Floats:
        """(n, K) of standardised features (n, p)."""
        return self.linear.logits(X) + np.tanh(X @ self.inner.T + self.inner_bias) @ self.outer.T

    def slopes(self, x: Floats) -> Floats:
        """(K, p) by which features (p,) add to the logits: x * slopes, summed over p, and `bias` are the logits.

        Integrated gradients (Sundararajan et al. 2017) from the training mean, x = 0. One hidden layer of tanh has
        them in closed form, so that they are complete: along the line from 0 to x, the mean slope of
        tanh(a t + c) over t from 0 to 1 is (tanh(a + c) - tanh(c)) / a.
        """
        a, c = (self.inner @ x).astype(np.float64), self.inner_bias.astype(np.float64)
        flat = np.abs(a) < 1e-6
        mean = np.where(flat, 1 - np.tanh(c) ** 2, (np.tanh(a + c) - np.tanh(c)) / np.where(flat, 1, a))
        return self.linear.coef + (self.outer * mean) @ self.inner

    @property
    def bias(self) -> Floats:
        """(K,) the logits of a text whose features are all at their training mean."""
        return self.linear.bias + self.outer @ np.tanh(self.inner_bias)

    def cooled(self, temperature: float) -> MlpHead:
        """The head whose logits are these over a temperature."""
        outer = self.outer / np.float32(temperature)
        return MlpHead(self.linear.cooled(temperature), self.inner, self.inner_bias, outer)


def fit_mlp(
    linear: LinearHead,
    X: Floats,
    has: NDArray[np.bool_],
    weights: Floats,
    scales: Floats,
    strength: float,
    *,
    exclusive: bool,
    team: Team,
    seed: int,
    device: str = "cpu",
    judge: Callable[[MlpHead], float] | None = None,
    steps: int = _STEPS,
) -> tuple[MlpHead, int]:
    """Learn the hidden layer beside a linear head that stays as it is, by Adam on all rows, and the steps taken.

    It starts at the linear head exactly. Rows, weights, scales and strength are those of `fit_linear`. With `judge`,
    a loss that is asked every ten steps, the best so far is given, once it has not improved four times in a row.
    """
    start = torch.Generator().manual_seed(seed)
    tensors = [torch.as_tensor(a, dtype=torch.float32, device=device) for a in (X, has, weights, scales)]
    design, targets, row_weights, scale = tensors
    scale = scale / scale.norm().clamp(min=1e-12)
    offset = torch.as_tensor(linear.logits(X), dtype=torch.float32, device=device)
    count = float(team.sum(torch.tensor([float(len(X))], dtype=torch.float64))[0])
    inner = torch.randn(HIDDEN, X.shape[1], generator=start).to(device).requires_grad_()
    inner_bias = torch.zeros(HIDDEN, device=device, requires_grad=True)
    outer = torch.zeros(targets.shape[1], HIDDEN, device=device, requires_grad=True)
    parameters = [inner, inner_bias, outer]
    optimiser = torch.optim.Adam(parameters, lr=_RATE)
    aligned = design * scale

    def head() -> MlpHead:
        arrays = [t.detach().cpu().numpy().copy() for t in (inner * scale, inner_bias, outer)]
        return MlpHead(linear, *arrays)

    best, best_loss, best_step = head(), np.inf, 0
    for step in range(steps + 1):
        if judge is not None and step % _LOOK == 0:
            loss = team.say(judge(head()) if team.rank == 0 else 0.0)
            if loss < best_loss:
                best, best_loss, best_step = head(), loss, step
            elif step - best_step >= _PATIENCE * _LOOK:
                break
        if step == steps:
            break
        logits = offset + torch.tanh(aligned @ inner.T + inner_bias) @ outer.T
        prior = sum((p**2).sum() for p in parameters) / (2 * strength * count * team.size)
        loss_of_rows = (row_weights * _losses(logits, targets, exclusive)).sum() + prior
        optimiser.zero_grad()
        loss_of_rows.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            team.sum(parameter.grad)  # type: ignore[arg-type]
        optimiser.step()
    return (head(), steps) if judge is None else (best, best_step)


def _losses(logits: Tensor, targets: Tensor, exclusive: bool) -> Tensor:
    """(n, 1), or (n, K) where each class is by itself."""
    if exclusive:
        return cross_entropy(logits, targets, reduction="none")[:, None]
    return binary_cross_entropy_with_logits(logits, targets, reduction="none")
