"""Windows of long texts: how a text is divided into them, and which tokens a window reads as context alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

OWN, CONTEXT = 1, 2
"""values of the mask of a window: a token that it pools, and one that the window before pools; padding is 0"""


@dataclass(frozen=True)
class Windows:
    """The windows of n texts, those of the first text first, each text's in order."""

    counts: list[int]
    """n counts, each of one window or more"""
    contexts: list[slice]
    """for each window the positions of the tokens that it reads as context alone: the window before pools them"""
    unread: list[int]
    """n counts: the tokens of each text that lie beyond its last window"""

    @cached_property
    def spans(self) -> list[range]:
        """The windows of each text, counted over all texts."""
        ends = np.cumsum([0, *self.counts]).tolist()
        return [range(*pair) for pair in pairwise(ends)]

    def sum_by_text(self, values: Sequence[int]) -> list[int]:
        """The sum over the windows of each text, from one number per window."""
        return [sum(values[span.start : span.stop]) for span in self.spans]


def split_windows(encodings: Sequence[Any], overlap: int, limit: int) -> tuple[list[Any], Windows]:
    """The encodings of the windows of texts, at most `limit` per text, from those of a fast tokenizer.

    An encoding's `overflowing` are its further windows; each begins with the last `overlap` tokens of the one before.
    """
    read: list[Any] = []
    contexts: list[slice] = []
    counts, unread = [], []
    for encoding in encodings:
        further = encoding.overflowing
        others, beyond = further[: limit - 1], further[limit - 1 :]
        read += [encoding, *others]
        counts.append(1 + len(others))
        contexts += [slice(0, 0), *(context_of(window, overlap) for window in others)]
        unread.append(sum(window.special_tokens_mask.count(0) - overlap for window in beyond))
    return read, Windows(counts, contexts, unread)


def context_of(window: Any, overlap: int) -> slice:
    """The positions of the tokens that a window after the first reads as context: the first of its text."""
    start = window.special_tokens_mask.index(0)
    return slice(start, start + overlap)
