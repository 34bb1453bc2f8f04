"""Contributions of words to the logit of each text's class, read batch by batch from a backbone's pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spin.activations.engines.engine import Engine
from spin.arrays import Floats
from spin.attribution.text_words import TextWords, TokenPlaces, group_tokens
from spin.attribution.token_sums import TokenMasks, TokenReadings, TokenWeights, sum_tokens
from spin.attribution.word_sums import WordSums
from spin.backbone.model import Backbone, Tokens
from spin.backbone.windows import OWN
from spin.sites import FeatureColumn


class WordSink(Protocol):
    """Decides how tokens count, and takes what words contribute; batches may come from several threads at once."""

    def explains(self, index: int) -> bool:
        """Whether the words of texts that stop after segment `index` are read."""
        ...

    def weigh_tokens(self, index: int, rows: NDArray[np.int64], values: Floats) -> TokenWeights:
        """The weights of the tokens of the texts `rows` (n,), which stop after segment `index`, for each text's class.

        `values` (n, p) are all that were read of them.
        """
        ...

    def store_words(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Take what the words of the texts `rows` (n,) contribute, under the weights that `weigh_tokens` returned."""
        ...


class WordReader:
    """Sums what tokens contribute by word, for batches of texts in any order and from several threads."""

    def __init__(self, engine: Engine, sink: WordSink) -> None:
        self.backbone, self.sink = engine.backbone, sink
        self.columns: list[dict[FeatureColumn, slice]] = []
        """the slice of each column among all values up to a segment's end, for each segment"""
        columns, start = dict[FeatureColumn, slice](), 0
        for segment in engine.segments:
            columns = columns | segment.slices(engine.backbone, start)
            start = max((part.stop for part in columns.values()), default=0)
            self.columns.append(columns)
        self._places: dict[int, list[TokenPlaces]] = {}
        """the places of the tokens of each window, by text, of texts that were tokenized and not yet read"""

    def store_places(self, rows: Sequence[int], tokens: Tokens) -> None:
        """Keep where the tokens of the texts `rows` stand, until the texts are read."""
        assert tokens.places is not None
        for row, span in zip(rows, tokens.windows.spans, strict=True):
            self._places[row] = tokens.places[span.start : span.stop]

    def read(
        self,
        index: int,
        rows: NDArray[np.int64],
        owners: NDArray[np.int64],
        padded: tuple[Tensor, Tensor],
        readings: TokenReadings,
        values: Floats,
    ) -> None:
        """Read the words of the texts `rows` (n,), one or more, which stop after segment `index` with values (n, p).

        `padded` are the token ids and the mask of the texts' windows. `owners` (w,), ascending, are the positions of
        the windows' texts in `rows`. `readings` are those of the windows by all segments so far. Nothing is read where
        the sink does not explain texts that stop there.
        """
        if not self.sink.explains(index):
            for row in rows.tolist():
                del self._places[row]
            return
        weights = self.sink.weigh_tokens(index, rows, values)
        masks = find_masks(self.backbone, owners, *padded)
        by_token = sum_tokens(readings, masks, weights, self.columns[index])
        words, own = self._words(rows, owners, masks)
        sums = WordSums.of_tokens(weights.classes, words, by_token[masks.read][own])
        self.sink.store_words(rows, weights, sums)

    def _words(
        self, rows: NDArray[np.int64], owners: NDArray[np.int64], masks: TokenMasks
    ) -> tuple[TextWords, NDArray[np.bool_]]:
        """The words of the own tokens of texts, and which of the tokens that are read are own ones."""
        places = np.concatenate([each for row in rows.tolist() for each in self._places.pop(row)])
        own = masks.own[masks.read]
        return group_tokens(np.repeat(owners, masks.read.sum(1))[own], places[own]), own


def find_masks(backbone: Backbone, owners: NDArray[np.int64], ids: Tensor, mask: Tensor) -> TokenMasks:
    """Masks of the tokens of w windows that are pooled, by token ids and mask (w, T) from `Backbone.pad_tokens`.

    `owners` (w,), ascending, are the positions of the windows' texts.
    """
    read = mask > 0
    own = mask == OWN if backbone.reads_windows else read
    content = backbone.find_content(ids, read) & own
    return TokenMasks.of(owners, read.numpy(), own.numpy(), content.numpy())


def words_of(tokens: Tokens) -> TextWords:
    """The words of texts whose places were asked for, without the tokens that windows repeat."""
    if not tokens.places:
        return group_tokens(np.empty(0, np.int64), np.empty((0, 3), np.int32))
    own = [np.ones(len(places), bool) for places in tokens.places]
    for is_own, context in zip(own, tokens.windows.contexts, strict=True):
        is_own[context] = False
    texts = np.repeat(np.arange(len(tokens.windows.counts)), tokens.windows.counts)
    owners = np.repeat(texts, list(map(len, tokens.places)))
    chosen = np.concatenate(own)
    return group_tokens(owners[chosen], np.concatenate(tokens.places)[chosen])
