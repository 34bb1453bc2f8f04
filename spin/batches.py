"""Which texts run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
