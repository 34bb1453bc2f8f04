"""A linear classification head and its regularisation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats


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

    def with_temperature(self, temperature: float) -> LinearHead:
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
