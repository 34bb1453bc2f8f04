"""A linear head plus a head with one hidden layer; their logits are added."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
        tanh they have a closed form, so the sum is exact. Along the line from 0 to x, the mean slope of tanh(a t + c)
        over t from 0 to 1 is (tanh(a + c) - tanh(c)) / a.
        """
        return self.linear.coef + (self.outer * self._mean_slopes(x)) @ self.inner

    def _mean_slopes(self, X: Floats) -> Floats:
        """(..., H) the mean slopes of the hidden units between the training mean and features (..., p)."""
        a, c = (X @ self.inner.T).astype(np.float64), self.inner_bias.astype(np.float64)
        flat = np.abs(a) < 1e-6
        mean: Floats = np.where(flat, 1 - np.tanh(c) ** 2, (np.tanh(a + c) - np.tanh(c)) / np.where(flat, 1, a))
        return mean

    @property
    def directions(self) -> Floats:
        """(R, p) such that the slopes of any class at any features are a mixture of these rows.

        They are those of the linear part, one per class, and one per hidden unit.
        """
        return np.concatenate([self.linear.directions, self.inner])

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) how the slopes of one class each, at standardised features (n, p), are a mixture of `directions`."""
        hidden = self.outer[classes] * self._mean_slopes(X)
        return np.concatenate([self.linear.mix(X, classes), hidden.astype(np.float32)], axis=1)

    def slopes_of(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, p) the slopes of one class each, at standardised features (n, p): `mix` times `directions`."""
        return self.mix(X, classes) @ self.directions

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
