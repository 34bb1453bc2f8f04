"""Texts to pooled activations, in batches of a token budget, original order kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from spin.activations.encoder import BlockSegment
from spin.activations.engine import Engine, open_engine
from spin.arrays import Floats
from spin.backbone.batching import token_batches
from spin.backbone.model import Backbone, Tokens
from spin.errors import NotFiniteError, UserError
from spin.sites import FeatureColumn

SAFE_FLOAT16 = 65504 / 4
"""a quarter of float16's range: columns that a first batch shows above it are kept as float32"""
_TOGETHER = 4
"""batches that go through a group of blocks before those who are left are put together anew"""
_WINDOW, _WIDEST = 1024, 4096
"""texts that are tokenised at once, while those before them are computed: of the first window, and at most"""

Progress = Callable[[int], None]
KeepMask = Callable[[int, Floats], NDArray[np.bool_]]
"""which of n documents go on after a group of blocks, by all values (n, p) that were read of them so far"""


@dataclass(frozen=True)
class Features:
    """Pooled activations of n texts."""

    columns: dict[FeatureColumn, NDArray[np.floating]]
    """(n, width) each, width being the site's or the number of neurons kept; NaN where a text left before"""
    n_tokens: NDArray[np.int32]
    """(n,) tokens read, special tokens included"""
    n_unknown: NDArray[np.int32]
    """(n,) of those, what the tokenizer does not know"""
    truncated: int
    """texts that were cut at the backbone's max_tokens"""
    depth: NDArray[np.int32] | None = None
    """(n,) blocks that ran of each; None where all of them ran as deep"""

    @property
    def values(self) -> NDArray[np.floating]:
        """(n, p) the columns beside one another."""
        return np.concatenate(list(self.columns.values()), axis=1)


def extract(
    backbone: Backbone,
    texts: Sequence[str],
    columns: Mapping[FeatureColumn, type[np.floating]] | Sequence[FeatureColumn],
    *,
    keep: Mapping[FeatureColumn, NDArray[np.int64]] | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """Read `columns` from every text, once. To read repeatedly, open the engine once and call `read_activations`.

    A mapping gives each column's type, float32 otherwise; `keep` names the neurons wanted of some columns.
    """
    types = dict(columns) if isinstance(columns, Mapping) else None
    engine = open_engine(backbone, [single_segment(columns, keep)])
    return read_activations(engine, texts, types=types, progress=progress)


def single_segment(
    columns: Sequence[FeatureColumn] | Mapping[FeatureColumn, Any], keep: Mapping[FeatureColumn, Any] | None = None
) -> BlockSegment:
    """All blocks that some columns need as one group."""
    ordered = {column: (keep or {}).get(column) for column in columns}
    return BlockSegment(0, max((column.site.layer for column in ordered), default=0), ordered)


def read_activations(
    engine: Engine,
    texts: Sequence[str],
    *,
    types: Mapping[FeatureColumn, type[np.floating]] | None = None,
    keep_mask: KeepMask | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """What the engine's groups read of every text; `progress` is told how many are done.

    `keep_mask` is asked after every group but the last which documents go on; the others leave the batch. Batches
    depend on these texts alone, and the result, up to rounding, not on their order. Raises UserError, naming the site,
    when a value does not fit a float16 column, NotFiniteError for one that is not finite.
    """
    buffer = _FeatureBuffer(engine, len(texts), types or {})
    chunks = _chunks(_batches(engine.backbone, texts, buffer), 1 if keep_mask is None else _TOGETHER)
    for done in _in_streams(lambda chunk: _run(engine, chunk, buffer, keep_mask), chunks, engine.streams):
        progress(done)
    return buffer.features(keep_mask is not None)


@dataclass(frozen=True)
class _Batch:
    """Documents about to go through a group of blocks."""

    rows: NDArray[np.int64]
    ids: Tensor
    mask: Tensor
    hidden: Tensor | None = None
    """(B, T, hidden size) the residual stream after the blocks that ran"""
    found: NDArray[np.floating] | None = None
    """(B, p) all that was read so far"""

    def part(self, on: Sequence[int] | NDArray[np.int64], width: int) -> _Batch:
        """Some of its documents, their tokens cut at a width that holds them; padding lies on the right."""
        assert self.hidden is not None
        assert self.found is not None
        ids, mask, hidden = (of[on, :width] for of in (self.ids, self.mask, self.hidden))
        return _Batch(self.rows[on], ids, mask, hidden, self.found[on])


def _batches(backbone: Backbone, texts: Sequence[str], buffer: _FeatureBuffer) -> Iterator[_Batch]:
    for rows, tokens in _tokenised(backbone, texts):
        buffer.note(rows, tokens)
        for batch in token_batches(list(map(len, tokens.ids)), backbone.batch_tokens):
            yield _Batch(np.array(rows)[batch], *backbone.pad_batch([tokens.ids[at] for at in batch]))


def _chunks(batches: Iterator[_Batch], size: int) -> Iterator[list[_Batch]]:
    while some := list(islice(batches, size)):
        yield some


def _in_streams(work: Callable[[list[_Batch]], int], chunks: Iterable[list[_Batch]], streams: int) -> Iterator[int]:
    """What `work` gives of every chunk, in their order, `streams` of them at once and as many made ready."""
    if streams == 1:  # in this thread, which torch's number of threads was set for
        yield from map(work, chunks)
        return
    # a lane is one core: torch would start threads of its own in each to put tensors together
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running: deque[Future[int]] = deque()
            for chunk in chunks:
                running.append(pool.submit(work, chunk))
                if len(running) == 2 * streams:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        torch.set_num_threads(threads)  # a lane's 1 would be that of every thread to come


def _tokenised(backbone: Backbone, texts: Sequence[str]) -> Iterator[tuple[list[int], Tokens]]:
    """Rows of texts and their tokens, about in order of length, each window tokenised while the last is computed.

    The first is soon ready; they widen, as among more texts, sorted by tokens, more are alike and padded less.
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    windows: list[list[int]] = []
    done = 0
    while done < len(order):
        windows.append(order[done : done + min(done + _WINDOW, _WIDEST)])
        done += len(windows[-1])

    def tokenize(window: list[int]) -> Tokens:
        return backbone.tokenize([texts[row] for row in window])

    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(tokenize, window) for window in windows[:1]]
        for index, window in enumerate(windows):
            tokens = waiting.pop().result()
            waiting += [ahead.submit(tokenize, following) for following in windows[index + 1 : index + 2]]
            yield window, tokens


def _run(engine: Engine, batches: list[_Batch], buffer: _FeatureBuffer, keep_mask: KeepMask | None) -> int:
    """A chunk through all groups; those who go on after one are put together anew. Gives how many documents it had."""
    documents = sum(len(batch.rows) for batch in batches)
    for index, segment in enumerate(engine.segments):
        batches = [_step(engine, index, batch, buffer, keep_mask) for batch in batches]
        if keep_mask is not None and segment is not engine.segments[-1]:
            batches = list(_together(batches, engine.backbone.batch_tokens))
    return documents


def _step(engine: Engine, index: int, batch: _Batch, buffer: _FeatureBuffer, keep_mask: KeepMask | None) -> _Batch:
    """A batch through one group, without those who leave after it."""
    values, hidden = engine.run(index, batch.ids, batch.mask, batch.hidden)
    buffer.store(batch.rows, index, values)
    buffer.depth[batch.rows] = engine.segments[index].stop
    if keep_mask is None or hidden is None:
        return replace(batch, hidden=hidden)
    found = values if batch.found is None else np.concatenate([batch.found, values], axis=1)
    on = np.flatnonzero(keep_mask(index, found))
    return replace(batch, hidden=hidden, found=found).part(on, batch.ids.shape[1])


def _together(batches: Sequence[_Batch], budget: int) -> Iterator[_Batch]:
    """What is left of batches, as batches of a token budget."""
    parts = [(b.rows, b.ids, b.mask, b.hidden, b.found) for b in batches if len(b.rows)]
    if not parts:
        return
    rows, ids, mask, hidden, found = zip(*parts, strict=True)
    merged = _Batch(np.concatenate(rows), _one(ids), _one(mask), _one(hidden), np.concatenate(found))
    lengths = merged.mask.sum(1).tolist()
    for chosen in token_batches(lengths, budget):
        yield merged.part(chosen, max(lengths[at] for at in chosen))


def _one(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, T, ...) on top of one another, padded on the right to the longest."""
    wide = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(of, (0, 0) * (of.ndim - 2) + (0, wide - of.shape[1])) for of in tensors])


