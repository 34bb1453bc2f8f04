"""Read the pooled activations of texts, in batches by a budget of tokens; results are in the order of the texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from spin.activations.encoder import BlockSegment
from spin.activations.engine import Engine, open_engine
from spin.activations.merge_windows import WindowShares
from spin.activations.segment_output import SegmentOutput
from spin.activations.word_buffer import WeighTokens, WordBuffer, words_of
from spin.arrays import Floats
from spin.attribution.reasons import Reasons
from spin.attribution.token_sums import TokenReadings
from spin.attribution.word_sums import WordSums
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
_FIRST_PORTION, _LARGEST_PORTION = 1024, 4096
"""texts that are tokenised at once while those before them are computed: in the first portion, and at most"""
_CHARACTERS_PER_TOKEN = 4
"""by which the windows of a text are estimated: a text of many counts as many in a portion"""

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
    """(n,) number of tokens that were read, special tokens included; those of overlapping windows as often as read"""
    n_unknown: NDArray[np.int32]
    """(n,) number of these that the tokenizer does not know"""
    truncated: int
    """number of texts that were not read to their end"""
    depth: NDArray[np.int32] | None = None
    """(n,) number of blocks that each text ran through, -1 if it never got to the backbone; None if it is the same for
    all"""
    words: Floats | None = None
    """(n, K) logits of a word regression, for a classifier that reads words or lets them decide"""
    head_reads_words: bool = True
    """whether these logits, if there are any, are features of the head, and not only of the exit by words"""
    windows: NDArray[np.int32] | None = None
    """(n,) number of windows that were read of each text; None where long texts are cut"""
    unread_tokens: NDArray[np.int32] | None = None
    """(n,) number of tokens beyond the last window; None where long texts are cut"""
    cut: NDArray[np.bool_] | None = None
    """(n,) whether each text was not read to its end; None where only their number is known"""
    word_sums: WordSums | None = None
    """what each word contributes by its tokens to the logit of the text's class, until the reasons are known"""
    reasons: Reasons | None = None
    """the words and neurons that contribute most to that logit, where they are wanted"""

    @property
    def values(self) -> NDArray[np.floating]:
        """All features of the head side by side (n, p): the words' logits, if it reads them, and the columns."""
        words = [] if self.words is None or not self.head_reads_words else [self.words]
        return np.concatenate([*words, *self.columns.values()], axis=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Features]) -> Features:
        """The features of the texts of several parts, which have the same columns."""

        def join(name: str) -> Any:
            arrays = [getattr(part, name) for part in parts]
            if all(array is None for array in arrays):
                return None
            if any(array is None for array in arrays):
                raise ValueError(f"found parts with and without {name}; expected parts of one classifier")
            return np.concatenate(arrays)

        reasons = [part.reasons for part in parts if part.reasons is not None]
        return cls(
            columns={column: np.concatenate([part.columns[column] for part in parts]) for column in parts[0].columns},
            n_tokens=np.concatenate([part.n_tokens for part in parts]),
            n_unknown=np.concatenate([part.n_unknown for part in parts]),
            truncated=sum(part.truncated for part in parts),
            depth=join("depth"),
            words=join("words"),
            head_reads_words=parts[0].head_reads_words,
            windows=join("windows"),
            unread_tokens=join("unread_tokens"),
            cut=join("cut"),
            reasons=Reasons.concatenate(reasons) if reasons else None,
        )

    def select(self, rows: NDArray[np.int64]) -> Features:
        """The features of some of the texts, given by index; which of them were cut must be known."""
        assert self.cut is not None

        def take(values: Any) -> Any:
            return None if values is None else values[rows]

        return replace(
            self,
            columns={column: values[rows] for column, values in self.columns.items()},
            n_tokens=self.n_tokens[rows],
            n_unknown=self.n_unknown[rows],
            truncated=int(self.cut[rows].sum()),
            depth=take(self.depth),
            words=take(self.words),
            windows=take(self.windows),
            unread_tokens=take(self.unread_tokens),
            cut=take(self.cut),
        )

    def spread(self, rows: NDArray[np.int64], depth: int, count: int) -> Features:
        """The features of `count` texts, of which the texts of these features are those at `rows`.

        Without words. `depth` is the number of blocks that these ran through, unless they have depths of their own.
        The others have no tokens and no windows, NaN in every column, and depth -1.
        """

        def place(values: NDArray[Any] | int, empty: NDArray[Any]) -> NDArray[Any]:
            empty[rows] = values
            return empty

        def counts(values: NDArray[np.int32]) -> NDArray[np.int32]:
            return place(values, np.zeros(count, np.int32))

        return Features(
            {c: place(v, np.full((count, v.shape[1]), np.nan, v.dtype)) for c, v in self.columns.items()},
            counts(self.n_tokens),
            counts(self.n_unknown),
            self.truncated,
            place(depth if self.depth is None else self.depth, np.full(count, -1, np.int32)),
            windows=None if self.windows is None else counts(self.windows),
            unread_tokens=None if self.unread_tokens is None else counts(self.unread_tokens),
            cut=None if self.cut is None else place(self.cut, np.zeros(count, np.bool_)),
            word_sums=None if self.word_sums is None else self.word_sums.spread(rows, count),
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
    weigh_tokens: WeighTokens | None = None,
    progress: Progress = lambda documents: None,
) -> Features:
    """Read the columns of the engine's segments from every text.

    `types` gives the type of some columns, float32 otherwise. `keep_mask`, called after every segment but the last,
    decides which documents go on; the others exit. `store`, called before it and after the last segment too, takes the
    values; the result then has no columns. `weigh_tokens`, for an engine whose segments have directions, is called for
    the documents that stop and says how their tokens count; then the features have `word_sums`. `progress` is called
    after every chunk of batches. The batches depend on these texts alone and the result, up to rounding, does not
    depend on their order.
    Raises UserError, naming the site, if a value does not fit a float16 column; NotFiniteError if one is not finite.
    """
    buffer = _FeatureBuffer(engine, len(texts), types or {}, store)
    if weigh_tokens is not None:
        buffer.words = WordBuffer(engine, len(texts), weigh_tokens)
    chunks = _chunks(engine.backbone, texts, buffer, 1 if keep_mask is None else _BATCHES_PER_CHUNK)
    for documents in _run_streams(lambda chunk: _run_chunk(engine, chunk, buffer, keep_mask), chunks, engine.streams):
        progress(documents)
    return buffer.features(exits_early=keep_mask is not None)


