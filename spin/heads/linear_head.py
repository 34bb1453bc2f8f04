"""A linear classification head and its regularisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spin.arrays import Floats
from spin.heads.head import FitTask, Head


@dataclass(frozen=True)
class LinearHead(Head):
    """Logistic regression on standardised features: multinomial, or one sigmoid per class in a multi-label task."""

    name: ClassVar[str] = "linear"

    coef: Floats
    """(K, p)"""
    intercept: Floats
    """(K,)"""

    @classmethod
    def fit(cls, task: FitTask) -> tuple[Self, int]:
        """The linear head itself: the search has fitted it (`spin.integrate.fit_linear`)."""
        return cls(task.linear.directions, task.linear.bias), 0

    def logits(self, X: Floats) -> Floats:
        return X @ self.coef.T + self.intercept

    @property
    def bias(self) -> Floats:
        return self.intercept

    @property
    def directions(self) -> Floats:
        """(K, p) the coefficients: one direction per class."""
        return self.coef

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        mixture: Floats = np.zeros((len(X), len(self.coef)), np.float32)
        mixture[np.arange(len(X)), classes] = 1
        return mixture

    def with_temperature(self, temperature: float) -> Self:
        divisor = np.float32(temperature)
        return replace(self, coef=self.coef / divisor, intercept=self.intercept / divisor)

    def with_bias(self, bias: Floats) -> Self:
        return replace(self, intercept=self.intercept + bias)

    def join_words(self, neurons: np.float32, words: Floats) -> Self:
        coef = np.concatenate([np.diag(words), self.coef * neurons], axis=1)
        return replace(self, coef=coef, intercept=self.intercept * neurons)

    def keep(self, features: NDArray[np.bool_]) -> Self:
        return replace(self, coef=self.coef[:, features])

    def graph(self) -> nn.Module:
        return linear_layer(self.coef, self.intercept)


def linear_layer(weight: Floats, bias: Floats | None = None) -> nn.Linear:
    """A layer with given weights (out, in) and bias (out,), for the graph of a head."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = constant(weight)
    if bias is not None:
        layer.bias = constant(bias)
    return layer


def constant(values: Floats) -> nn.Parameter:
    """Values in float32 that a graph holds."""
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float32), requires_grad=False)


@dataclass(frozen=True)
class Penalty:
    """The regularisation of a head, in units that depend neither on the number of documents nor of neurons."""

    strength: float
    """the prior variance of a logit that the L2 part allows; a small one is strong regularisation"""
    l1: float = 0.0
    """the L1 penalty, as a share of the smallest that makes every coefficient zero"""
