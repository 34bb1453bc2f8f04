"""The reasons of a single text, one record each."""

from __future__ import annotations

from typing import NamedTuple

from spin.attribution.reasons import Reasons
from spin.attribution.text_words import Ints


class WordReason(NamedTuple):
    """A word of a text, its place in it, and what it contributes to the logit of the class."""

    word: str
    start: int
    end: int
    contribution: float


class NeuronReason(NamedTuple):
    """A neuron of a feature column, and what it contributes to the logit of the class."""

    column: str
    neuron: int
    contribution: float


def words_of(reasons: Reasons, row: int) -> list[WordReason]:
    """The words of a text, the loudest first."""
    top, of_text = reasons.words, _positions(reasons.words.counts, row)
    columns = top.words, top.starts.tolist(), top.ends.tolist(), top.contributions.tolist()
    return [WordReason(*reason) for reason in zip(*(column[of_text] for column in columns), strict=True)]


def neurons_of(reasons: Reasons, row: int) -> list[NeuronReason]:
    """The neurons of a text, the loudest first."""
    top, of_text = reasons.neurons, _positions(reasons.neurons.counts, row)
    columns = top.columns, top.neurons.tolist(), top.contributions.tolist()
    return [NeuronReason(*reason) for reason in zip(*(column[of_text] for column in columns), strict=True)]


def _positions(counts: Ints, row: int) -> slice:
    """The positions of a text's reasons among those of all texts."""
    return slice(int(counts[:row].sum()), int(counts[: row + 1].sum()))
