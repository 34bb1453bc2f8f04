"""Read the pooled activations of texts, in batches by a budget of tokens; results are in the order of the texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spin.activations.chunks import (
    BATCHES_PER_CHUNK,
    Batch,
    Chunk,
    LongTexts,
    make_chunks,
    regroup,
    select_texts,
    stack,
)
from spin.activations.engines.encoder import BlockSegment
from spin.activations.engines.engine import Engine, open_engine
from spin.activations.feature_buffer import FeatureBuffer, StoreValues, begin_features, store_counts
from spin.activations.features import Features
from spin.activations.portions import ChooseRows, tokenize_ahead
from spin.activations.word_reader import WordReader, WordSink
from spin.arrays import Floats
from spin.attribution.token_sums import TokenReadings
from spin.backbone.model import Backbone
from spin.sites import FeatureColumn

SAFE_FLOAT16 = 65504 / 4
"""a quarter of float16's range: columns with larger values in a first batch are stored as float32"""
_MOST_MEAN = 256
"""mean of a neuron, in standard deviations, above which float16 is too coarse for it"""

Progress = Callable[[int], None]
"""takes the number of documents that were completed since the last call"""
KeepMask = Callable[[int, NDArray[np.int64], Floats], NDArray[np.bool_]]
"""takes the index of a segment, the indices (n,) of some texts and all values (n, p) that were read of them so far.
Returns a mask (n,) of the texts that go on into the next segment. The others exit"""


