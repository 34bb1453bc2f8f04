"""The data on which a head is fitted: features, targets and weights of documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.heads.feature_rows import MOST_IN_MEMORY, FeatureRows
from spin.process_group import ProcessGroup


@dataclass(frozen=True)
class Design:
    """The data for fitting a head: the rows of this process; the members of its group hold different rows."""

    features: FeatureRows
    """(n, p) standardised features"""
    has: NDArray[np.bool_]
    """(n, K) whether a row has a class"""
    weights: Floats
    """(n, 1) or (n, K), each column summing to 1 over the group"""
    exclusive: bool
    """whether a row has exactly one of the classes"""
    group: ProcessGroup
    device: str = "cpu"
    positions: Rows | None = None
    """(n,) the places of these rows among those of the whole group; None where it has no others"""

    @property
    def unit(self) -> float:
        """The scale by which the features of a text have an expected length of 1, however many they are."""
        return max(self.features.shape[1], 1) ** -0.5

    @property
    def count(self) -> int:
        """Number of rows of the whole group."""
        return int(self.group.all_reduce(torch.tensor([len(self.features)]))[0])

    def blocks(self) -> Iterable[torch.Tensor]:
        """The rows in blocks (1, m, p + 1) on the device, each with a last column of ones for the intercept.

        They can be gone through again and again. Features in memory are one block, which is computed once. Of features
        in a file, as many blocks as `MOST_IN_MEMORY` holds are computed once, and the others every time.
        """
        return list(_DeviceBlocks(self)) if self.features.in_memory else _DeviceBlocks(self)

    def tensor(self, values: Floats | NDArray[np.bool_]) -> torch.Tensor:
        """An array as float32 on the device."""
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


@dataclass(frozen=True)
class _DeviceBlocks:
    """The blocks of a design's features: the first ones stay in memory, the others are computed at every iteration."""

    design: Design
    kept: list[torch.Tensor] = field(default_factory=list)

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.kept
        start = rows_kept = sum(block.shape[1] for block in self.kept)
        left = MOST_IN_MEMORY - sum(block.nbytes for block in self.kept)
        for block in self.design.features.blocks(start):
            rows, p = block.shape
            with_ones = torch.ones(1, rows, p + 1, device=self.design.device)
            with_ones[0, :, :p] = self.design.tensor(block)
            if start == rows_kept and with_ones.nbytes <= left:
                self.kept.append(with_ones)
                rows_kept, left = rows_kept + rows, left - with_ones.nbytes
            start += rows
            yield with_ones
