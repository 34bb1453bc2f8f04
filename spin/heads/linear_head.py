"""A linear classification head, and what each feature adds to its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spin.arrays import Floats


@dataclass(frozen=True)
class LinearHead:
    """Logistic regression on standardised features: multinomial, or one sigmoid per class in a multi-label task.

    Logits are explained as a sum: those of features x (p,) are `bias` plus the sum over p of x times the slopes at x,
    and slopes are a mixture of few `directions`. Its fields are float32 arrays, and what is stored of it.
    """

    name: ClassVar[str] = "linear"
    """as in reports and files"""

    coef: Floats
    """(K, p)"""
    intercept: Floats
    """(K,)"""

    def logits(self, X: Floats) -> Floats:
        """Logits (n, K) of standardised features (n, p)."""
        return X @ self.coef.T + self.intercept

    @property
    def bias(self) -> Floats:
        """(K,) the logits of a text whose features are all at their training mean."""
        return self.intercept

    @property
    def directions(self) -> Floats:
        """(R, p) such that the slopes of any class at any features are a mixture of these rows: here one per class."""
        return self.coef

    def mix(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, R) how the slopes of one class each, at standardised features (n, p), are a mixture of `directions`."""
        mixture: Floats = np.zeros((len(X), len(self.coef)), np.float32)
        mixture[np.arange(len(X)), classes] = 1
        return mixture

    def slopes_of(self, X: Floats, classes: NDArray[np.int64]) -> Floats:
        """(n, p) the slopes of one class each, at standardised features (n, p)."""
        return self.mix(X, classes) @ self.directions

    def slopes(self, x: Floats) -> Floats:
        """(K, p) the slopes of all classes at standardised features (p,)."""
        classes = np.arange(len(self.bias))
        return self.slopes_of(np.tile(x, (len(classes), 1)), classes)

    def graph(self) -> nn.Module:
        """A module from standardised features (n, p) to logits (n, K), which can be traced, for export."""
        return linear_layer(self.coef, self.intercept)

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays that are stored, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """The head of the arrays that `to_tensors` returned. Raises KeyError if one is missing."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


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
