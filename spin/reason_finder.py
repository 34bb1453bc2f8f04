"""The reasons of predictions: what words and neurons contribute to the logit of each text's label, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment
from spin.activations.extract import find_words
from spin.activations.portions import divide_texts
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


class ReasonSink:
    """The reasons of n texts, found batch by batch while a backbone reads them: a `WordSink`.

    `words` (n, K) are the logits of the word regression, if there is one. They may be filled in later, those of a text
    before it is weighed or stored.
    """

    def __init__(self, finder: ReasonFinder, backbone: Backbone, texts: Sequence[str], words: Floats | None) -> None:
        self.finder, self.backbone, self.texts, self.words = finder, backbone, texts, words
        neurons = [(str(column), neuron) for column, neuron, _ in finder.fitted.selection.rows()]
        self.buffer = ReasonBuffer(texts, finder.count, neurons)

    def weigh_tokens(self, index: int, rows: NDArray[np.int64], values: Floats) -> TokenWeights:
        """How the tokens of the texts `rows`, which stop after segment `index`, count for the class of each."""
        stop = self.finder.block_stops[index]
        if stop.selection.words:
            assert self.words is not None
            values = np.concatenate([self.words[rows], values], axis=1)
        return token_weights(stop, values, self.finder.decision)

    def store_words(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Store the reasons of the texts `rows`, by what their words contribute through neurons.

        Where words are features of the head too, what their terms contribute is added.
        """
        if weights.words.any():
            assert self.finder.words is not None
            places = self.finder.words.places([self.texts[row] for row in rows.tolist()], weights.words)
            words = words.add(places)
        self.buffer.store(rows, weights.contributions, words)

    def store_unread(self, rows: NDArray[np.int64], *, by_words: bool) -> None:
        """Store the reasons of the texts `rows`, of which no neuron is read.

        They stop at the exit by words or, if not `by_words`, at the end of a classifier that reads no neurons.
        """
        stop = self.finder.stops[0 if by_words else -1]
        for portion in divide_texts(self.backbone, [len(self.texts[row]) for row in rows.tolist()]):
            block = rows[portion]
            read = np.empty((len(block), 0), np.float32) if self.words is None else self.words[block]
            weights = token_weights(stop, read[:, : stop.selection.words], self.finder.decision)
            found = find_words(self.backbone, [self.texts[row] for row in block.tolist()], weights.classes)
            self.store_words(block, weights, found)

    def reasons(self) -> Reasons:
        """All that was found, in the order of the texts."""
        return self.buffer.reasons()
