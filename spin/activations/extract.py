"""Read the pooled activations of texts, in batches by a budget of tokens; results are in the order of the texts."""

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
"""a quarter of float16's range: columns with larger values in a first batch are stored as float32"""
_MOST_MEAN = 256
"""mean of a neuron, in standard deviations, above which float16 is too coarse for it"""
_BATCHES_PER_CHUNK = 4
"""batches that go through a segment before the documents that go on are divided into batches anew"""
_FIRST_WINDOW, _LARGEST_WINDOW = 1024, 4096
"""texts that are tokenised at once while those before them are computed: in the first window, and at most"""

Progress = Callable[[int], None]
"""takes the number of documents that were completed since the last call"""
KeepMask = Callable[[int, NDArray[np.int64], Floats], NDArray[np.bool_]]
"""takes the index of a segment, the indices (n,) of some texts and all values (n, p) that were read of them so far;
returns a mask (n,) of the texts that go on into the next segment; the others exit"""
StoreValues = Callable[[int, NDArray[np.int64], Floats], None]
"""takes the index of a segment, the indices (n,) of some texts and the values (n, p) of its columns side by side"""


@dataclass(frozen=True)
class Features:
    """The pooled activations of n texts."""

    columns: dict[FeatureColumn, NDArray[np.floating]]
    """(n, width) each, width being that of the site or the number of neurons read; NaN where a text exited before"""
    n_tokens: NDArray[np.int32]
    """(n,) number of tokens that were read, special tokens included"""
    n_unknown: NDArray[np.int32]
    """(n,) number of these that the tokenizer does not know"""
    truncated: int
    """number of texts that were truncated to the backbone's max_tokens"""
    depth: NDArray[np.int32] | None = None
    """(n,) number of blocks that each text ran through, -1 if it never got to the backbone; None if it is the same for
    all"""
    words: Floats | None = None
    """(n, K) logits of a word regression, for a classifier that reads words or lets them decide"""
    head_reads_words: bool = True
    """whether these logits, if there are any, are features of the head, and not only of the exit by words"""
    cut: NDArray[np.bool_] | None = None
    """(n,) whether each text was truncated; None where only their number is known"""

    @property
    def values(self) -> NDArray[np.floating]:
        """All features side by side (n, p): the words' logits, if there are any, and the columns."""
        words = [] if self.words is None or not self.head_reads_words else [self.words]
        return np.concatenate([*words, *self.columns.values()], axis=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The features of the texts of several parts, which have the same columns."""
        depths = [part.depth for part in parts if part.depth is not None]
        words = [part.words for part in parts if part.words is not None]
        cut = [part.cut for part in parts if part.cut is not None]
        return cls(
            columns={column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns},
            n_tokens=np.concatenate([part.n_tokens for part in parts]),
            n_unknown=np.concatenate([part.n_unknown for part in parts]),
            truncated=sum(part.truncated for part in parts),
            depth=np.concatenate(depths) if depths else None,
            words=np.concatenate(words) if words else None,
            head_reads_words=parts[0].head_reads_words,
            cut=np.concatenate(cut) if cut else None,
        )

    def select(self, rows: NDArray[np.int64]) -> Features:
        """The features of some of the texts, which a backbone has read."""
        assert self.cut is not None
        cut = self.cut[rows]
        return Features(
            {column: values[rows] for column, values in self.columns.items()},
            self.n_tokens[rows],
            self.n_unknown[rows],
            int(cut.sum()),
            None if self.depth is None else self.depth[rows],
            None if self.words is None else self.words[rows],
            self.head_reads_words,
            cut,
        )

    def spread(self, rows: NDArray[np.int64], depth: int, count: int) -> Features:
        """The features of `count` texts, of which the texts of these features are those at `rows`.

        Without words. `depth` is the number of blocks that these ran through, unless they have depths of their own.
        The others have no tokens, NaN in every column, and depth -1.
        """

        def place(values: NDArray[Any] | int, empty: NDArray[Any]) -> NDArray[Any]:
            empty[rows] = values
            return empty

        return Features(
            {c: place(v, np.full((count, v.shape[1]), np.nan, v.dtype)) for c, v in self.columns.items()},
            place(self.n_tokens, np.zeros(count, np.int32)),
            place(self.n_unknown, np.zeros(count, np.int32)),
            self.truncated,
            place(depth if self.depth is None else self.depth, np.full(count, -1, np.int32)),
            cut=None if self.cut is None else place(self.cut, np.zeros(count, np.bool_)),
        )


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
    progress: Progress = lambda documents: None,
) -> Features:
    """Read the columns of the engine's segments from every text.

    `types` gives the type of some columns, float32 otherwise. `keep_mask`, called after every segment but the last,
    decides which documents go on; the others exit. `store`, called before it and after the last segment too, takes the
    values; the result then has no columns. `progress` is called after every chunk of batches. The batches
    depend on these texts alone and the result, up to rounding, does not depend on their order.
    Raises UserError, naming the site, if a value does not fit a float16 column; NotFiniteError if one is not finite.
    """
    buffer = _FeatureBuffer(engine, len(texts), types or {}, store)
    chunks = _chunks(_batches(engine.backbone, texts, buffer), 1 if keep_mask is None else _BATCHES_PER_CHUNK)
    for documents in _run_streams(lambda chunk: _run_chunk(engine, chunk, buffer, keep_mask), chunks, engine.streams):
        progress(documents)
    return buffer.features(exits_early=keep_mask is not None)


def count_tokens(backbone: Backbone, texts: Sequence[str]) -> Features:
    """What the tokenizer reports of every text, without activations: for a classifier that reads none."""
    n_tokens, n_unknown = np.zeros(len(texts), np.int32), np.zeros(len(texts), np.int32)
    cut = np.zeros(len(texts), np.bool_)
    for rows, tokens in _tokenize_ahead(backbone, texts):
        n_tokens[rows], n_unknown[rows], cut[rows] = list(map(len, tokens.ids)), tokens.unknown, tokens.cut
    return Features({}, n_tokens, n_unknown, int(cut.sum()), cut=cut)


@dataclass(frozen=True)
class _Batch:
    """Documents about to go through a segment."""

    rows: NDArray[np.int64]
    """(B,) the indices of their texts"""
    ids: Tensor
    """(B, T) token ids"""
    mask: Tensor
    """(B, T) whether a token is none of padding"""
    hidden: Tensor | None = None
    """(B, T, hidden size) the residual stream after the last segment"""
    values: NDArray[np.floating] | None = None
    """(B, p) all values that were read so far"""

    def select(self, indices: Sequence[int] | NDArray[np.int64], width: int) -> _Batch:
        """Some of the documents, with the first `width` token positions; padding lies on the right."""
        assert self.hidden is not None
        assert self.values is not None
        ids, mask, hidden = (tensor[indices, :width] for tensor in (self.ids, self.mask, self.hidden))
        return _Batch(self.rows[indices], ids, mask, hidden, self.values[indices])


def _batches(backbone: Backbone, texts: Sequence[str], buffer: _FeatureBuffer) -> Iterator[_Batch]:
    for rows, tokens in _tokenize_ahead(backbone, texts):
        buffer.store_counts(rows, tokens)
        for batch in token_batches(list(map(len, tokens.ids)), backbone.batch_tokens):
            yield _Batch(np.array(rows)[batch], *backbone.pad_batch([tokens.ids[index] for index in batch]))


def _chunks(batches: Iterator[_Batch], size: int) -> Iterator[list[_Batch]]:
    while chunk := list(islice(batches, size)):
        yield chunk


def _run_streams(work: Callable[[list[_Batch]], int], chunks: Iterable[list[_Batch]], streams: int) -> Iterator[int]:
    """The results of `work` for every chunk, in order; `streams` chunks run at once and as many wait ready."""
    if streams == 1:  # in this thread, for which torch's number of threads was set
        yield from map(work, chunks)
        return
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


def _tokenize_ahead(backbone: Backbone, texts: Sequence[str]) -> Iterator[tuple[list[int], Tokens]]:
    """Windows of texts, as their indices and tokens; each is tokenised while the one before is computed.

    Texts come in order of their number of characters. The first window is small, to be ready soon. Later ones are
    larger: sorted by tokens, more texts are more alike in length and need less padding.
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    windows: list[list[int]] = []
    start = 0
    while start < len(order):
        windows.append(order[start : start + min(start + _FIRST_WINDOW, _LARGEST_WINDOW)])
        start += len(windows[-1])

    def tokenize(window: list[int]) -> Tokens:
        return backbone.tokenize([texts[row] for row in window])

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(tokenize, window) for window in windows[:1]]
        for index, window in enumerate(windows):
            tokens = pending.pop().result()
            pending += [pool.submit(tokenize, following) for following in windows[index + 1 : index + 2]]
            yield window, tokens


