"""The reasons of predictions: the words and the neurons with the largest contributions to the logit of the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.text_words import Ints
from spin.attribution.word_sums import WordSums


@dataclass(frozen=True)
class WordReason:
    """A word of a text, and what it contributes to the logit of the class."""

    word: str
    start: int
    """position of the word's first character in the text"""
    end: int
    """position behind its last character"""
    contribution: float


@dataclass(frozen=True)
class NeuronReason:
    """A neuron under a pooling, and what it contributes to the logit of the class."""

    column: str
    """the feature column, such as ffn.05.mean"""
    neuron: int
    """index within the site"""
    contribution: float


@dataclass(frozen=True)
class _LargestContributions:
    """The largest contributions to each of n texts, those of a text largest first. Every field but `counts` is (r,)."""

    counts: Ints
    """(n,) number of contributions to each text"""
    contributions: Floats

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The contributions to the texts of several parts."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)
        return cls(**joined)

    def of_text(self, row: int) -> range:
        """The positions of the contributions to a text."""
        stop = self._stops[row]
        return range(stop - int(self.counts[row]), stop)

    @cached_property
    def _stops(self) -> list[int]:
        return np.cumsum(self.counts).tolist()


@dataclass(frozen=True)
class TopWords(_LargestContributions):
    """The words with the largest contributions to each of n texts."""

    words: list[str]
    starts: Ints
    """positions of the words' first characters in the text"""
    ends: Ints
    """positions behind their last characters"""


@dataclass(frozen=True)
class TopNeurons(_LargestContributions):
    """The neurons with the largest contributions to each of n texts."""

    columns: list[str]
    """the feature columns"""
    neurons: Ints
    """indices within the sites"""


@dataclass(frozen=True)
class Reasons:
    """The words and the neurons that spoke loudest for or against one class of each of n texts."""

    classes: Ints
    """(n,) index of the class: the likeliest of the predicted ones, of all where none is predicted"""
    words: TopWords
    neurons: TopNeurons

    @classmethod
    def concatenate(cls, parts: Sequence[Reasons]) -> Reasons:
        """The reasons of the texts of several parts."""
        return cls(
            np.concatenate([part.classes for part in parts]),
            TopWords.concatenate([part.words for part in parts]),
            TopNeurons.concatenate([part.neurons for part in parts]),
        )

    def words_of(self, row: int) -> list[WordReason]:
        """The words of a text, the loudest first; a contribution below 0 speaks against the class."""
        top = self.words
        return [
            WordReason(top.words[i], int(top.starts[i]), int(top.ends[i]), float(top.contributions[i]))
            for i in top.of_text(row)
        ]

    def neurons_of(self, row: int) -> list[NeuronReason]:
        """The neurons of a text, the loudest first; a contribution below 0 speaks against the class."""
        top = self.neurons
        return [
            NeuronReason(top.columns[i], int(top.neurons[i]), float(top.contributions[i])) for i in top.of_text(row)
        ]


def largest_columns(values: Floats, count: int) -> NDArray[np.int64]:
    """The columns (n, count) with the largest absolute values of each row (n, p), the largest first.

    Of equal values the first comes first. Few maxima are found in a tenth of the time that a partition takes.
    """
    sizes, rows = np.abs(values), np.arange(len(values))
    largest = np.empty((len(values), min(count, values.shape[1])), np.int64)
    for rank in range(largest.shape[1]):
        largest[:, rank] = sizes.argmax(1)
        sizes[rows, largest[:, rank]] = -1
    return largest


def largest_words(words: WordSums, count: int) -> tuple[Ints, Ints]:
    """The indices of the `count` words of every text with the largest absolute contributions, and their ranks.

    Both (m,), a rank of 0 being that of the largest. Of equal words the first in the text comes first. Words that
    contribute nothing, such as those that a word regression does not know, are left out.
    """
    order = np.lexsort((words.starts, -np.abs(words.sums), words.owners))
    order = order[words.sums[order] != 0]
    per_text = np.bincount(words.owners[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(per_text) - per_text, per_text)
    is_top = rank < count
    return order[is_top], rank[is_top]
