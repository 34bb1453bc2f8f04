"""The pooled activations of texts, and the counts of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.reasons import Reasons
from spin.sites import FeatureColumn

_COUNTS = ("n_tokens", "n_unknown", "cut", "windows", "unread_tokens")


@dataclass(frozen=True)
class Features:
    """The pooled activations of n texts."""

    columns: dict[FeatureColumn, NDArray[np.floating]]
    """(n, width) each, width being that of the site or the number of neurons read; NaN where a text exited before"""
    n_tokens: NDArray[np.int32]
    """(n,) number of tokens that were read, special tokens included; those of overlapping windows as often as read"""
    n_unknown: NDArray[np.int32]
    """(n,) number of these that the tokenizer does not know"""
    cut: NDArray[np.bool_]
    """(n,) whether each text was not read to its end"""
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
    reasons: Reasons | None = None
    """the words and neurons that contribute most to the logit of each text's class, where they are wanted"""

    @property
    def truncated(self) -> int:
        """Number of texts that were not read to their end."""
        return int(self.cut.sum())

    @property
    def values(self) -> NDArray[np.floating]:
        """All features of the head side by side (n, p): the words' logits, if it reads them, and the columns."""
        words = [] if self.words is None or not self.head_reads_words else [self.words]
        return np.concatenate([*words, *self.columns.values()], axis=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The features of the texts of several parts, which have the same columns."""
        reasons = [part.reasons for part in parts if part.reasons is not None]
        return cls(
            columns={column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns},
            head_reads_words=parts[0].head_reads_words,
            reasons=Reasons.concatenate(reasons) if reasons else None,
            **{name: _join(name, parts) for name in (*_COUNTS, "depth", "words")},
        )

    def count_only(self, mask: NDArray[np.bool_]) -> Features:
        """The features with the counts of the texts in a mask (n,); the others have no tokens and no windows."""
        counted: dict[str, Any] = {name: np.where(mask, own, 0).astype(own.dtype) for name, own in self._counts.items()}
        return replace(self, **counted)

    def add_counts(self, other: Features) -> Features:
        """The features with the counts of the same n texts by another one, each of which has counted other texts."""
        # of two flags the sum is true if one is
        return replace(self, **{name: own + getattr(other, name) for name, own in self._counts.items()})

    @property
    def _counts(self) -> dict[str, Any]:
        """The counts by name, without those that are None."""
        return {name: counts for name in _COUNTS if (counts := getattr(self, name)) is not None}


def _join(name: str, parts: Sequence[Features]) -> Any:
    """The arrays of this name of all parts, one after the other; None if no part has one."""
    given = [array for part in parts if (array := getattr(part, name)) is not None]
    if not given:
        return None
    if len(given) < len(parts):
        raise ValueError(f"found parts with and without {name}; expected parts of one classifier")
    return np.concatenate(given)
