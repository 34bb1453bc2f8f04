"""Words before the backbone: the logits that they give to texts, and the texts that they decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.words.word_regression import WordRegression

DecideByWords = Callable[[Floats], NDArray[np.bool_]]
"""returns a mask (m,) of the texts that their words alone decide, by their logits (m, K)"""


def decide_none(logits: Floats) -> NDArray[np.bool_]:
    """No text, for a backbone that is to read all of them."""
    return np.zeros(len(logits), np.bool_)


class WordsFirst:
    """The words' logits of n texts, computed portion by portion while the backbone runs the portion before.

    Without a regression there are none, and the backbone reads all texts. `on_decided` is called with the indices of
    texts that are decided.
    """

    def __init__(
        self,
        texts: Sequence[str],
        regression: WordRegression | None,
        decide: DecideByWords,
        on_decided: Callable[[NDArray[np.int64]], None] = lambda rows: None,
    ) -> None:
        self.texts, self.regression, self.decide, self.on_decided = texts, regression, decide, on_decided
        self.logits: Floats | None = None
        """(n, K) the words' logits of the texts that `choose_rows` was called with"""
        if regression is not None:
            self.logits = np.empty((len(texts), len(regression.intercept)), np.float32)
        self.decided = np.zeros(len(texts), np.bool_)
        """(n,) the texts that their words decide"""
        self._count = self._counted = 0

    def choose_rows(self, rows: list[int]) -> list[int]:
        """Compute the logits of some texts, given by their indices; return the texts that these do not decide."""
        if self.regression is None:
            return rows
        return self.store(rows, self.regression.logits([self.texts[row] for row in rows]))

    def store(self, rows: list[int], logits: Floats) -> list[int]:
        """Store the logits (m, K) of some texts, given by their indices; return those that these do not decide."""
        assert self.logits is not None
        self.logits[rows] = logits
        self.decided[rows] = decided = self.decide(logits)
        if not decided.any():
            return rows
        self.on_decided(np.array(rows)[decided])
        self._count += int(decided.sum())
        return np.array(rows)[~decided].tolist()

    def count_new(self) -> int:
        """The number of texts that words have decided since the last call."""
        count = self._count  # which `choose_rows` may raise meanwhile, in another thread
        new, self._counted = count - self._counted, count
        return new
