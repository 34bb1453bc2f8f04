"""The largest value over the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin.poolings.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor


class Maximum(Pooling):
    """The largest value over the tokens; of several tokens with the same value the first one counts."""

    name = "max"
    description = "maximum over the tokens"
    shares = "one by value"

    def pool(self, values: Tensor, mask: Tensor) -> Tensor:
        return _hide(values, mask).amax(1).float()

    def merge(self, values: Tensor, shares: Tensor) -> Tensor:
        import torch

        return torch.where(shares > 0, values, -torch.inf).amax(0, keepdim=True)

    def locate(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        # `max` takes a third of the time of `argmax`, which is for dimensions that lie together
        largest, at = _hide(values, mask).max(1)
        return largest.float(), at

    def locate_in_openvino(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        seen = _hide(values, mask)
        return seen.amax(1).float(), seen.argmax(1)


def _hide(values: Tensor, mask: Tensor) -> Tensor:
    """The values (B, T, m), minus infinity outside a mask (B, T)."""
    import torch

    return values + torch.where(mask, 0.0, -torch.inf).to(values.dtype).unsqueeze(-1)
