"""Batches by a budget of tokens, and the budget that a device has memory for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

BATCH_MULTIPLE = 8
"""documents: batches of more than so many are a multiple of it, except the last, so that kernels see few shapes"""
CPU_BATCH_TOKENS = 2048
"""tokens per batch on a processor: the activations of more would not stay in its caches from one operation to the
next"""
_MAX_GPU_BATCH_TOKENS = 1 << 16
"""tokens per batch that keep any GPU busy; larger batches would only have more padding"""


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Divide texts, given by their lengths in tokens, into batches; return the indices of each, in order of length.

    A batch has at most `budget` tokens, padding included, but at least one text.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        while batch and lengths[index] * (len(batch) + 1) > budget:
            full = len(batch) // BATCH_MULTIPLE * BATCH_MULTIPLE or len(batch)
            yield batch[:full]
            batch = batch[full:]
        batch.append(index)
    if batch:
        yield batch


def choose_batch_tokens(model: Any, widest: int, max_tokens: int) -> int:
    """The tokens per batch for a model on its device; `widest` is the width of its widest site.

    Texts have at most `max_tokens` tokens. On a GPU the memory that this process may use counts, not what is free now,
    so that batches are the same whatever else runs there.
    """
    weights = next(model.parameters())
    if weights.device.type != "cuda":
        return CPU_BATCH_TOKENS
    total = torch.cuda.get_device_properties(weights.device).total_memory
    share = torch.cuda.get_per_process_memory_fraction(weights.device)
    config, value_bytes = model.config, weights.element_size()
    model_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    heads = getattr(config, "num_attention_heads", 1)
    token_bytes = bytes_per_token(config.hidden_size, widest, heads, max_tokens, value_bytes)
    return tokens_that_fit(int(total * share) - model_bytes, token_bytes)


def bytes_per_token(hidden: int, widest: int, heads: int, max_tokens: int, value_bytes: int) -> int:
    """An upper estimate of the bytes per token while a block runs and its sites are pooled, `value_bytes` per value.

    Counts attention that keeps all scores, as in some families, and a site that is pooled in float32.
    """
    return value_bytes * (8 * hidden + 4 * widest) + 4 * widest + heads * max_tokens * (value_bytes + 4)


def tokens_that_fit(free_bytes: int, token_bytes: int) -> int:
    """The tokens of `token_bytes` each that half of `free_bytes` holds, as a power of two.

    It is 1 at least and 65,536 at most. A power of two is the same on all GPUs of a kind.
    """
    if free_bytes <= 0:
        return 1
    return min(_MAX_GPU_BATCH_TOKENS, 1 << max(0, (free_bytes // 2 // token_bytes).bit_length() - 1))
