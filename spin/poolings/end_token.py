"""The value of the first or the last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin.poolings.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor


class _EndToken(Pooling):
    """The value of one end of a text, special tokens included."""

    content_only = False
    shares = "one by place"

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        import torch

        rows = torch.arange(values.shape[0], device=values.device)  # tracing would make len() a constant
        return values[rows, self.find_place(mask)].float()


class FirstToken(_EndToken):
    """The value of the first token."""

    name = "first"
    description = "first token"

    def find_place(self, mask: Tensor) -> Tensor:
        return _positions(mask).masked_fill(~mask, mask.shape[1]).amin(1)

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        return values[:1]


class LastToken(_EndToken):
    """The value of the last token that is read."""

    name = "last"
    description = "last token"

    def find_place(self, mask: Tensor) -> Tensor:
        return _positions(mask).masked_fill(~mask, -1).amax(1)

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        return values[-1:]


def _positions(mask: Tensor) -> Tensor:
    import torch

    return torch.arange(mask.shape[1], device=mask.device)
