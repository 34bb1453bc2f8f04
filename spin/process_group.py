"""The processes that share the rows of one fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """A process by itself, or the process group that it is in.

    All members must come to the same decisions, or they wait for one another for ever. What is summed is bitwise the
    same for all; what each computes by itself may differ in a last bit, and is taken from the first member.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> ProcessGroup:
        """The process group that the process has joined; by itself if there is none."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if together else cls()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Add up `values` over the members, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> Tensor:
        """The first member's `values`, in place."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def broadcast_object(self, value: T) -> T:
        """The first member's value, of any kind that pickles."""
        said = [value]
        if self.size > 1:
            dist.broadcast_object_list(said, src=0)
        return said[0]
