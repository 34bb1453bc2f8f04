"""Pool token activations to one vector per document, always over a mask and never by position alone."""

from __future__ import annotations

import torch
from torch import Tensor

from spin.sites import POOLINGS


def pool(values: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool `values` (B, T, width) over the tokens where `mask` (B, T) is true, giving (B, width) in float32.

    `pooling` is one of `POOLINGS`: `mean`, `max`, or the value of the `first` or `last` token of the mask. Every row of
    the mask must have a token, and values outside it must be finite; padding may lie on either side. `mean` is summed
    in float32 whatever the type of the values. Raises ValueError for another pooling.
    """
    if pooling == "mean":
        total = torch.bmm(mask.float().unsqueeze(1), values.float()).squeeze(1)  # as einsum does, with less overhead
        return total / mask.sum(1, keepdim=True)
    if pooling == "max":
        outside = torch.where(mask, 0.0, -torch.inf).to(values.dtype)
        return (values + outside.unsqueeze(-1)).amax(1).float()
    rows = torch.arange(values.shape[0], device=values.device)  # tracing would make len() a constant
    return values[rows, token_position(mask, pooling)].float()


def token_position(mask: Tensor, pooling: str) -> Tensor:
    """The position (B,) of the token that the pooling `first` or `last` reads in each row of `mask` (B, T)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    if pooling == "first":
        return positions.masked_fill(~mask, mask.shape[1]).amin(1)
    if pooling == "last":
        return positions.masked_fill(~mask, -1).amax(1)
    raise ValueError(f"unknown pooling '{pooling}'; expected one of {', '.join(POOLINGS)}")
