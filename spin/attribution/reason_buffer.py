"""The buffer that collects the reasons of texts while these are classified, batch by batch in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spin.arrays import Floats
from spin.attribution.reasons import Reasons, TopNeurons, TopWords, largest_columns, largest_words
from spin.attribution.text_words import Ints
from spin.attribution.word_sums import WordSums


class ReasonBuffer:
    """The `count` words and neurons that contribute most to each of some texts.

    Batches of different texts may be stored by several threads at once.
    """

    def __init__(self, texts: Sequence[str], count: int, neurons: Sequence[tuple[str, int]]) -> None:
        self.texts, self.count, self.neurons = texts, count, neurons
        self.classes = np.full(len(texts), -1)
        self._of_neurons = _TopBuffer(len(texts), count)
        """the contributions of neurons, by their positions in `neurons`"""
        self._of_words = _TopBuffer(len(texts), count, 2)
        """the contributions of words, by start and end in their texts"""

    def store(self, rows: Ints, contributions: Floats, words: WordSums) -> None:
        """Store the largest contributions to the texts `rows` (n,): of the first p neurons (n, p), and of words."""
        self.classes[rows] = words.classes
        top = largest_columns(contributions, self.count)
        ranks = np.arange(top.shape[1])
        self._of_neurons.store(rows[:, None], ranks, np.take_along_axis(contributions, top, 1), top[..., None])
        chosen, rank = largest_words(words, self.count)
        spans = np.stack([words.starts[chosen], words.ends[chosen]], axis=1)
        self._of_words.store(rows[words.owners[chosen]], rank, words.sums[chosen], spans)

    def reasons(self) -> Reasons:
        """All that was stored, in the order of the texts. What contributes nothing is left out."""
        counts, contributions, positions = self._of_neurons.flatten()
        named = [self.neurons[position] for position in positions[:, 0].tolist()]
        indices = np.array([neuron for _, neuron in named], np.int64)
        neurons = TopNeurons(counts, contributions, [column for column, _ in named], indices)
        counts, contributions, spans = self._of_words.flatten()
        owners = np.repeat(np.arange(len(counts)), counts).tolist()
        words = [self.texts[owner][start:end] for owner, (start, end) in zip(owners, spans.tolist(), strict=True)]
        return Reasons(self.classes, TopWords(counts, contributions, words, *spans.T), neurons)


class _TopBuffer:
    """The largest contributions to n texts, and the k numbers that say of what each is."""

    def __init__(self, texts: int, count: int, k: int = 1) -> None:
        self.contributions, self.keys = np.zeros((texts, count)), np.zeros((texts, count, k), np.int64)

    def store(self, rows: Ints, ranks: Ints, contributions: Floats, keys: Ints) -> None:
        """Store contributions, and the keys (..., k) of each, at rows and ranks that are broadcast to their shape."""
        self.contributions[rows, ranks], self.keys[rows, ranks] = contributions, keys

    def flatten(self) -> tuple[Ints, Floats, Ints]:
        """The number of contributions to each text, and all of them (r,) with their keys (r, k)."""
        stored = self.contributions != 0
        return stored.sum(1), self.contributions[stored], self.keys[stored]
