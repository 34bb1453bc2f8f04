"""The reasons of predictions: what words and neurons contribute to the logit of each text's label, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment
from spin.activations.extract import find_words
from spin.arrays import Floats
from spin.attribution.reason_buffer import ReasonBuffer
from spin.attribution.reasons import Reasons
from spin.attribution.token_sums import TokenWeights
from spin.attribution.word_sums import WordSums
from spin.backbone.model import Backbone
from spin.heads.decision import Decision
from spin.heads.fitted import FittedClassifier
from spin.heads.reason_weights import token_directions, token_weights
from spin.words.word_regression import WordRegression

_BLOCK = 1024
"""texts that the backbone does not read whose words are found at a time"""


@dataclass(frozen=True)
class ReasonFinder:
    """Finds the words and neurons that contribute most to the logit of each text's class, as `explain` defines it."""

    count: int
    """number of words and of neurons per text, at most"""
    fitted: FittedClassifier
    """without the exits at which no text may stop"""
    decision: Decision
    words: WordRegression | None
    """the regression of a classifier that reads words or lets them decide"""

    @cached_property
    def stops(self) -> list[FittedClassifier]:
        """The classifiers at which texts stop: those of all exits, and the whole one."""
        return [self.fitted.at(index) for index in range(len(self.fitted.exits) + 1)]

    @property
    def block_stops(self) -> list[FittedClassifier]:
        """The classifiers at which texts stop after each segment of blocks."""
        return self.stops[len(self.fitted.exits) - len(self.fitted.block_exits) :]

    def add_directions(self, segments: Sequence[BlockSegment]) -> list[BlockSegment]:
        """Segments that project the tokens too, on the heads at which texts can still stop."""
        return [
            replace(segment, directions=token_directions(self.block_stops[index:], segment.neurons))
            for index, segment in enumerate(segments)
        ]

    def find(self, texts: Sequence[str], words: Floats | None, rows: NDArray[np.int64]) -> ReasonSink:
        """The sink that finds the reasons of texts, of which a backbone reads those at `rows`, ascending.

        `words` are the logits (n, K) of the word regression of all texts, if there is one.
        """
        return ReasonSink(self, texts, words, rows)


class ReasonSink:
    """The reasons of some texts, found batch by batch while a backbone reads them: a `WordSink`."""

    def __init__(
        self, finder: ReasonFinder, texts: Sequence[str], words: Floats | None, rows: NDArray[np.int64]
    ) -> None:
        self.finder, self.texts, self.words, self.rows = finder, texts, words, rows
        neurons = [(str(column), neuron) for column, neuron, _ in finder.fitted.selection.rows()]
        self.buffer = ReasonBuffer(texts, finder.count, neurons)

    def weigh_tokens(self, index: int, rows: NDArray[np.int64], values: Floats) -> TokenWeights:
        """How the tokens of texts, given by their positions among `self.rows`, count for the class of each."""
        stop = self.finder.block_stops[index]
        if stop.selection.words:
            assert self.words is not None
            values = np.concatenate([self.words[self.rows[rows]], values], axis=1)
        return token_weights(stop, values, self.finder.decision)

    def store_words(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Store the reasons of texts, given by their positions among `self.rows`, by what their words contribute."""
        self._store(self.rows[rows], weights, words)

    def store_unread(self, backbone: Backbone, rows: NDArray[np.int64], stop: FittedClassifier) -> None:
        """Store the reasons of the texts `rows`, which stop at a classifier that reads words alone, or nothing."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            texts = [self.texts[row] for row in block.tolist()]
            read = np.empty((len(block), 0), np.float32) if self.words is None else self.words[block]
            weights = token_weights(stop, read[:, : stop.selection.words], self.finder.decision)
            self._store(block, weights, find_words(backbone, texts, weights.classes))

    def _store(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Store the reasons of the texts `rows`, adding what terms contribute where words are features of the head."""
        if weights.words.any():
            assert self.finder.words is not None
            places = self.finder.words.places([self.texts[row] for row in rows.tolist()], weights.words)
            words = words.add(places)
        self.buffer.store(rows, weights.contributions, words)

    def reasons(self) -> Reasons:
        """All that was found, in the order of the texts."""
        return self.buffer.reasons()