def count_tokens(backbone: Backbone, texts: Sequence[str]) -> Features:
    """What the tokenizer reports of every text, without activations: for a classifier that reads none."""
    counts = _TokenCounts(backbone, len(texts))
    for rows, tokens in _tokenize_ahead(backbone, texts):
        counts.store(rows, tokens)
    return counts.features({})


def find_words(backbone: Backbone, texts: Sequence[str], classes: NDArray[np.int64]) -> WordSums:
    """The words that the tokenizer finds in every text, none of which contributes to the texts' `classes` (n,)."""
    parts: list[tuple[list[int], WordSums]] = []
    for rows, tokens in _tokenize_ahead(backbone, texts, places=True):
        words = words_of(tokens)
        sums = WordSums.of_tokens(classes[rows], words, np.zeros(len(words.word_of)))
        parts.append((rows, sums))
    merged = WordSums.concatenate([sums for _, sums in parts]) if parts else WordSums.empty(0)
    return merged.spread(np.array([row for rows, _ in parts for row in rows], np.int64), len(texts))


@dataclass(frozen=True)
class _Batch:
    """Documents about to go through a segment."""

    rows: NDArray[np.int64]
    """(B,) the indices of their texts, or of their windows in `_LongTexts`"""
    ids: Tensor
    """(B, T) token ids"""
    mask: Tensor
    """(B, T) whether a token is none of padding; where the backbone reads windows, the mask of `Backbone.pad_tokens`"""
    hidden: Tensor | None = None
    """(B, T, hidden size) the residual stream after the last segment"""
    values: NDArray[np.floating] | None = None
    """(B, p) all values that were read so far"""
    tokens: TokenReadings | None = None
    """what was read of their tokens so far, if that is wanted"""

    def select(self, indices: Sequence[int] | NDArray[np.int64], width: int) -> _Batch:
        """Some of the documents, with the first `width` token positions; padding lies on the right."""
        assert self.hidden is not None
        assert self.values is not None
        ids, mask, hidden = (tensor[indices, :width] for tensor in (self.ids, self.mask, self.hidden))
        tokens = None if self.tokens is None else self.tokens.select(indices, width)
        return _Batch(self.rows[indices], ids, mask, hidden, self.values[indices], tokens)

    def advance(self, output: SegmentOutput) -> _Batch:
        """The documents after a segment, by its output; the values are to be added."""
        tokens = output.tokens
        if tokens is not None and self.tokens is not None:
            tokens = self.tokens.extend(tokens)
        return replace(self, hidden=output.hidden, tokens=tokens)


