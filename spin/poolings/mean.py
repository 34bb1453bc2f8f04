"""The mean over the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin.poolings.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor


class Mean(Pooling):
    """The mean over the tokens, summed in float32 whatever the type of the values."""

    name = "mean"
    description = "mean over the tokens"
    shares = "every token"

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        total = mask.float().unsqueeze(1).bmm(values.float()).squeeze(1)  # as einsum does, with less overhead
        return total / mask.sum(1, keepdim=True)

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        return (values * shares).sum(0, keepdim=True)
