"""A head that bends: the linear one and a hidden layer that learns what it missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spin.arrays import Floats
from spin.head import Design, LinearHead

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
    design: Design,
    strength: float,
    *,
    seed: int,
    judge: Callable[[MlpHead], float] | None = None,
    steps: int = _STEPS,
) -> tuple[MlpHead, int]:
    """Learn the hidden layer beside a linear head that stays as it is, by Adam on all rows, and the steps taken.

    It starts at the linear head exactly; `strength` is that of its penalty. With `judge`, a loss that is asked
    every ten steps, the best head so far is given, once it has not improved four times in a row.
    """
    net = _Hidden(linear, design, seed)
    optimiser = torch.optim.Adam(net.parameters, lr=_RATE)
    prior = 1 / (2 * strength * design.count * design.team.size)
    best, best_loss, best_step = net.head(), np.inf, 0
    for step in range(steps + 1):
        if judge is not None and step % _LOOK == 0:
            loss = design.team.say(judge(net.head()) if design.team.rank == 0 else 0.0)
            if loss < best_loss:
                best, best_loss, best_step = net.head(), loss, step
            elif step - best_step >= _PATIENCE * _LOOK:
                break
        if step < steps:
            optimiser.zero_grad()
            (net.loss() + prior * sum((p**2).sum() for p in net.parameters)).backward()
            for parameter in net.parameters:
                assert parameter.grad is not None
                design.team.sum(parameter.grad)
            optimiser.step()
    return (net.head(), steps) if judge is None else (best, best_step)


class _Hidden:
    """The hidden layer while it learns, on features scaled as the linear head's."""

    def __init__(self, linear: LinearHead, design: Design, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.linear, self.exclusive, self.scale = linear, design.exclusive, design.tensor(design.unit)
        self.X = design.tensor(design.X) * self.scale
        self.targets, self.weights = design.tensor(design.has), design.tensor(design.weights)
        self.offset = design.tensor(linear.logits(design.X))
        self.inner = torch.randn(HIDDEN, self.X.shape[1], generator=draw).to(design.device).requires_grad_()
        self.inner_bias = torch.zeros(HIDDEN, device=design.device, requires_grad=True)
        self.outer = torch.zeros(self.targets.shape[1], HIDDEN, device=design.device, requires_grad=True)
        self.parameters = [self.inner, self.inner_bias, self.outer]

    def loss(self) -> Tensor:
        """Over this member's rows."""
        logits = self.offset + torch.tanh(self.X @ self.inner.T + self.inner_bias) @ self.outer.T
        if self.exclusive:
            losses = cross_entropy(logits, self.targets, reduction="none")[:, None]
        else:
            losses = binary_cross_entropy_with_logits(logits, self.targets, reduction="none")
        return (self.weights * losses).sum()

    def head(self) -> MlpHead:
        """As it is now."""
        inner, bias, outer = (
            t.detach().cpu().numpy().copy() for t in (self.inner * self.scale, self.inner_bias, self.outer)
        )
        return MlpHead(self.linear, inner, bias, outer)