@dataclass(frozen=True)
class _LongTexts:
    """Texts of several windows, which leave a chunk together: an exit decides by the values of the whole text."""

    rows: NDArray[np.int64]
    """(n,) the indices of the texts"""
    shares: WindowShares
    """of their windows, whose owners are positions in `rows`"""


@dataclass(frozen=True)
class _Chunk:
    """Batches that go through all segments together."""

    batches: list[_Batch]
    texts: _LongTexts | None = None
    """the texts whose windows the batches hold; None: each row is a whole text"""


def _chunks(backbone: Backbone, texts: Sequence[str], buffer: _FeatureBuffer, size: int) -> Iterator[_Chunk]:
    """Chunks of `size` batches of texts of one window each, and chunks of texts of several."""
    batches: list[_Batch] = []
    for rows, tokens in _tokenize_ahead(backbone, texts, places=buffer.words is not None):
        buffer.counts.store(rows, tokens)
        if buffer.words is not None:
            buffer.words.store_places(rows, tokens)
        whole = [(text, span.start) for text, span in enumerate(tokens.spans) if len(span) == 1]
        for batch in token_batches([len(tokens.ids[first]) for _, first in whole], backbone.batch_tokens):
            own, windows = zip(*(whole[index] for index in batch), strict=True)
            batches.append(_Batch(np.array(rows)[list(own)], *backbone.pad_tokens(tokens, windows)))
            if len(batches) == size:
                yield _Chunk(batches)
                batches = []
        for group in _long_text_groups(tokens, _BATCHES_PER_CHUNK * backbone.batch_tokens):
            yield _long_text_chunk(backbone, np.array(rows), tokens, group)
    if batches:
        yield _Chunk(batches)


def _long_text_groups(tokens: Tokens, budget: int) -> Iterator[list[int]]:
    """The texts of several windows, in groups of at most `budget` tokens but of at least one text."""
    group: list[int] = []
    total = 0
    for text, (span, length) in enumerate(zip(tokens.spans, tokens.lengths, strict=True)):
        if len(span) == 1:
            continue
        if group and total + length > budget:
            yield group
            group, total = [], 0
        group.append(text)
        total += length
    if group:
        yield group


def _long_text_chunk(backbone: Backbone, rows: NDArray[np.int64], tokens: Tokens, texts: Sequence[int]) -> _Chunk:
    """A chunk of some texts of several windows."""
    all_spans = tokens.spans
    spans = [all_spans[text] for text in texts]
    windows = [window for span in spans for window in span]
    own, content = np.zeros(len(windows), np.int64), np.zeros(len(windows), np.int64)
    batches = []
    for batch in token_batches([len(tokens.ids[window]) for window in windows], backbone.batch_tokens):
        ids, mask = backbone.pad_tokens(tokens, [windows[index] for index in batch])
        own[batch], content[batch] = (counts.numpy() for counts in backbone.count_own(ids, mask))
        batches.append(_Batch(np.array(batch), ids, mask))
    owners = np.repeat(np.arange(len(spans)), list(map(len, spans)))
    return _Chunk(batches, _LongTexts(rows[list(texts)], WindowShares.from_counts(owners, own, content)))


