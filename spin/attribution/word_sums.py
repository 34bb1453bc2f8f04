"""Contributions of the words of texts to the logit of one class each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats
from spin.attribution.place_shares import Places, add_places
from spin.attribution.text_words import Ints, TextWords, find_stretches
from spin.attribution.token_shares import sum_by_text


@dataclass(frozen=True)
class WordSums:
    """The contributions of w words of n texts to the logits. The words of a text are consecutive."""

    classes: Ints
    """(n,) the class to whose logit the words of each text contribute"""
    owners: Ints
    """(w,) the position of each word's text, ascending"""
    starts: Ints
    """(w,) where the word starts in its text"""
    ends: Ints
    """(w,) where the word ends in its text"""
    sums: Floats
    """(w,) the contribution of each word"""

    @classmethod
    def of_tokens(cls, classes: Ints, words: TextWords, by_token: Floats) -> WordSums:
        """The sums over the tokens (t,) of every word. Words that overlap are one; special tokens are left out."""
        owners, starts, ends, stretch_of = find_stretches(words.owners, words.starts, words.ends)
        stretch = stretch_of[words.word_of]
        inside = stretch >= 0
        return cls(classes, owners, starts, ends, sum_by_text(by_token[inside], stretch[inside], len(owners)))

    def add(self, places: Places) -> WordSums:
        """The sums with what stands at places of the texts added to the words there, or as words of their own."""
        owners, starts, ends, sums = add_places(self.owners, self.starts, self.ends, self.sums, places)
        order = np.argsort(owners, kind="stable")
        return WordSums(self.classes, owners[order], starts[order], ends[order], sums[order])

    @classmethod
    def concatenate(cls, parts: Sequence[WordSums]) -> WordSums:
        """The sums of the texts of several parts."""
        offsets = np.cumsum([0, *(len(part.classes) for part in parts)])
        shifted = [replace(part, owners=part.owners + offset) for part, offset in zip(parts, offsets, strict=False)]
        names = ("classes", "owners", "starts", "ends", "sums")
        return cls(*(np.concatenate([getattr(part, name) for part in shifted]) for name in names))
