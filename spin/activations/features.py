"""The pooled activations of texts, and the counts of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.reasons import Reasons
from spin.attribution.word_sums import WordSums
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class Features:
    """The pooled activations of n texts."""

    columns: dict[FeatureColumn, NDArray[np.floating]]
    """(n, width) each, width being that of the site or the number of neurons read; NaN where a text exited before"""
    n_tokens: NDArray[np.int32]
    """(n,) number of tokens that were read, special tokens included; those of overlapping windows as often as read"""
    n_unknown: NDArray[np.int32]
    """(n,) number of these that the tokenizer does not know"""
    truncated: int
    """number of texts that were not read to their end"""
    depth: NDArray[np.int32] | None = None
    """(n,) number of blocks that each text ran through, -1 if it never got to the backbone; None if it is the same for
    all"""
    words: Floats | None = None
    """(n, K) logits of a word regression, for a classifier that reads words or lets them decide"""
    head_reads_words: bool = True
    """whether these logits, if there are any, are features of the head, and not only of the exit by words"""
    windows: NDArray[np.int32] | None = None
    """(n,) number of windows that were read of each text; None where long texts are cut"""
    unread_tokens: NDArray[np.int32] | None = None
    """(n,) number of tokens beyond the last window; None where long texts are cut"""
    cut: NDArray[np.bool_] | None = None
    """(n,) whether each text was not read to its end; None where only their number is known"""
    word_sums: WordSums | None = None
    """what each word contributes by its tokens to the logit of the text's class, until the reasons are known"""
    reasons: Reasons | None = None
    """the words and neurons that contribute most to that logit, where they are wanted"""

    @property
    def values(self) -> NDArray[np.floating]:
        """All features of the head side by side (n, p): the words' logits, if it reads them, and the columns."""
        words = [] if self.words is None or not self.head_reads_words else [self.words]
        return np.concatenate([*words, *self.columns.values()], axis=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The features of the texts of several parts, which have the same columns."""

        def join(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            if all(array is None for array in arrays):
                return None
            if any(array is None for array in arrays):
                raise ValueError(f"found parts with and without {name}; expected parts of one classifier")
            return np.concatenate(arrays)

        reasons = [part.reasons for part in parts if part.reasons is not None]
        return cls(
            columns={column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns},
            n_tokens=np.concatenate([part.n_tokens for part in parts]),
            n_unknown=np.concatenate([part.n_unknown for part in parts]),
            truncated=sum(part.truncated for part in parts),
            depth=join("depth"),
            words=join("words"),
            head_reads_words=parts[0].head_reads_words,
            windows=join("windows"),
            unread_tokens=join("unread_tokens"),
            cut=join("cut"),
            reasons=Reasons.concatenate(reasons) if reasons else None,
        )

    def select(self, rows: NDArray[np.int64]) -> Features:
        """The features of some of the texts, given by index; which of them were cut must be known."""
        assert self.cut is not None

        def take(values: Any) -> Any:
            return None if values is None else values[rows]

        return replace(
            self,
            columns={column: values[rows] for column, values in self.columns.items()},
            n_tokens=self.n_tokens[rows],
            n_unknown=self.n_unknown[rows],
            truncated=int(self.cut[rows].sum()),
            depth=take(self.depth),
            words=take(self.words),
            windows=take(self.windows),
            unread_tokens=take(self.unread_tokens),
            cut=take(self.cut),
        )

    def spread(self, rows: NDArray[np.int64], depth: int, count: int) -> Features:
        """The features of `count` texts, of which the texts of these features are those at `rows`.

        Without words. `depth` is the number of blocks that these ran through, unless they have depths of their own.
        The others have no tokens and no windows, NaN in every column, and depth -1.
        """

        def place(values: NDArray[Any] | int, empty: NDArray[Any]) -> NDArray[Any]:
            empty[rows] = values
            return empty

        def counts(values: NDArray[np.int32]) -> NDArray[np.int32]:
            return place(values, np.zeros(count, np.int32))

        return Features(
            {c: place(v, np.full((count, v.shape[1]), np.nan, v.dtype)) for c, v in self.columns.items()},
            counts(self.n_tokens),
            counts(self.n_unknown),
            self.truncated,
            place(depth if self.depth is None else self.depth, np.full(count, -1, np.int32)),
            windows=None if self.windows is None else counts(self.windows),
            unread_tokens=None if self.unread_tokens is None else counts(self.unread_tokens),
            cut=None if self.cut is None else place(self.cut, np.zeros(count, np.bool_)),
            word_sums=None if self.word_sums is None else self.word_sums.spread(rows, count),
        )
