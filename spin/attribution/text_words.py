"""The words of texts: which tokens are pieces of the same word, and where the word stands in its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats

Ints = NDArray[np.int64]
TokenPlaces = NDArray[np.int32]
"""(T, 3) for each token: the index of its word, -1 for one that is of no word, and (start, end) in its text"""
_NOT_SPACE = re.compile(r"\S+")
"""what stands between white space"""


@dataclass(frozen=True)
class TextWords:
    """The words of some texts, those of the first text first, in the order of their first tokens."""

    owners: Ints
    """(w,) the position of each word's text"""
    starts: Ints
    """(w,) where the word starts in its text; start and end of a special token are equal"""
    ends: Ints
    """(w,) where the word ends in its text"""
    word_of: Ints
    """(t,) the word of each token"""


def token_places(encoding: Any, text: str) -> TokenPlaces:
    """The places of the tokens of a text in an encoding of a fast tokenizer.

    A token starts behind the white space that it begins with, as most tokens of decoders do. Some tokenizers, as those
    of Llama, Mistral and Gemma, do not divide texts into words: all tokens are of the first one. Their words are what
    stands between white space.
    """
    count = len(encoding)
    places = np.empty((count, 3), np.int32)
    places[:, 0] = [-1 if word is None else word for word in encoding.word_ids]
    places[:, 1:] = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * count).reshape(count, 2)
    spans = np.array([match.span() for match in _NOT_SPACE.finditer(text)], np.int32).reshape(-1, 2)
    if not len(spans):
        return places
    _, starts, ends = places.T.copy()
    next_span = np.minimum(np.searchsorted(spans[:, 1], starts, side="right"), len(spans) - 1)
    undivided = places[:, 0].max() == 0
    if undivided:
        places[:, 0] = np.where(places[:, 0] < 0, -1, next_span)
    first = np.clip(starts, spans[next_span, 0], spans[-1, 1])
    has_text = first < np.minimum(ends, spans[next_span, 1])
    places[:, 1] = np.where(has_text, first, starts)
    # a token of white space alone takes no place in the word that it begins
    is_space = (starts < ends) & ~has_text & (np.append(np.diff(places[:, 0]) == 0, False) | undivided)
    places[is_space, 1:] = first[is_space, None]
    return places


def group_tokens(owners: Ints, places: NDArray[np.int32]) -> TextWords:
    """The words of the tokens (t, 3) of some texts, in order; `owners` (t,), ascending, are their texts.

    Tokens of the same text and the same word are one word, also if special tokens stand between them, as where two
    windows divide it. A token of no word is a word by itself.
    """
    in_words = np.flatnonzero(places[:, 0] >= 0)
    keys = (owners[in_words] << 32) + places[in_words, 0]
    begins = np.diff(keys, prepend=-1) != 0
    is_first = np.ones(len(places), bool)
    is_first[in_words] = begins
    word_of = np.cumsum(is_first) - 1
    word_of[in_words] = word_of[in_words[begins]][np.cumsum(begins) - 1]
    last = np.empty(int(is_first.sum()), np.int64)
    last[word_of] = np.arange(len(places))  # of several tokens of a word the last one stays
    return TextWords(owners[is_first], places[is_first, 1].astype(np.int64), places[last, 2].astype(np.int64), word_of)


def find_stretches(owners: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Owners, starts and ends of the stretches that words cover, and the stretch of every word.

    `owners`, ascending, `starts` and `ends` are those of w words. Words of a text that overlap, as the bytes of one
    emoji may, are one stretch. Words without a length, which are special tokens, are of no stretch: -1. Stretches are
    in the order of the texts.
    """
    stretch_of = np.full(len(owners), -1)
    real = np.flatnonzero(ends > starts)
    real = real[np.lexsort((ends[real], starts[real], owners[real]))]
    base = owners[real] << 32
    covered = np.maximum.accumulate(base + ends[real])
    begins = np.ones(len(real), bool)
    begins[1:] = base[1:] + starts[real[1:]] >= covered[:-1]
    stretch_of[real] = np.cumsum(begins) - 1
    first = real[begins]
    last = np.append(np.flatnonzero(begins)[1:], len(real)) - 1
    stretch_ends = (covered[last] - base[last]) if len(real) else np.empty(0, np.int64)
    return owners[first], starts[first], stretch_ends, stretch_of


def sum_by_text(values: Floats, owners: Ints, count: int) -> Floats:
    """The sums (n, ...) of values (t, ...) by their owners (t,), such as texts, words or tokens, in float64."""
    if values.ndim == 1:
        return np.bincount(owners, values, count).astype(np.float64, copy=False)
    sums: Floats = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, owners, values)
    return sums