def _run_chunk(engine: Engine, batches: list[_Batch], buffer: _FeatureBuffer, keep_mask: KeepMask | None) -> int:
    """Run batches through all segments, regrouping the documents that continue; return the number of documents."""
    documents = sum(len(batch.rows) for batch in batches)
    for index, segment in enumerate(engine.segments):
        batches = [_run_segment(engine, index, batch, buffer, keep_mask) for batch in batches]
        if keep_mask is not None and segment is not engine.segments[-1]:
            batches = list(_regroup(batches, engine.backbone.batch_tokens))
    return documents


def _run_segment(
    engine: Engine, index: int, batch: _Batch, buffer: _FeatureBuffer, keep_mask: KeepMask | None
) -> _Batch:
    """Run a batch through one segment and store its values; return the documents that continue to the next segment."""
    values, hidden = engine.run(index, batch.ids, batch.mask, batch.hidden)
    buffer.store_values(batch.rows, index, values)
    if keep_mask is None or hidden is None:
        return replace(batch, hidden=hidden)
    values = values if batch.values is None else np.concatenate([batch.values, values], axis=1)
    remaining = np.flatnonzero(keep_mask(index, batch.rows, values))
    return replace(batch, hidden=hidden, values=values).select(remaining, batch.ids.shape[1])


