"""Batches of a token budget, and how many tokens of a batch fit into a GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

STEP = 8
"""documents: a batch of more is a multiple of it, but for a last one, so that kernels are made for few shapes"""


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts in order of length, in batches of at most `budget` tokens with padding, one text at least."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        while batch and lengths[index] * (len(batch) + 1) > budget:
            full = len(batch) // STEP * STEP or len(batch)
            yield batch[:full]
            batch = batch[full:]
        batch.append(index)
    if batch:
        yield batch


ON_PROCESSOR = 2048
"""tokens a batch: what more of them leave behind between two operations does not stay in its caches"""

_MOST = 1 << 16
"""tokens that keep any GPU at work; more would only be padded more"""


def batch_tokens(model: Any, widest: int, max_tokens: int) -> int:
    """Tokens a batch where a model lies, its widest site given, and no text longer than `max_tokens`.

    Of a GPU it counts all that this process may use, not what is free now: the same batches whoever else runs there.
    """
    weights = next(model.parameters())
    if weights.device.type != "cuda":
        return ON_PROCESSOR
    total = torch.cuda.get_device_properties(weights.device).total_memory
    share = torch.cuda.get_per_process_memory_fraction(weights.device)
    config, size = model.config, weights.element_size()
    loaded = sum(each.numel() * each.element_size() for each in model.parameters())
    heads = getattr(config, "num_attention_heads", 1)
    token = token_bytes(config.hidden_size, widest, heads, max_tokens, size)
    return fitting_tokens(int(total * share) - loaded, token)


def token_bytes(hidden: int, widest: int, heads: int, max_tokens: int, size: int) -> int:
    """What a token takes while a block runs and its sites are pooled, `size` bytes a value.

    Generously: with attention that keeps all scores, as some families have, and a site pooled in float32.
    """
    return size * (8 * hidden + 4 * widest) + 4 * widest + heads * max_tokens * (size + 4)


def fitting_tokens(room: int, token: int) -> int:
    """A power of two, so that GPUs of a kind agree, of tokens of so many bytes in half of the room, in bytes."""
    return min(_MOST, 1 << max(0, (room // 2 // token).bit_length() - 1)) if room > 0 else 1
