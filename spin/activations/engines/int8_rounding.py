"""Round the products of a backbone's linear maps to int8, by the ranges of their inputs on texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spin.backbone.batching import token_batches
from spin.backbone.hooks import HOOK_LOCK, capture_sites
from spin.backbone.int8_scales import INPUT_STEPS, InputScale, Int8Scales
from spin.backbone.model import Backbone
from spin.errors import UserError
from spin.sites import Site

CALIBRATION_TEXTS = 256
"""texts that scales are measured on, at most"""
_LARGEST_WEIGHT = 127
"""of the symmetric int8 of weights"""


def measure_scales(backbone: Backbone, texts: Sequence[str]) -> Int8Scales:
    """Run the backbone in torch on texts and return scales for the values that occur.

    Of many texts `CALIBRATION_TEXTS` are run, from the first to the last. Of texts in windows every n-th window is
    run, as many as there are texts. Maps whose input occurs in none have no scale, and are not rounded.
    """
    ranges: dict[str, tuple[Tensor, Tensor]] = {}
    read = torch.empty(0, dtype=torch.bool)

    def watch(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].flatten(0, -2)
        values = values[read] if len(values) == len(read) else values  # an expert is given some of the tokens
        if len(values):
            low, high = values.aminmax(dim=0)
            before = ranges.get(name, (low, high))
            ranges[name] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

    texts = texts[:: -(-len(texts) // CALIBRATION_TEXTS)]
    maps, tokens = linear_maps(backbone), backbone.tokenize(texts)
    every = -(-len(tokens.ids) // len(texts))
    loaded = takewhile(lambda block: not isinstance(block, nn.Identity), backbone.blocks)
    deepest = Site(sum(1 for _ in loaded), "resid")
    with HOOK_LOCK, ExitStack() as hooks, capture_sites(backbone, [deepest], lambda *_: None) as forward:
        for name, module in maps.items():
            hooks.callback(module.register_forward_pre_hook(partial(watch, name)).remove)
        for rows in token_batches(list(map(len, tokens.ids[::every])), backbone.batch_tokens):
            ids, mask = backbone.pad_tokens(tokens, [row * every for row in rows])
            read = (mask > 0).flatten()
            forward(ids, mask > 0)
        return Int8Scales({name: InputScale.of(*pair, _weight(maps[name])) for name, pair in ranges.items()})


@contextmanager
def round_products(
    backbone: Backbone, scales: Int8Scales, orders: Mapping[int, Tensor] = MappingProxyType({})
) -> Iterator[None]:
    """Let the linear maps of a backbone round their inputs and weights to eight bits, within the context.

    A graph that is traced meanwhile has these roundings as operations. `orders` are those of the inner neurons of
    FFNs, by layer, where `order_wanted_first` has changed them. Not safe for threads: hold `HOOK_LOCK`. Raises
    UserError for scales that are not those of these maps.
    """
    order_of = {backbone.ffn_projection(layer): order for layer, order in orders.items()}
    with ExitStack() as restored:
        for name, module in linear_maps(backbone).items():
            if name in scales.by_map:
                scale = scales.by_map[name]
                if len(scale.factors) != _weight(module).shape[1]:
                    raise UserError(
                        f"found int8 scales of another backbone, in which {name} has {len(scale.factors)} inputs"
                    )
                order = order_of.get(module, slice(None))
                module.forward = partial(_multiply_rounded, module, scale, scale.factors[order])
                restored.callback(module.__dict__.pop, "forward")
        yield


def linear_maps(backbone: Backbone) -> dict[str, Any]:
    """The linear maps of the blocks that are loaded, by number of the block and name within it."""
    return {
        f"{number}.{name}": module
        for number, block in enumerate(backbone.blocks, 1)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def _weight(module: Any) -> Tensor:
    """The weights (outputs, inputs) of a linear map; those of GPT-2's are transposed."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def _multiply_rounded(module: Any, scale: InputScale, factors: Tensor, values: Tensor) -> Tensor:
    """What a linear map returns for values (…, p) if these and its weights are rounded to eight bits."""
    weight = _weight(module) / factors
    steps = weight.abs().amax(1).clamp(min=1e-12) / _LARGEST_WEIGHT
    zeros = torch.zeros(len(steps), dtype=torch.int32)
    weight = torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -_LARGEST_WEIGHT, _LARGEST_WEIGHT)
    rounded = torch.fake_quantize_per_tensor_affine(values * factors, scale.step, scale.zero, 0, INPUT_STEPS)
    return nn.functional.linear(rounded, weight, module.bias)
