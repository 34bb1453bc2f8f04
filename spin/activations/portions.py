"""Texts in portions, each of which is tokenised while the one before is computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from spin.backbone.model import Backbone, Tokens

_FIRST_PORTION, _LARGEST_PORTION = 1024, 4096
"""short texts that are tokenised at once while those before them are computed: in the first portion, and at most"""
_LEAST_CHOSEN = 0.25
"""share of a portion below which further portions are tokenised with what is chosen of it, so that batches are full"""
_CHARACTERS_PER_TOKEN = 4
"""estimate by which the part of a text that is encoded is found"""
_CHARACTERS = 256
"""a text counts once more in a portion for every so many that are encoded of it"""

ChooseRows = Callable[[list[int]], list[int]]
"""takes the indices of some texts and returns those that are to be tokenised; the others are left out"""


def tokenize_ahead(
    backbone: Backbone, texts: Sequence[str], *, places: bool = False, choose_rows: ChooseRows | None = None
) -> Iterator[tuple[list[int], Tokens]]:
    """Portions of the texts, as their indices and tokens; each is tokenised while the one before is computed.

    `choose_rows` is called for each portion in turn, in the thread that tokenises. Where it chooses few texts, those of
    several portions come together.

    Texts come in order of their number of characters. The first portion is small, to be ready soon. Later ones are
    larger: sorted by tokens, more texts are more alike in length and need less padding.
    """
    portions = iter(divide_texts(backbone, [len(text) for text in texts]))

    def tokenize() -> tuple[list[int], Tokens] | None:
        rows: list[int] = []
        for portion in portions:
            rows += portion if choose_rows is None else choose_rows(portion)
            if len(rows) >= _LEAST_CHOSEN * len(portion):
                break
        if not rows:
            return None
        return rows, backbone.tokenize([texts[row] for row in rows], **({"places": True} if places else {}))

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(tokenize)
        while (tokenized := pending.result()) is not None:
            pending = pool.submit(tokenize)
            yield tokenized


def divide_texts(backbone: Backbone, lengths: Sequence[int]) -> list[list[int]]:
    """The indices of texts, given by their numbers of characters, in portions by size and of growing size."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    # encodings of long texts take gigabytes, of which little may be read
    most = sys.maxsize if backbone.encodes_whole_texts else _CHARACTERS_PER_TOKEN * backbone.max_tokens
    ends = np.cumsum([1 + min(lengths[row], most) // _CHARACTERS for row in order])
    portions: list[list[int]] = []
    start = 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        limit = before + min(before + _FIRST_PORTION, _LARGEST_PORTION)
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        portions.append(order[start:stop])
        start = stop
    return portions