def extract(
    backbone: Backbone,
    texts: Sequence[str],
    columns: Mapping[FeatureColumn, type[np.floating]] | Sequence[FeatureColumn],
    *,
    keep: Mapping[FeatureColumn, NDArray[np.int64]] | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """Read `columns` from every text. To read repeatedly, open an engine once and call `read_activations`.

    `columns` may map each column to its type, which is float32 otherwise. `keep` gives the indices of the neurons to
    read for some columns; of the others all neurons are read. Raises as `read_activations` does.
    """
    types = dict(columns) if isinstance(columns, Mapping) else None
    engine = open_engine(backbone, [single_segment(columns, keep)])
    return read_activations(engine, texts, types=types, progress=progress)


def single_segment(
    columns: Sequence[FeatureColumn] | Mapping[FeatureColumn, Any], keep: Mapping[FeatureColumn, Any] | None = None
) -> BlockSegment:
    """One segment of all blocks that the columns need; `keep` gives the indices of the neurons to read for some."""
    ordered = {column: (keep or {}).get(column) for column in columns}
    return BlockSegment(0, max((column.site.layer for column in ordered), default=0), ordered)


def read_activations(
    engine: Engine,
    texts: Sequence[str],
    *,
    types: Mapping[FeatureColumn, type[np.floating]] | None = None,
    keep_mask: KeepMask | None = None,
    store: StoreValues | None = None,
    choose_rows: ChooseRows | None = None,
    word_sink: WordSink | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """Read the columns of the engine's segments from every text.

    `types` gives the type of some columns, float32 otherwise. `keep_mask`, called after every segment but the last,
    decides which documents go on; the others exit. `store`, called before it and after the last segment too, takes the
    values; the result then has no columns. `choose_rows`, called for texts before they are tokenised, in one thread and
    portion by portion, leaves some out: these have no tokens and no values. `word_sink`, for an engine whose segments
    have directions, takes what words contribute, batch by batch of the documents that stop. `progress` is called after
    every chunk of batches. The batches depend on these texts alone and the result, up to rounding, does not depend on
    their order.
    Raises UserError, naming the site, if a value does not fit a float16 column; NotFiniteError if one is not finite.
    """
    words = None if word_sink is None else WordReader(engine, word_sink)
    buffer = FeatureBuffer(engine, len(texts), types or {}, store, words)
    chunks = make_chunks(engine.backbone, texts, buffer, 1 if keep_mask is None else BATCHES_PER_CHUNK, choose_rows)
    run = partial(_run_chunk, engine, buffer, keep_mask)
    # one stream runs in this thread, for which torch's number of threads was set
    done = map(run, chunks) if engine.streams == 1 else _run_streams(run, chunks, engine.streams)
    for documents in done:
        progress(documents)
    return buffer.features(exits_early=keep_mask is not None)


def count_tokens(backbone: Backbone, texts: Sequence[str], choose_rows: ChooseRows | None = None) -> Features:
    """The tokenizer's counts of every text, without activations: for a classifier that reads none.

    `choose_rows` is as in `read_activations`.
    """
    counts = begin_features(backbone, len(texts), {})
    for rows, tokens in tokenize_ahead(backbone, texts, choose_rows=choose_rows):
        store_counts(counts, rows, tokens)
    return counts


def _run_streams(work: Callable[[Chunk], int], chunks: Iterable[Chunk], streams: int) -> Iterator[int]:
    """The results of `work` for every chunk, in order; `streams` chunks run at once and as many wait ready."""
    # a stream has one core; with more threads torch would use several in each to join tensors
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
        torch.set_num_threads(threads)  # else all threads started later would have one, too


def _run_chunk(engine: Engine, buffer: FeatureBuffer, keep_mask: KeepMask | None, chunk: Chunk) -> int:
    """Run batches through all segments, regrouping the documents that continue; return the number of documents."""
    if chunk.texts is not None:
        return _run_long_texts(engine, chunk.texts, chunk.batches, buffer, keep_mask)
    batches = chunk.batches
    documents = sum(len(batch.rows) for batch in batches)
    for index, segment in enumerate(engine.segments):
        batches = [_run_segment(engine, index, batch, buffer, keep_mask) for batch in batches]
        if keep_mask is not None and segment is not engine.segments[-1]:
            batches = list(regroup(batches, engine.backbone.batch_tokens))
    return documents


def _run_segment(engine: Engine, index: int, batch: Batch, buffer: FeatureBuffer, keep_mask: KeepMask | None) -> Batch:
    """Run a batch through one segment and store its values; return the documents that continue to the next segment."""
    output = engine.run(index, batch.ids, batch.mask, batch.hidden)
    buffer.store_values(batch.rows, index, output.values)
    batch = batch.advance(output)
    if batch.hidden is None and buffer.words is None:
        return batch
    values = output.values if batch.values is None else np.concatenate([batch.values, output.values], axis=1)
    batch, is_last = replace(batch, values=values), index == len(engine.segments) - 1
    if is_last or keep_mask is None:
        if is_last:
            _read_words(buffer, index, batch, np.arange(len(batch.rows)))
        return batch
    keep = keep_mask(index, batch.rows, values)
    _read_words(buffer, index, batch, np.flatnonzero(~keep))
    return batch.select(np.flatnonzero(keep), batch.ids.shape[1])


def _read_words(buffer: FeatureBuffer, index: int, batch: Batch, stopped: NDArray[np.int64]) -> None:
    """Read what the words contribute, where that is wanted, of the documents of a batch that stop after a segment."""
    if buffer.words is None or not len(stopped):
        return
    assert batch.tokens is not None
    assert batch.values is not None
    width = int((batch.mask[stopped] > 0).sum(1).max())
    padded = batch.ids[stopped, :width], batch.mask[stopped, :width]
    readings = batch.tokens.select(stopped, width)
    buffer.words.read(index, batch.rows[stopped], np.arange(len(stopped)), padded, readings, batch.values[stopped])


def _run_long_texts(
    engine: Engine, texts: LongTexts, batches: list[Batch], buffer: FeatureBuffer, keep_mask: KeepMask | None
) -> int:
    """Run the windows of texts through all segments, and store what they merge to; return the number of texts."""
    read: Floats | None = None
    for index, segment in enumerate(engine.segments):
        outputs = [engine.run(index, batch.ids, batch.mask, batch.hidden) for batch in batches]
        windows = np.concatenate([batch.rows for batch in batches])
        values = np.concatenate([output.values for output in outputs])
        order = np.argsort(windows)
        shares = texts.shares.select(windows[order])
        merged = shares.merge(values[order], buffer.slices[index])
        buffer.store_values(texts.rows[shares.texts], index, merged)
        batches = [batch.advance(output) for batch, output in zip(batches, outputs, strict=True)]
        read = merged if read is None else np.concatenate([read, merged], axis=1)
        if segment is engine.segments[-1]:
            _read_words_of_windows(buffer, index, batches, texts, shares.texts, read)
        elif keep_mask is not None:
            remaining = keep_mask(index, texts.rows[shares.texts], read)
            _read_words_of_windows(buffer, index, batches, texts, shares.texts[~remaining], read[~remaining])
            read = read[remaining]
            batches = [select_texts(batch, texts.shares.owners, shares.texts[remaining]) for batch in batches]
            batches = list(regroup(batches, engine.backbone.batch_tokens))
        if not batches:
            break
    return len(texts.rows)


def _read_words_of_windows(
    buffer: FeatureBuffer,
    index: int,
    batches: Sequence[Batch],
    texts: LongTexts,
    stopped: NDArray[np.int64],
    values: Floats,
) -> None:
    """Read what the words contribute, where that is wanted, of the texts `stopped` (n,), with values (n, p)."""
    readings = [batch.tokens for batch in batches if batch.tokens is not None]
    if buffer.words is None or not len(stopped):
        return
    windows = np.concatenate([batch.rows for batch in batches])
    chosen = np.flatnonzero(np.isin(texts.shares.owners[windows], stopped))
    chosen = chosen[np.argsort(windows[chosen])]
    ids, mask = stack([batch.ids for batch in batches])[chosen], stack([batch.mask for batch in batches])[chosen]
    owners = np.searchsorted(stopped, texts.shares.owners[windows[chosen]])
    read = TokenReadings.stack(readings).select(chosen, ids.shape[1])
    buffer.words.read(index, texts.rows[stopped], owners, (ids, mask), read, values)


def choose_column_types(
    backbone: Backbone, texts: Sequence[str], columns: Sequence[FeatureColumn]
) -> dict[FeatureColumn, type[np.floating]]:
    """The type to store each column in: float16, or float32 where a first batch of texts needs it."""
    features = extract(backbone, texts, columns)
    return {
        column: np.float32 if values.size and _needs_float32(values) else np.float16
        for column, values in features.columns.items()
    }


def _needs_float32(values: NDArray[np.floating]) -> bool:
    """Whether values (n, width) exceed SAFE_FLOAT16, or a neuron varies little against float16's steps at its mean.

    The steps are 2^-11 to 2^-10 of a value, so that at `_MOST_MEAN` deviations they are up to a quarter of a deviation.
    """
    deviation, mean = values.std(0, dtype=np.float64), np.abs(values.mean(0, dtype=np.float64))
    varies = deviation > 1e-6 * np.maximum(1, mean)
    return bool(np.abs(values).max() > SAFE_FLOAT16 or (mean > _MOST_MEAN * deviation)[varies].any())