class _FeatureBuffer:
    """What is filled in, batch by batch, in the order of the texts."""

    def __init__(self, engine: Engine, count: int, types: Mapping[FeatureColumn, type[np.floating]]) -> None:
        self.columns: dict[FeatureColumn, NDArray[np.floating]] = {}
        self.parts: list[list[tuple[FeatureColumn, slice]]] = []
        for segment in engine.segments:
            widths = segment.widths(engine.backbone)
            ends = np.cumsum(widths)
            self.parts.append(
                [(c, slice(end - width, end)) for c, width, end in zip(segment.neurons, widths, ends, strict=True)]
            )
            for column, width in zip(segment.neurons, widths, strict=True):
                self.columns[column] = np.full((count, width), np.nan, types.get(column, np.float32))
        self.n_tokens, self.n_unknown = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.depth, self.truncated = np.zeros(count, np.int32), 0

    def note(self, rows: list[int], tokens: Tokens) -> None:
        self.n_tokens[rows], self.n_unknown[rows] = list(map(len, tokens.ids)), tokens.unknown
        self.truncated += tokens.truncated

    def store(self, rows: NDArray[np.int64], index: int, values: NDArray[np.floating]) -> None:
        if not np.isfinite(values).all():
            site = next(c.site for c, part in self.parts[index] if not np.isfinite(values[:, part]).all())
            raise NotFiniteError(f"{site}: the backbone gave values that are not finite; try backbone.dtype float32")
        for column, part in self.parts[index]:
            target, mine = self.columns[column], values[:, part]
            if target.dtype == np.float16 and (largest := float(np.abs(mine).max(initial=0))) > 65504:
                raise UserError(
                    f"{column.site}: a value of {largest:.0f} does not fit its float16 column, which the first batch "
                    "had shown small; leave the site out of `sites`, or start over with --restart and other first "
                    "documents"
                )
            # NumPy's own conversion takes five times as long
            target[rows] = torch.from_numpy(mine).half().numpy() if target.dtype == np.float16 else mine

    def features(self, cascaded: bool) -> Features:
        return Features(self.columns, self.n_tokens, self.n_unknown, self.truncated, self.depth if cascaded else None)


def choose_column_types(
    backbone: Backbone, texts: Sequence[str], columns: Sequence[FeatureColumn]
) -> dict[FeatureColumn, type[np.floating]]:
    """float16, or float32 for the columns that `texts`, a first batch, shows above a quarter of float16's range."""
    features = extract(backbone, texts, columns)
    return {
        column: np.float32 if values.size and np.abs(values).max() > SAFE_FLOAT16 else np.float16
        for column, values in features.columns.items()
    }
