"""A linear head plus a network with one hidden layer; their logits are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, relu

from spin.arrays import Floats
from spin.heads.linear_head import LinearHead, linear_layer


@dataclass(frozen=True)
class NetworkHead(LinearHead):
    """The logits of the linear head plus outer relu(inner x + inner_bias), on standardised features x."""

    name: ClassVar[str] = "network"

    inner: Floats
    """(H, p)"""
    inner_bias: Floats
    """(H,)"""
    outer: Floats
    """(K, H)"""

    def logits(self, X: Floats) -> Floats:
        return super().logits(X) + np.maximum(X @ self.inner.T + self.inner_bias, 0) @ self.outer.T

    @property
    def bias(self) -> Floats:
        return self.intercept + self.outer @ np.maximum(self.inner_bias, 0)

    @property
    def directions(self) -> Floats:
        """(R, p) those of the linear part, one per class, and one per hidden unit."""
        return np.concatenate([self.coef, self.inner])

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) the slopes as a mixture of `directions`.

        These are integrated gradients (Sundararajan et al. 2017) from the training mean, x = 0. For one hidden layer
        they have a closed form, so the sum is exact. Along the line from 0 to x, the mean slope of relu(a t + c) over t
        from 0 to 1 is (relu(a + c) - relu(c)) / a.
        """
        a, c = (X @ self.inner.T).astype(np.float64), self.inner_bias.astype(np.float64)
        flat = np.abs(a) < 1e-6
        rise = np.maximum(a + c, 0) - np.maximum(c, 0)
        mean: Floats = np.where(flat, c > 0, rise / np.where(flat, 1, a))
        return np.concatenate([super().mix(X, classes), (self.outer[classes] * mean).astype(np.float32)], axis=1)

    def graph(self) -> nn.Module:
        return _NetworkGraph(self)


class _NetworkGraph(nn.Module):
    """The logits of a network head."""

    def __init__(self, head: NetworkHead) -> None:
        super().__init__()
        self.linear = linear_layer(head.coef, head.intercept)
        self.inner, self.outer = linear_layer(head.inner, head.inner_bias), linear_layer(head.outer)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x) + self.outer(relu(self.inner(x)))
        return logits
