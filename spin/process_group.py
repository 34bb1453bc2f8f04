"""The group of processes that share the rows of one fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """A single process, or the torch process group that it has joined.

    All members must take the same decisions, or they wait for each other for ever. A reduced sum is bitwise the same
    for all members. What each member computes by itself may differ in the last bit, so it is broadcast from the first.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> ProcessGroup:
        """The process group that this process has joined; a single process if there is none."""
        has_joined = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if has_joined else cls()

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over the members, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """The first member's `values`, in place."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def broadcast_object(self, value: T) -> T:
        """The first member's value, which may be anything that can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]
