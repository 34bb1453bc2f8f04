"""A table of the tokens that texts are made of, each analysed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from spin.attribution.text_words import Ints

CHARACTERS_KEPT = 1 << 19
"""of the tokens that a table keeps, about: when a call finds more of them in the table, it begins a new one"""
Entry = tuple[int, int, int]
"""the number of what a token holds, and its start and end in the token"""


class TokenTable:
    """The entries of tokens, which are computed once per token: few of them make most of any text.

    A token is here what white space separates. `analyze` returns the entries of one. Threads may share a table.
    """

    def __init__(self, analyze: Callable[[str], Sequence[Entry]]) -> None:
        self._analyze = analyze
        self._lock = threading.Lock()
        self._clear()

    def __len__(self) -> int:
        """Number of tokens that are kept."""
        return len(self._numbers)

    def look_up(self, tokens: Sequence[str]) -> tuple[Ints, Ints]:
        """The entries (m, 3) of tokens, one token after the other, and the position (m,) of the token of each."""
        with self._lock:
            if self._characters > CHARACTERS_KEPT:
                self._clear()
            self._add(list(set(tokens).difference(self._numbers)))
            numbers = np.fromiter(map(self._numbers.__getitem__, tokens), np.int64, len(tokens))
            starts, entries = self._starts, self._entries
        lengths = starts[numbers + 1] - starts[numbers]
        before = np.cumsum(lengths) - lengths
        at = np.arange(lengths.sum()) + np.repeat(starts[numbers] - before, lengths)
        return entries[at], np.repeat(np.arange(len(tokens)), lengths)

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        self._characters = 0
        self._starts = np.zeros(1, np.int64)
        """where the entries of each token begin; behind the last token, where they end"""
        self._entries = np.empty((0, 3), np.int64)

    def _add(self, tokens: Sequence[str]) -> None:
        if not tokens:
            return
        found = [self._analyze(token) for token in tokens]
        self._starts = np.append(self._starts, self._starts[-1] + np.cumsum(list(map(len, found))))
        new = np.fromiter(chain.from_iterable(chain.from_iterable(found)), np.int64)
        self._entries = np.concatenate([self._entries, new.reshape(-1, 3)])
        self._characters += sum(map(len, tokens))
        self._numbers.update(zip(tokens, range(len(self), len(self) + len(tokens)), strict=True))
