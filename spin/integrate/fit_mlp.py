"""Fit the hidden layer that an MLP head adds to a linear one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spin.heads.linear_head import LinearHead
from spin.heads.mlp_head import MlpHead
from spin.integrate.fit_linear import Design

HIDDEN = 32
"""width of the hidden layer"""
_LEARNING_RATE, _STEPS = 0.01, 300
_CHECK_EVERY, _PATIENCE = 10, 4
"""steps between two checks of the loss, and checks without improvement after which fitting stops"""


def fit_mlp(
    linear: LinearHead,
    design: Design,
    strength: float,
    *,
    seed: int,
    judge: Callable[[MlpHead], float] | None = None,
    steps: int = _STEPS,
) -> tuple[MlpHead, int]:
    """Fit the hidden layer on top of a fixed linear head, by Adam on all rows; also return the number of steps.

    It starts exactly at the linear head; `strength` is that of its penalty. `judge` returns the loss of a head on other
    rows; every member calls it every ten steps. Fitting returns the best head once four calls have not improved on it.
    """
    net = _HiddenLayer(linear, design, seed)
    optimiser = torch.optim.Adam(net.parameters, lr=_LEARNING_RATE)
    prior = 1 / (2 * strength * design.count * design.group.size)
    best, best_loss, best_step = net.head(), np.inf, 0
    for step in range(steps + 1):
        if judge is not None and step % _CHECK_EVERY == 0:
            loss = design.group.broadcast_object(judge(net.head()))
            if loss < best_loss:
                best, best_loss, best_step = net.head(), loss, step
            elif step - best_step >= _PATIENCE * _CHECK_EVERY:
                break
        if step < steps:
            optimiser.zero_grad()
            net.add_gradients()
            (prior * torch.stack([(p**2).sum() for p in net.parameters]).sum()).backward()
            for parameter in net.parameters:
                assert parameter.grad is not None
                design.group.all_reduce(parameter.grad)
            optimiser.step()
    return (net.head(), steps) if judge is None else (best, best_step)


class _HiddenLayer:
    """The hidden layer while it is fitted, on features scaled as the linear head's."""

    def __init__(self, linear: LinearHead, design: Design, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.linear, self.exclusive, self.scale = linear, design.exclusive, design.tensor(design.unit)
        self.blocks = design.blocks()
        self.targets, self.weights = design.tensor(design.has), design.tensor(design.weights)
        self.offset = design.tensor(np.concatenate([linear.logits(block) for block in design.features.blocks()]))
        self.inner = torch.randn(HIDDEN, design.features.shape[1], generator=draw).to(design.device).requires_grad_()
        self.inner_bias = torch.zeros(HIDDEN, device=design.device, requires_grad=True)
        self.outer = torch.zeros(self.targets.shape[1], HIDDEN, device=design.device, requires_grad=True)
        self.parameters = [self.inner, self.inner_bias, self.outer]

    def add_gradients(self) -> None:
        """Add the gradients of the loss over the rows of this process to those of the parameters."""
        start = 0
        for block in self.blocks:
            rows = slice(start, start + block.shape[1])
            self._loss(block[0, :, :-1], rows).backward()
            start = rows.stop

    def _loss(self, X: Tensor, rows: slice) -> Tensor:
        """The weighted loss over some rows, whose features are `X` (m, p)."""
        logits = self.offset[rows] + torch.tanh(X @ (self.inner * self.scale).T + self.inner_bias) @ self.outer.T
        if self.exclusive:
            losses = cross_entropy(logits, self.targets[rows], reduction="none")[:, None]
        else:
            losses = binary_cross_entropy_with_logits(logits, self.targets[rows], reduction="none")
        return (self.weights[rows] * losses).sum()

    def head(self) -> MlpHead:
        """The head with the current weights."""
        inner, bias, outer = (
            t.detach().cpu().numpy().copy() for t in (self.inner * self.scale, self.inner_bias, self.outer)
        )
        return MlpHead(self.linear, inner, bias, outer)
