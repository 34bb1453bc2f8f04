"""A classifier as a forward pass reads it: its head, and where the texts that it has decided leave the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment
from spin.arrays import Floats
from spin.attribution.token_sums import TokenWeights, warn_of_missing_shares
from spin.fitted.attribution_weights import token_directions, token_weights
from spin.fitted.decision import Decision
from spin.fitted.early_exit import should_exit
from spin.fitted.fitted_classifier import FittedClassifier
from spin.words.word_regression import WordRegression


@dataclass(frozen=True)
class PassMember:
    """A classifier that reads texts in a forward pass, and gives the reasons that `explain` defines if they are wanted.

    Its methods take the logits `words` (t, K) of its word regression for all t texts of a pass, None without one.
    """

    fitted: FittedClassifier
    """without the exits at which no text may stop"""
    decision: Decision
    words: WordRegression | None
    """the regression of a classifier that reads words or lets them decide"""
    reasons: int = 0
    """number of words and of neurons per text that contribute most to the logit of its class, at most; 0 for none"""
    explains_exits: bool = True
    """whether texts that exit early have reasons, too"""

    @cached_property
    def stops(self) -> list[FittedClassifier]:
        """The classifiers at which texts stop: those of all exits, and the whole one."""
        return [self.fitted.at(index) for index in range(len(self.fitted.exits) + 1)]

    @property
    def block_stops(self) -> list[FittedClassifier]:
        """The classifiers at which texts stop after each segment of blocks."""
        return self.stops[len(self.fitted.exits) - len(self.fitted.block_exits) :]

    def decided_by_words(self, words: Floats) -> NDArray[np.bool_]:
        """Mask (n,) of the texts that exit by their words alone, by the word regression's logits (n, K)."""
        exit = self.fitted.words_exit
        if exit is None:
            return np.zeros(len(words), bool)
        return should_exit(self.decision, exit.threshold, self.stops[0].logits(words))

    def decided_after(
        self, words: Floats | None, index: int, rows: NDArray[np.int64], values: Floats
    ) -> NDArray[np.bool_]:
        """Mask (n,) of the texts `rows` that exit after a segment of blocks, by their values (n, p) so far."""
        logits = self.block_stops[index].logits(self.join_words(words, index, rows, values))
        threshold = self.fitted.block_exits[index].threshold
        return should_exit(self.decision, threshold, logits)

    def weigh_tokens(self, stop: FittedClassifier, features: Floats) -> TokenWeights:
        """The weights of the tokens of n texts, which stop at a classifier with raw features (n, p)."""
        return token_weights(stop, features, self.decision.leading_class(stop.logits(features)))

    def add_directions(self, segments: Sequence[BlockSegment]) -> list[BlockSegment]:
        """Segments that project the tokens too, on the heads at which texts can still stop."""
        warn_of_missing_shares(self.fitted.selection.neurons)
        return [
            replace(segment, directions=token_directions(self.block_stops[index:], segment.neurons))
            for index, segment in enumerate(segments)
        ]

    def join_words(self, words: Floats | None, index: int, rows: NDArray[np.int64], values: Floats) -> Floats:
        """The features of the head after a segment: the values, and before them the words' logits if it reads them."""
        if not self.block_stops[index].selection.word_logits:
            return values
        assert words is not None
        return np.concatenate([words[rows], values], axis=1)