def _run_streams(work: Callable[[_Chunk], int], chunks: Iterable[_Chunk], streams: int) -> Iterator[int]:
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


def _tokenize_ahead(
    backbone: Backbone, texts: Sequence[str], *, places: bool = False
) -> Iterator[tuple[list[int], Tokens]]:
    """Portions of the texts, as their indices and tokens; each is tokenised while the one before is computed.

    Texts come in order of their number of characters. The first portion is small, to be ready soon. Later ones are
    larger: sorted by tokens, more texts are more alike in length and need less padding.
    """
    portions = _portions(backbone, [len(text) for text in texts])

    def tokenize(portion: list[int]) -> Tokens:
        return backbone.tokenize([texts[row] for row in portion], **({"places": True} if places else {}))

    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(tokenize, portion) for portion in portions[:1]]
        for index, portion in enumerate(portions):
            tokens = pending.pop().result()
            pending += [pool.submit(tokenize, following) for following in portions[index + 1 : index + 2]]
            yield portion, tokens


def _portions(backbone: Backbone, lengths: Sequence[int]) -> list[list[int]]:
    """The indices of texts, given by their numbers of characters, in portions by size and of growing size.

    A text that is read in windows is as large as the texts of one window that it is worth.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    per_window = _CHARACTERS_PER_TOKEN * backbone.max_tokens
    ends = np.cumsum([1 + lengths[row] // per_window if backbone.reads_windows else 1 for row in order])
    portions: list[list[int]] = []
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        limit = before + min(start + _FIRST_PORTION, _LARGEST_PORTION)
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        portions.append(order[start:stop])
        start = stop
    return portions


def _run_chunk(engine: Engine, chunk: _Chunk, buffer: _FeatureBuffer, keep_mask: KeepMask | None) -> int:
    """Run batches through all segments, regrouping the documents that continue; return the number of documents."""
    if chunk.texts is not None:
        return _run_long_texts(engine, chunk.texts, chunk.batches, buffer, keep_mask)
    batches = chunk.batches
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
    output = engine.run(index, batch.ids, batch.mask, batch.hidden)
    buffer.store_values(batch.rows, index, output.values)
    batch = batch.advance(output)
    if batch.hidden is None and buffer.words is None:
        return batch
    values = output.values if batch.values is None else np.concatenate([batch.values, output.values], axis=1)
    batch, is_last = replace(batch, values=values), index == len(engine.segments) - 1
    if is_last or keep_mask is None:
        if is_last:
            _store_words(buffer, index, batch, np.arange(len(batch.rows)))
        return batch
    keep = keep_mask(index, batch.rows, values)
    _store_words(buffer, index, batch, np.flatnonzero(~keep))
    return batch.select(np.flatnonzero(keep), batch.ids.shape[1])


def _store_words(buffer: _FeatureBuffer, index: int, batch: _Batch, stopped: NDArray[np.int64]) -> None:
    """Store what the words contribute, where that is wanted, of the documents of a batch that stop after a segment."""
    if buffer.words is None or not len(stopped):
        return
    assert batch.tokens is not None
    assert batch.values is not None
    width = int((batch.mask[stopped] > 0).sum(1).max())
    padded = batch.ids[stopped, :width], batch.mask[stopped, :width]
    readings = batch.tokens.select(stopped, width)
    buffer.words.store(index, batch.rows[stopped], np.arange(len(stopped)), padded, readings, batch.values[stopped])


def _run_long_texts(
    engine: Engine, texts: _LongTexts, batches: list[_Batch], buffer: _FeatureBuffer, keep_mask: KeepMask | None
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
            _store_words_of_windows(buffer, index, batches, texts, shares.texts, read)
        elif keep_mask is not None:
            remaining = keep_mask(index, texts.rows[shares.texts], read)
            _store_words_of_windows(buffer, index, batches, texts, shares.texts[~remaining], read[~remaining])
            read = read[remaining]
            batches = [_select_texts(batch, texts.shares.owners, shares.texts[remaining]) for batch in batches]
            batches = list(_regroup(batches, engine.backbone.batch_tokens))
        if not batches:
            break
    return len(texts.rows)


def _store_words_of_windows(
    buffer: _FeatureBuffer,
    index: int,
    batches: Sequence[_Batch],
    texts: _LongTexts,
    stopped: NDArray[np.int64],
    values: Floats,
) -> None:
    """Store what the words contribute, where that is wanted, of the texts `stopped` (n,), with values (n, p)."""
    readings = [batch.tokens for batch in batches if batch.tokens is not None]
    if buffer.words is None or not len(stopped):
        return
    windows = np.concatenate([batch.rows for batch in batches])
    chosen = np.flatnonzero(np.isin(texts.shares.owners[windows], stopped))
    chosen = chosen[np.argsort(windows[chosen])]
    ids, mask = _stack([batch.ids for batch in batches])[chosen], _stack([batch.mask for batch in batches])[chosen]
    owners = np.searchsorted(stopped, texts.shares.owners[windows[chosen]])
    read = TokenReadings.stack(readings).select(chosen, ids.shape[1])
    buffer.words.store(index, texts.rows[stopped], owners, (ids, mask), read, values)


def _select_texts(batch: _Batch, owners: NDArray[np.int64], texts: NDArray[np.int64]) -> _Batch:
    """The windows of a batch that belong to some texts, given the text of every window."""
    windows = np.flatnonzero(np.isin(owners[batch.rows], texts))
    no_values = np.empty((len(batch.rows), 0), np.float32)
    return replace(batch, values=no_values).select(windows, batch.ids.shape[1])


def _regroup(batches: Sequence[_Batch], budget: int) -> Iterator[_Batch]:
    """The documents of some batches in new batches by the budget of tokens."""
    parts = [(b.rows, b.ids, b.mask, b.hidden, b.values) for b in batches if len(b.rows)]
    if not parts:
        return
    rows, ids, mask, hidden, values = zip(*parts, strict=True)
    readings = [batch.tokens for batch in batches if len(batch.rows) and batch.tokens is not None]
    merged = _Batch(
        np.concatenate(rows),
        _stack(ids),
        _stack(mask),
        _stack(hidden),
        np.concatenate(values),
        TokenReadings.stack(readings) if readings else None,
    )
    lengths = (merged.mask > 0).sum(1).tolist()
    for batch in token_batches(lengths, budget):
        yield merged.select(batch, max(lengths[index] for index in batch))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (B, T, ...) joined along the first dimension, padded on the right to the longest T."""
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([pad(each, (0, 0) * (each.ndim - 2) + (0, width - each.shape[1])) for each in tensors])


