"""Words before the backbone: the logits that they give to texts, and the texts that they decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.words.word_regression import WordRegression


class WordsFirst:
    """The words' logits of n texts, computed portion by portion while the backbone runs the portion before.

    Without a regression there are none, and the backbone reads all texts. `decide` returns a mask (m,) of the texts
    that their words alone decide, by their logits (m, K). `on_decided` is called with the indices of these texts.
    """

    def __init__(
        self,
        texts: Sequence[str],
        regression: WordRegression | None,
        decide: Callable[[Floats], NDArray[np.bool_]],
        on_decided: Callable[[NDArray[np.int64]], None] = lambda rows: None,
    ) -> None:
        self.texts, self.regression, self.decide, self.on_decided = texts, regression, decide, on_decided
        self.logits: Floats | None = None
        """(n, K) those of the texts that `choose_rows` was called with"""
        if regression is not None:
            self.logits = np.empty((len(texts), len(regression.intercept)), np.float32)
        self.decided = np.zeros(len(texts), np.bool_)
        """(n,) the texts that their words decide"""

    def choose_rows(self, rows: list[int]) -> list[int]:
        """Compute the logits of some texts, given by their indices; return the texts that these do not decide."""
        if self.regression is None or self.logits is None:
            return rows
        self.logits[rows] = logits = self.regression.logits([self.texts[row] for row in rows])
        self.decided[rows] = decided = self.decide(logits)
        if not decided.any():
            return rows
        self.on_decided(np.array(rows)[decided])
        return np.array(rows)[~decided].tolist()
