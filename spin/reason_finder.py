"""The reasons of predictions: what words and neurons contribute to the logit of each text's label, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.activations.engines.encoder import BlockSegment
from spin.activations.extract import find_words
from spin.activations.features import Features
from spin.arrays import Floats
from spin.attribution.reasons import Reasons, TopNeurons, TopWords, largest_columns
from spin.attribution.token_sums import TokenWeights
from spin.attribution.word_sums import WordSums
from spin.backbone.model import Backbone
from spin.heads.decision import Decision
from spin.heads.fitted import FittedClassifier
from spin.heads.reason_weights import token_directions, token_weights, weigh_features
from spin.words.word_regression import WordRegression

_BLOCK = 1024
"""texts whose contributions, of all neurons and terms, are computed at a time"""


@dataclass(frozen=True)
class ReasonFinder:
    """Finds the words and neurons that contribute most to the logit of each text's class, as `explain` defines it."""

    count: int
    """number of words and of neurons per text, at most"""
    fitted: FittedClassifier
    decision: Decision
    words: WordRegression | None
    """the regression of a classifier that reads words or lets them decide"""

    @property
    def _exits_by_words(self) -> int:
        """The number of exits before the blocks: 1 or 0."""
        return len(self.fitted.exits) - len(self.fitted.block_exits)

    def add_directions(self, segments: Sequence[BlockSegment]) -> list[BlockSegment]:
        """Segments that project the tokens too, on the heads at which texts can still stop."""
        stops = self._stops(len(segments))
        return [
            replace(segment, directions=token_directions(stops[index:], segment.neurons))
            for index, segment in enumerate(segments)
        ]

    def _stops(self, segments: int) -> list[FittedClassifier]:
        """The classifiers at which texts stop after each of some segments; after the last it is the whole one."""
        exits = [self.fitted.at(self._exits_by_words + index) for index in range(segments - 1)]
        return [*exits, self.fitted]

    def weigh_tokens(
        self, segments: int, words: Floats | None, index: int, rows: NDArray[np.int64], values: Floats
    ) -> TokenWeights:
        """How the tokens of the texts `rows`, which stop after segment `index` of some, count for the class of each.

        `values` (n, p) are those of the neurons that were read, and `words` the words' logits of all texts, if they are
        features of the head.
        """
        features = values if words is None else np.concatenate([words[rows], values], axis=1)
        return token_weights(self._stops(segments)[index], features, self.decision)

    def find(self, backbone: Backbone, texts: Sequence[str], features: Features) -> Reasons:
        """The reasons of texts by their features, with the `word_sums` of those whose neurons were read."""
        sums = self._word_sums(backbone, texts, features)
        neurons = _NeuronBuffer(self.fitted, len(texts), self.count)
        weights = np.zeros((len(texts), len(self.decision.label_space)))
        for part, rows, read in self._parts(features):
            contributions, of_words = weigh_features(part, read, sums.classes[rows])
            neurons.store(rows, contributions[:, part.selection.words :])
            if part.selection.words:
                weights[rows] = of_words
        rows = np.flatnonzero(weights.any(1))  # those that stopped at a head that reads words
        for start in range(0, len(rows), _BLOCK):
            assert self.words is not None
            block = rows[start : start + _BLOCK]
            places = self.words.places([texts[row] for row in block.tolist()], weights[block])
            sums = sums.add(places.move(block))
        return Reasons(sums.classes, TopWords.of(texts, sums, self.count), neurons.top())

    def _parts(self, features: Features) -> Iterator[tuple[FittedClassifier, NDArray[np.int64], Floats]]:
        """The classifier at each exit, the rows of some texts that stopped there, and what it reads of them."""
        values = features.values
        for index, rows in self.fitted.stops(features.depth, len(values)):
            read = self.fitted.read_at(index, values, features.words)
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                yield self.fitted.at(index), block, read[block]

    def _word_sums(self, backbone: Backbone, texts: Sequence[str], features: Features) -> WordSums:
        """What words contribute by neurons, with the class and the words of texts whose neurons were not read too."""
        sums = features.word_sums or WordSums.empty(len(texts))
        unread = np.flatnonzero(sums.classes < 0)
        if not len(unread):
            return sums
        classes = sums.classes.copy()
        for part, rows, read in self._parts(features):
            new = classes[rows] < 0
            classes[rows[new]] = self.decision.leading_class(part.logits(read[new]))
        found = find_words(backbone, [texts[row] for row in unread.tolist()], classes[unread])
        return sums.join(found.spread(unread, len(texts)))


class _NeuronBuffer:
    """The neurons with the largest contributions, which are filled block by block."""

    def __init__(self, fitted: FittedClassifier, texts: int, count: int) -> None:
        self.neurons = [(str(column), neuron) for column, neuron, _ in fitted.selection.rows()]
        self.positions = np.zeros((texts, count), np.int64)
        """in the selection"""
        self.contributions = np.zeros((texts, count))

    def store(self, rows: NDArray[np.int64], contributions: Floats) -> None:
        """Store the largest of the contributions (n, p) of the first p neurons to the texts `rows` (n,)."""
        largest = largest_columns(contributions, self.positions.shape[1])
        kept = np.ix_(rows, np.arange(largest.shape[1]))
        self.positions[kept] = largest
        self.contributions[kept] = np.take_along_axis(contributions, largest, 1)

    def top(self) -> TopNeurons:
        """All that was stored, without neurons that contribute nothing."""
        stored = self.contributions != 0
        neurons = [self.neurons[position] for position in self.positions[stored].tolist()]
        return TopNeurons(
            stored.sum(1),
            self.contributions[stored],
            [column for column, _ in neurons],
            np.array([neuron for _, neuron in neurons], np.int64),
        )
