"""A linear head plus a head with one hidden layer; their logits are added."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats
from spin.heads.linear_head import LinearHead


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
        """Logits (n, K) of standardised features (n, p)."""
        return self.linear.logits(X) + np.tanh(X @ self.inner.T + self.inner_bias) @ self.outer.T

    def slopes(self, x: Floats) -> Floats:
        """(K, p) per feature: the logits of features (p,) are `bias` plus the sum over p of x * slopes.

        These are integrated gradients (Sundararajan et al. 2017) from the training mean, x = 0. For one hidden layer of
        tanh they have a closed form, so the sum is exact: along the line from 0 to x, the mean slope of
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

    def with_temperature(self, temperature: float) -> MlpHead:
        """The head whose logits are these divided by a temperature."""
        outer = self.outer / np.float32(temperature)
        return MlpHead(self.linear.with_temperature(temperature), self.inner, self.inner_bias, outer)

    def with_bias(self, bias: Floats) -> MlpHead:
        """The head whose logits are these plus a bias (K,)."""
        return replace(self, linear=self.linear.with_bias(bias))
