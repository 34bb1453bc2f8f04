"""Pooled values of windows, in NumPy for many texts and in operations of a graph for one: both are `PooledWindows`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.arrays import Floats


@dataclass(frozen=True)
class ArrayWindows:
    """The pooled values of the windows of n texts. A text's windows are consecutive, in order."""

    values: Floats
    """(w, m)"""
    shares: Floats
    """(w, 1)"""
    starts: NDArray[np.int64]
    """(n,) the first window of each text"""

    def sum(self, values: Floats) -> Floats:
        return np.add.reduceat(values, self.starts)

    def largest(self, values: Floats) -> Floats:
        return np.maximum.reduceat(np.where(self.shares > 0, values, -np.inf), self.starts)

    def first(self) -> Floats:
        return self.values[self.starts]

    def last(self) -> Floats:
        return self.values[np.append(self.starts[1:], len(self.values)) - 1]


@dataclass(frozen=True)
class TensorWindows:
    """The pooled values of the windows of one text."""

    values: Tensor
    """(w, m)"""
    shares: Tensor
    """(w, 1)"""

    def sum(self, values: Tensor) -> Tensor:
        return values.sum(0, keepdim=True)

    def largest(self, values: Tensor) -> Tensor:
        return torch.where(self.shares > 0, values, -torch.inf).amax(0, keepdim=True)

    def first(self) -> Tensor:
        return self.values[:1]

    def last(self) -> Tensor:
        return self.values[-1:]
