"""The order of the neurons within FFNs, in which those that are wanted may come first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spin.activations.engines.encoder import GATHER_FIRST_UP_TO, BlockSegment, NeuronEncoder
from spin.backbone.model import Backbone
from spin.sites import Site

_TOLERANCE = 1e-3
"""difference of values that rounding may make, as a share of the largest: sums are in another order"""


@contextmanager
def order_wanted_first(
    backbone: Backbone, segment: BlockSegment
) -> Iterator[tuple[BlockSegment, Mapping[int, Tensor]]]:
    """Move the neurons that are read to the front of a segment's FFNs, within the context.

    Yields the segment with the new indices of the neurons, and by layer the new order of the FFNs: the old indices of
    their inner neurons. An FFN computes the same in any order of these. A graph takes the first of them in a fraction
    of the time that gathering takes. The weights are replaced by permuted copies: they may be mapped from a file, which
    writing would load into memory for good. Where the order changes what the segment computes, as in a family whose FFN
    has another shape, it is left as it is. Not safe for threads: hold `HOOK_LOCK`.
    """
    unions = _unions(backbone, segment)
    if not unions:
        yield segment, {}
        return
    before = _outputs(backbone, segment)
    with ExitStack() as permuted:
        orders = {}
        for site, union in unions.items():
            rest = np.setdiff1d(np.arange(backbone.width(site)), union)
            orders[site.layer] = torch.from_numpy(np.concatenate([union, rest]))
            permuted.enter_context(_permute(backbone, site.layer, orders[site.layer]))
        ordered = _renumber(segment, unions)
        if _agree(before, _outputs(backbone, ordered)):
            yield ordered, orders
            return
    yield segment, {}


def _unions(backbone: Backbone, segment: BlockSegment) -> dict[Site, NDArray[np.int64]]:
    """The neurons that are read of each FFN of which few are, ascending, where they can be put in another order."""
    by_site: dict[Site, list[NDArray[np.int64] | None]] = {}
    for column, indices in segment.neurons.items():
        if column.site.kind == "ffn":
            by_site.setdefault(column.site, []).append(indices)
    unions = {}
    for site, read in by_site.items():
        given = [indices for indices in read if indices is not None]
        union = np.unique(np.concatenate(given)) if len(given) == len(read) else np.empty(0, np.int64)
        if 0 < len(union) <= GATHER_FIRST_UP_TO * backbone.width(site) and backbone.ffn_inputs(site.layer):
            unions[site] = union
    return unions


def _renumber(segment: BlockSegment, unions: Mapping[Site, NDArray[np.int64]]) -> BlockSegment:
    """The segment with the indices that its neurons have where those of the unions come first."""
    neurons = dict(segment.neurons)
    for column, indices in segment.neurons.items():
        if column.site in unions and indices is not None:
            neurons[column] = np.searchsorted(unions[column.site], indices)
    return replace(segment, neurons=neurons)


@contextmanager
def _permute(backbone: Backbone, layer: int, order: Tensor) -> Iterator[None]:
    """Put the inner neurons of a block's FFN in another order, within the context."""
    permuted = _permuted_weights(backbone, layer, order.to(backbone.device))
    before = [parameter.data for parameter, _ in permuted]
    try:
        for parameter, values in permuted:
            parameter.data = values
        yield
    finally:
        for (parameter, _), values in zip(permuted, before, strict=True):
            parameter.data = values


def _permuted_weights(backbone: Backbone, layer: int, order: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters of a block's FFN with their values in another order of its inner neurons."""
    permuted = []
    for module in backbone.ffn_inputs(layer):
        dim = 1 if isinstance(module, Conv1D) else 0
        permuted.append((module.weight, module.weight.data.index_select(dim, order)))
        if module.bias is not None:
            permuted.append((module.bias, module.bias.data[order]))
    projection = backbone.ffn_projection(layer)
    dim = 0 if isinstance(projection, Conv1D) else 1
    return [*permuted, (projection.weight, projection.weight.data.index_select(dim, order))]


def _outputs(backbone: Backbone, segment: BlockSegment) -> tuple[Tensor, ...]:
    """The outputs of a segment for a few tokens, with the residual stream after it."""
    encoder = NeuronEncoder(backbone, segment, carry=True)
    with torch.inference_mode():
        return encoder(*encoder.example_inputs())


def _agree(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(
        torch.allclose(one.float(), other.float(), rtol=0, atol=_TOLERANCE * max(1.0, float(one.abs().max())))
        for one, other in zip(some, others, strict=True)
        if one.numel()
    )
