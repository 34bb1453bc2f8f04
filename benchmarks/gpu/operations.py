"""Floating-point operations of a backbone on documents, by its weights and its attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from spin.backbone.model import Backbone


def count_operations(backbone: Backbone, lengths: Sequence[int]) -> int:
    """The operations of all blocks on documents of so many tokens each, without padding.

    Per token two for every weight of a linear map of the blocks; per pair of tokens that attend to each other four for
    every value of a query. Norms, activation functions, pooling, gathering and the head are not counted.
    """
    config, tokens = backbone.model.config, np.asarray(lengths, np.int64)
    maps = sum(m.weight.numel() for m in backbone.blocks.modules() if isinstance(m, nn.Linear))
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs = sum(_count_pairs(config, layer, tokens, backbone.causal) for layer in range(backbone.depth))
    return 2 * maps * int(tokens.sum()) + 4 * width * pairs


def _count_pairs(config: Any, layer: int, tokens: Any, causal: bool) -> int:
    """The pairs of tokens that attend to each other in a layer, over all documents."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] == "sliding_attention":
        side = np.minimum(config.local_attention // 2, tokens - 1)
        return int((tokens * (2 * side + 1) - side * (side + 1)).sum())
    return int((tokens * (tokens + 1) // 2 if causal else tokens**2).sum())
