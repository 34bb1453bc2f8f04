"""Chunks of batches: the documents that go through the segments of an engine together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from spin.activations.engines.encoder import SegmentOutput
from spin.activations.engines.host_copy import copy_to_device
from spin.activations.feature_buffer import FeatureBuffer, store_counts
from spin.activations.merge_windows import WindowShares
from spin.activations.portions import ChooseRows, tokenize_ahead
from spin.attribution.token_sums import TokenReadings
from spin.backbone.batching import token_batches
from spin.backbone.model import Backbone, Tokens

BATCHES_PER_CHUNK = 4
"""batches that go through a segment before the documents that go on are divided into batches anew"""


@dataclass(frozen=True)
class Batch:
    """Documents about to go through a segment."""

    rows: NDArray[np.int64]
    """(B,) the indices of their texts, or of their windows in `LongTexts`"""
    ids: Tensor
    """(B, T) token ids"""
    mask: Tensor
    """(B, T) whether a token is none of padding; where the backbone reads windows, the mask of `Backbone.pad_tokens`"""
    hidden: Tensor | None = None
    """(B, T, hidden size) the residual stream after the last segment"""
    values: NDArray[np.floating] | None = None
    """(B, p) all values that were read so far"""
    tokens: TokenReadings | None = None
    """readings of the documents' tokens so far, if they are wanted"""

    def select(self, indices: Sequence[int] | NDArray[np.int64], width: int) -> Batch:
        """Some of the documents, with the first `width` token positions; padding lies on the right."""
        assert self.hidden is not None
        assert self.values is not None
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        hidden = self.hidden[copy_to_device(chosen, self.hidden.device), :width]
        tokens = None if self.tokens is None else self.tokens.select(indices, width)
        ids, mask = self.ids[chosen, :width], self.mask[chosen, :width]
        return Batch(self.rows[indices], ids, mask, hidden, self.values[indices], tokens)

    def advance(self, output: SegmentOutput) -> Batch:
        """The documents after a segment, by its output; the values are to be added."""
        tokens = output.tokens
        if tokens is not None and self.tokens is not None:
            tokens = self.tokens.extend(tokens)
        return replace(self, hidden=output.hidden, tokens=tokens)


@dataclass(frozen=True)
class LongTexts:
    """Texts of several windows, which leave a chunk together: an exit decides by the values of the whole text."""

    rows: NDArray[np.int64]
    """(n,) the indices of the texts"""
    shares: WindowShares
    """shares of the texts' windows, whose owners are positions in `rows`"""


@dataclass(frozen=True)
class Chunk:
    """Batches that go through all segments together."""

    batches: list[Batch]
    texts: LongTexts | None = None
    """the texts whose windows the batches hold; None: each row is a whole text"""


def make_chunks(
    backbone: Backbone, texts: Sequence[str], buffer: FeatureBuffer, size: int, choose_rows: ChooseRows | None = None
) -> Iterator[Chunk]:
    """Chunks of `size` batches of texts of one window each, and chunks of texts of several.

    `choose_rows` is that of `tokenize_ahead`.
    """
    batches: list[Batch] = []
    for rows, tokens in tokenize_ahead(backbone, texts, places=buffer.words is not None, choose_rows=choose_rows):
        store_counts(buffer.filled, rows, tokens)
        if buffer.words is not None:
            buffer.words.store_places(rows, tokens)
        whole = [(text, span.start) for text, span in enumerate(tokens.windows.spans) if len(span) == 1]
        for batch in token_batches([len(tokens.ids[first]) for _, first in whole], backbone.batch_tokens):
            own, windows = zip(*(whole[index] for index in batch), strict=True)
            batches.append(Batch(np.array(rows)[list(own)], *backbone.pad_tokens(tokens, windows)))
            if len(batches) == size:
                yield Chunk(batches)
                batches = []
        for group in _long_text_groups(tokens, BATCHES_PER_CHUNK * backbone.batch_tokens):
            yield _long_text_chunk(backbone, np.array(rows), tokens, group)
    if batches:
        yield Chunk(batches)


def _long_text_groups(tokens: Tokens, budget: int) -> Iterator[list[int]]:
    """The texts of several windows, in groups of at most `budget` tokens but of at least one text."""
    group: list[int] = []
    total = 0
    for text, (span, length) in enumerate(zip(tokens.windows.spans, tokens.lengths, strict=True)):
        if len(span) == 1:
            continue
        if group and total + length > budget:
            yield group
            group, total = [], 0
        group.append(text)
        total += length
    if group:
        yield group


def _long_text_chunk(backbone: Backbone, rows: NDArray[np.int64], tokens: Tokens, texts: Sequence[int]) -> Chunk:
    """A chunk of some texts of several windows."""
    spans = [tokens.windows.spans[text] for text in texts]
    windows = [window for span in spans for window in span]
    own, content = np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
    batches = []
    for batch in token_batches([len(tokens.ids[window]) for window in windows], backbone.batch_tokens):
        ids, mask = backbone.pad_tokens(tokens, [windows[index] for index in batch])
        own[batch], content[batch] = (counts.numpy() for counts in backbone.count_own(ids, mask))
        batches.append(Batch(np.array(batch), ids, mask))
    owners = np.repeat(np.arange(len(spans)), list(map(len, spans)))
    return Chunk(batches, LongTexts(rows[list(texts)], WindowShares.from_counts(owners, own, content)))


def select_texts(batch: Batch, owners: NDArray[np.int64], texts: NDArray[np.int64]) -> Batch:
    """The windows of a batch that belong to some texts, given the text of every window."""
    windows = np.flatnonzero(np.isin(owners[batch.rows], texts))
    no_values = np.empty((len(batch.rows), 0), np.float32)
    return replace(batch, values=no_values).select(windows, batch.ids.shape[1])


def regroup(batches: Sequence[Batch], budget: int) -> Iterator[Batch]:
    """The documents of some batches in new batches by the budget of tokens."""
    parts = [(b.rows, b.ids, b.mask, b.hidden, b.values) for b in batches if len(b.rows)]
    if not parts:
        return
    rows, ids, mask, hidden, values = zip(*parts, strict=True)
    readings = [batch.tokens for batch in batches if len(batch.rows) and batch.tokens is not None]
    merged = Batch(
        np.concatenate(rows),
        stack(ids),
        stack(mask),
        stack(hidden),
        np.concatenate(values),
        TokenReadings.stack(readings) if readings else None,
    )
    lengths = (merged.mask > 0).sum(1).tolist()
    for batch in token_batches(lengths, budget):
        yield merged.select(batch, max(lengths[index] for index in batch))


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, T, ...) joined along the first dimension, padded on the right to the longest T."""
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(each, (0, 0) * (each.ndim - 2) + (0, width - each.shape[1])) for each in tensors])
