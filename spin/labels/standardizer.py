"""Standardise activations by the mean and standard deviation of the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from spin.arrays import Floats

_BLOCK = 1 << 22
"""values that are measured at once"""
FEW_ROWS, _PRIOR_ROWS = 150, 30
"""rows below which variances are shrunk, and further rows of the usual variance that they are shrunk by at most"""


@dataclass(frozen=True)
class Standardizer:
    """The mean and standard deviation of p activations over the training rows."""

    mean: Floats
    """(p,) float32"""
    scale: Floats
    """(p,) float32 standard deviation; 1 where an activation never varies"""

    @classmethod
    def fit(cls, activations: Floats) -> Standardizer:
        """Measure raw activations (n, p), in float64 whatever their type, some rows at a time.

        Below 150 rows the variance s² is shrunk towards the squared median m² of the standard deviations of all p, as
        if c = 30 (1 - n / 150) more rows had it: (n s² + c m²) / (n + c). An activation that hardly varies over few
        rows would else have huge values on others.
        """
        blocks = np.array_split(activations, max(1, activations.size // _BLOCK))
        mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / len(activations)
        scale = np.sqrt(sum(np.square(block - mean).sum(0) for block in blocks) / len(activations))
        constant = scale <= 1e-6 * np.maximum(1, np.abs(mean))
        if (n := len(activations)) < FEW_ROWS and not constant.all():
            usual, more = np.median(scale[~constant]), _PRIOR_ROWS * (1 - n / FEW_ROWS)
            scale = np.sqrt((n * scale**2 + more * usual**2) / (n + more))
        return cls(mean.astype(np.float32), np.where(constant, 1, scale).astype(np.float32))

    @classmethod
    def concatenate(cls, parts: Sequence[Standardizer]) -> Standardizer:
        """The standardizer of columns that stand side by side."""
        nothing = np.empty(0, np.float32)
        return cls(
            np.concatenate([nothing, *(part.mean for part in parts)]),
            np.concatenate([nothing, *(part.scale for part in parts)]),
        )

    def transform(self, activations: Floats) -> Floats:
        """Raw activations (n, p) with mean 0 and standard deviation 1 over the training rows, as float32."""
        if not activations.flags.writeable:  # torch would warn of it
            activations = activations.copy()
        # converts float16 several times as fast as NumPy, and then computes in place
        values = torch.from_numpy(activations).to(torch.float32, copy=True)
        standard: Floats = values.sub_(torch.from_numpy(self.mean)).div_(torch.from_numpy(self.scale)).numpy()
        return standard

    def keep(self, columns: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Standardizer:
        """The standardizer of some of the columns, given as indices, a mask or a slice."""
        return Standardizer(self.mean[columns], self.scale[columns])

    def join_words(self, scale: Floats) -> Standardizer:
        """The standardizer with the words' logits before the activations: divided by a scale (K,), and not moved."""
        words = Standardizer(np.zeros(len(scale), np.float32), scale.astype(np.float32))
        return Standardizer.concatenate([words, self])

    def __len__(self) -> int:
        return len(self.mean)