def _regroup(batches: Sequence[_Batch], budget: int) -> Iterator[_Batch]:
    """The documents of some batches in new batches by the budget of tokens."""
    parts = [(b.rows, b.ids, b.mask, b.hidden, b.values) for b in batches if len(b.rows)]
    if not parts:
        return
    rows, ids, mask, hidden, values = zip(*parts, strict=True)
    merged = _Batch(np.concatenate(rows), _stack(ids), _stack(mask), _stack(hidden), np.concatenate(values))
    lengths = merged.mask.sum(1).tolist()
    for batch in token_batches(lengths, budget):
        yield merged.select(batch, max(lengths[index] for index in batch))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, T, ...) joined along the first dimension, padded on the right to the longest T."""
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(each, (0, 0) * (each.ndim - 2) + (0, width - each.shape[1])) for each in tensors])


class _FeatureBuffer:
    """The arrays of `Features`, which are filled batch by batch in the order of the texts."""

    def __init__(
        self,
        engine: Engine,
        count: int,
        types: Mapping[FeatureColumn, type[np.floating]],
        store: StoreValues | None = None,
    ) -> None:
        self.segments, self.store = engine.segments, store
        self.columns: dict[FeatureColumn, NDArray[np.floating]] = {}
        self.slices: list[list[tuple[FeatureColumn, slice]]] = []
        """for each segment, where its values hold which column"""
        for segment in engine.segments:
            widths = segment.widths(engine.backbone)
            ends = np.cumsum(widths)
            self.slices.append(
                [(c, slice(end - width, end)) for c, width, end in zip(segment.neurons, widths, ends, strict=True)]
            )
            for column, width in zip(segment.neurons, widths, strict=True) if store is None else ():
                self.columns[column] = np.full((count, width), np.nan, types.get(column, np.float32))
        self.n_tokens, self.n_unknown = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.depth, self.cut = np.zeros(count, np.int32), np.zeros(count, np.bool_)

    def store_counts(self, rows: list[int], tokens: Tokens) -> None:
        """Store what the tokenizer reported of the texts `rows`."""
        self.n_tokens[rows], self.n_unknown[rows] = list(map(len, tokens.ids)), tokens.unknown
        self.cut[rows] = tokens.cut

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
            target, column_values = self.columns[column], values[:, part]
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
        depth = self.depth if exits_early else None
        return Features(self.columns, self.n_tokens, self.n_unknown, int(self.cut.sum()), depth, cut=self.cut)


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
