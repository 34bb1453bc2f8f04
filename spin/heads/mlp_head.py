"""A head with one hidden layer beside the linear one."""

from __future__ import annotations

from dataclasses import dataclass

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

    def with_temperature(self, temperature: float) -> MlpHead:
        """The head whose logits are these over a temperature."""
        outer = self.outer / np.float32(temperature)
        return MlpHead(self.linear.with_temperature(temperature), self.inner, self.inner_bias, outer)
