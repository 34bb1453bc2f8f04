"""Token activations to one vector a document, always over a mask and never by position."""

from __future__ import annotations

import torch
from torch import Tensor

from spin.settings import POOLINGS


def pool(values: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool `values` (B, T, width) over the tokens where `mask` (B, T) is true, giving (B, width) in float32.

    Every row of the mask must have a token, and values outside it must be finite. Padding may lie on either side:
    `first` and `last` are the first and last tokens of the mask. `mean` is summed in float32 whatever the type of
    the values.
    """
    if pooling == "mean":
        total = torch.bmm(mask.float().unsqueeze(1), values.float()).squeeze(1)  # what einsum does, with less around it
        return total / mask.sum(1, keepdim=True)
    if pooling == "max":
        outside = torch.where(mask, 0.0, -torch.inf).to(values.dtype)
        return (values + outside.unsqueeze(-1)).amax(1).float()
    rows = torch.arange(values.shape[0], device=values.device)  # not len(): tracing would take it for a constant
    return values[rows, token_position(mask, pooling)].float()


def token_position(mask: Tensor, pooling: str) -> Tensor:
    """The position (B,) that `first` or `last` reads from each row of `mask` (B, T)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    if pooling == "first":
        return positions.masked_fill(~mask, mask.shape[1]).amin(1)
    if pooling == "last":
        return positions.masked_fill(~mask, -1).amax(1)
    raise ValueError(f"unknown pooling '{pooling}'; expected one of {', '.join(POOLINGS)}")
