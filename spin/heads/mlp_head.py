"""A linear head plus a head with one hidden layer; their logits are added."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from spin.arrays import Floats
from spin.heads.design import Design
from spin.heads.head import FitTask, Head
from spin.heads.linear_head import LinearHead, linear_layer

HIDDEN = 32
"""width of the hidden layer"""
_LEARNING_RATE, _STEPS = 0.01, 300
_CHECK_EVERY, _PATIENCE = 10, 4
"""steps between two checks of the loss, and checks without improvement after which fitting stops"""


@dataclass(frozen=True)
class MlpHead(LinearHead):
    """The logits of the linear head plus outer tanh(inner x + inner_bias), on standardised features x."""

    name: ClassVar[str] = "mlp"

    inner: Floats
    """(H, p)"""
    inner_bias: Floats
    """(H,)"""
    outer: Floats
    """(K, H)"""

    @classmethod
    def fit(cls, task: FitTask) -> tuple[Self, int]:
        """Fit the hidden layer on top of a fixed linear head, by Adam on all rows; also return the number of steps.

        It starts exactly at the linear head. Every member of a group calls `judge` every ten steps. Fitting returns the
        best head once four calls have not improved on it, and after `steps`, by default 300.
        """
        design, judge, most = task.design, task.judge, _STEPS if task.steps is None else task.steps
        layer = _HiddenLayer(task.linear, design, task.seed)
        optimiser = torch.optim.Adam(layer.parameters, lr=_LEARNING_RATE)
        prior = 1 / (2 * task.strength * design.count * design.group.size)
        best, best_loss, best_step = cls(*layer.weights()), np.inf, 0
        for step in range(most + 1):
            if judge is not None and step % _CHECK_EVERY == 0:
                loss = design.group.broadcast_object(judge(cls(*layer.weights())))
                if loss < best_loss:
                    best, best_loss, best_step = cls(*layer.weights()), loss, step
                elif step - best_step >= _PATIENCE * _CHECK_EVERY:
                    break
            if step < most:
                optimiser.zero_grad()
                layer.add_gradients()
                (prior * torch.stack([(p**2).sum() for p in layer.parameters]).sum()).backward()
                for parameter in layer.parameters:
                    assert parameter.grad is not None
                    design.group.all_reduce(parameter.grad)
                optimiser.step()
        return (cls(*layer.weights()), most) if judge is None else (best, best_step)

    def logits(self, X: Floats) -> Floats:
        return super().logits(X) + np.tanh(X @ self.inner.T + self.inner_bias) @ self.outer.T

    @property
    def bias(self) -> Floats:
        return self.intercept + self.outer @ np.tanh(self.inner_bias)

    @property
    def directions(self) -> Floats:
        """(R, p) those of the linear part, one per class, and one per hidden unit."""
        return np.concatenate([self.coef, self.inner])

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) the slopes as a mixture of `directions`.

        These are integrated gradients (Sundararajan et al. 2017) from the training mean, x = 0. For one hidden layer of
        tanh they have a closed form, so the sum is exact. Along the line from 0 to x, the mean slope of tanh(a t + c)
        over t from 0 to 1 is (tanh(a + c) - tanh(c)) / a.
        """
        a, c = (X @ self.inner.T).astype(np.float64), self.inner_bias.astype(np.float64)
        flat = np.abs(a) < 1e-6
        mean: Floats = np.where(flat, 1 - np.tanh(c) ** 2, (np.tanh(a + c) - np.tanh(c)) / np.where(flat, 1, a))
        return np.concatenate([super().mix(X, classes), (self.outer[classes] * mean).astype(np.float32)], axis=1)

    def with_temperature(self, temperature: float) -> Self:
        return replace(super().with_temperature(temperature), outer=self.outer / np.float32(temperature))

    def join_words(self, neurons: np.float32, words: Floats) -> Self:
        unread = np.zeros((len(self.inner), len(words)), np.float32)
        inner = np.concatenate([unread, self.inner], axis=1)
        return replace(super().join_words(neurons, words), inner=inner, outer=self.outer * neurons)

    def keep(self, features: NDArray[np.bool_]) -> Self:
        return replace(super().keep(features), inner=self.inner[:, features])

    def graph(self) -> nn.Module:
        return _MlpGraph(self)


class _MlpGraph(nn.Module):
    """The logits of an MLP head."""

    def __init__(self, head: MlpHead) -> None:
        super().__init__()
        self.linear = linear_layer(head.coef, head.intercept)
        self.inner, self.outer = linear_layer(head.inner, head.inner_bias), linear_layer(head.outer)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x) + self.outer(torch.tanh(self.inner(x)))
        return logits


class _HiddenLayer:
    """The hidden layer while it is fitted, on features scaled as the linear head's."""

    def __init__(self, linear: Head, design: Design, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.linear, self.exclusive, self.scale = linear, design.exclusive, design.tensor(design.unit)
        self.blocks = design.blocks()
        self.targets, self.row_weights = design.tensor(design.has), design.tensor(design.weights)
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
        return (self.row_weights[rows] * losses).sum()

    def weights(self) -> tuple[Floats, ...]:
        """The fields of the head with the current weights."""
        tensors = (self.inner * self.scale, self.inner_bias, self.outer)
        return (self.linear.directions, self.linear.bias, *(t.detach().cpu().numpy().copy() for t in tensors))
