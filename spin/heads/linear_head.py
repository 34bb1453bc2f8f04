"""A linear classification head and its regularisation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats


@dataclass(frozen=True)
class LinearHead:
    """Logistic regression on standardised features: multinomial, or one sigmoid per class in a multi-label task."""

    coef: Floats
    """(K, p)"""
    intercept: Floats
    """(K,)"""

    def logits(self, X: Floats) -> Floats:
        """Logits (n, K) of standardised features (n, p)."""
        return X @ self.coef.T + self.intercept

    def slopes(self, x: Floats) -> Floats:
        """(K, p) per feature: the logits of features (p,) are `bias` plus the sum over p of x * slopes."""
        return self.coef

    @property
    def directions(self) -> Floats:
        """(R, p) such that the slopes of any class at any features are a mixture of these rows: one per class."""
        return self.coef

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) how the slopes of one class each, at standardised features (n, p), are a mixture of `directions`."""
        mixture: Floats = np.zeros((len(X), len(self.coef)), np.float32)
        mixture[np.arange(len(X)), classes] = 1
        return mixture

    def slopes_of(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, p) the slopes of one class each, at standardised features (n, p): `mix` times `directions`."""
        return self.coef[classes]

    @property
    def bias(self) -> Floats:
        """(K,) the logits of a text whose features are all at their training mean."""
        return self.intercept

    def with_temperature(self, temperature: float) -> LinearHead:
        """The head whose logits are these divided by a temperature."""
        return LinearHead(self.coef / np.float32(temperature), self.intercept / np.float32(temperature))

    def with_bias(self, bias: Floats) -> LinearHead:
        """The head whose logits are these plus a bias (K,)."""
        return replace(self, intercept=self.intercept + bias)

    def keep(self, features: NDArray[np.bool_]) -> LinearHead:
        """The head on some of its features, given as a mask (p,)."""
        return replace(self, coef=self.coef[:, features])


@dataclass(frozen=True)
class Penalty:
    """The regularisation of a head, in units that depend neither on the number of documents nor of neurons."""

    strength: float
    """the prior variance of a logit that the L2 part allows; a small one is strong regularisation"""
    l1: float = 0.0
    """the L1 penalty, as a share of the smallest that makes every coefficient zero"""