class _TokenCounts:
    """What the tokenizer reports of the texts: the counts of `Features`, which are filled portion by portion."""

    def __init__(self, backbone: Backbone, count: int) -> None:
        self.n_tokens, self.n_unknown = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self.cut = np.zeros(count, np.bool_)
        self.windows = np.zeros(count, np.int32) if backbone.reads_windows else None
        self.unread = np.zeros(count, np.int32) if backbone.reads_windows else None

    def store(self, rows: list[int], tokens: Tokens) -> None:
        """Store the counts of the texts `rows`."""
        self.n_tokens[rows], self.n_unknown[rows], self.cut[rows] = tokens.lengths, tokens.unknown, tokens.cut
        if tokens.windows is not None and self.windows is not None and self.unread is not None:
            self.windows[rows], self.unread[rows] = tokens.windows.counts, tokens.windows.unread

    def features(
        self, columns: dict[FeatureColumn, NDArray[np.floating]], depth: NDArray[np.int32] | None = None
    ) -> Features:
        """The features with these counts."""
        return Features(
            columns,
            self.n_tokens,
            self.n_unknown,
            int(self.cut.sum()),
            depth,
            windows=self.windows,
            unread_tokens=self.unread,
            cut=self.cut,
        )


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
        self.words: WordBuffer | None = None
        self.counts, self.depth = _TokenCounts(engine.backbone, count), np.zeros(count, np.int32)

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
        features = self.counts.features(self.columns, self.depth if exits_early else None)
        return features if self.words is None else replace(features, word_sums=self.words.sums())


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
