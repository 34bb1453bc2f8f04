"""The buffer that collects the features of texts while a backbone reads them, batch by batch in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from spin.activations.engines.engine import Engine
from spin.activations.features import Features
from spin.activations.word_reader import WordReader
from spin.arrays import Floats
from spin.backbone.model import Backbone, Tokens
from spin.errors import NotFiniteError, UserError
from spin.sites import BY_WORDS, FeatureColumn

StoreValues = Callable[[int, NDArray[np.int64], Floats], None]
"""takes the index of a segment, the indices (n,) of some texts and the values (n, p) of its columns side by side"""


def begin_features(backbone: Backbone, count: int, columns: dict[FeatureColumn, NDArray[np.floating]]) -> Features:
    """The features of `count` texts whose tokens are not counted yet; `store_counts` does so portion by portion."""
    n_tokens, n_unknown, windows, unread = (np.zeros(count, np.int32) for _ in range(4))
    features = Features(columns, n_tokens, n_unknown, np.zeros(count, np.bool_))
    return replace(features, windows=windows, unread_tokens=unread) if backbone.reads_windows else features


def store_counts(features: Features, rows: list[int], tokens: Tokens) -> None:
    """Store the tokenizer's counts of the texts `rows` in features that `begin_features` returned."""
    features.n_tokens[rows], features.n_unknown[rows], features.cut[rows] = tokens.lengths, tokens.unknown, tokens.cut
    if features.windows is not None and features.unread_tokens is not None:
        features.windows[rows], features.unread_tokens[rows] = tokens.windows.counts, tokens.windows.unread


class FeatureBuffer:
    """The arrays of `Features`, which are filled batch by batch in the order of the texts."""

    def __init__(
        self,
        engine: Engine,
        count: int,
        types: Mapping[FeatureColumn, type[np.floating]],
        store: StoreValues | None = None,
        words: WordReader | None = None,
    ) -> None:
        self.segments, self.store, self.words = engine.segments, store, words
        columns: dict[FeatureColumn, NDArray[np.floating]] = {}
        self.slices = [list(segment.slices(engine.backbone).items()) for segment in engine.segments]
        """slice of each column among the values of a segment, for each segment"""
        for column, part in (each for slices in self.slices for each in slices if store is None):
            columns[column] = np.full((count, part.stop - part.start), np.nan, types.get(column, np.float32))
        self.filled, self.depth = begin_features(engine.backbone, count, columns), np.full(count, BY_WORDS, np.int32)

    def store_values(self, rows: NDArray[np.int64], index: int, values: NDArray[np.floating]) -> None:
        """Store the values (B, p) of the texts `rows` (B,) from segment `index`, after checking them."""
        if not np.isfinite(values).all():
            site = next(c.site for c, part in self.slices[index] if not np.isfinite(values[:, part]).all())
            raise NotFiniteError(f"{site}: the backbone gave values that are not finite; try backbone.dtype float32")
        self.depth[rows] = self.segments[index].stop
        if self.store is not None:
            self.store(index, rows, values)
            return
        for column, part in self.slices[index]:
            target, column_values = self.filled.columns[column], values[:, part]
            is_half = target.dtype == np.float16
            if is_half and (largest := float(np.abs(column_values).max(initial=0))) > 65504:
                raise UserError(
                    f"{column.site}: a value of {largest:.0f} does not fit its float16 column, whose values in the "
                    "first batch were small; leave the site out of `sites`, or start over with --restart and other "
                    "first documents"
                )
            # NumPy's own conversion takes five times as long
            target[rows] = torch.from_numpy(column_values).half().numpy() if is_half else column_values

    def features(self, *, exits_early: bool) -> Features:
        """All that was stored; with the depth of each text if texts may exit early."""
        return replace(self.filled, depth=self.depth) if exits_early else self.filled
