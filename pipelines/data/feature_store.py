"""The features of a corpus by row: of its shards only the bytes of the requested columns are fetched."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.feature_pool import Places
from pipelines.data.files.shards import Shard
from pipelines.data.spool import PartSize
from pipelines.storage.filesystem import store_errors
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import StagePlan, fingerprint
from spin.activations.feature_table import from_lists
from spin.arrays import Rows
from spin.backbone.int8_scales import Int8Scales
from spin.heads.selection import Selection
from spin.precision_trial import PrecisionTrial
from spin.sites import FeatureColumn

LABELS = "labels.parquet"
"""file with ids, labels, splits and hashes of all documents and the places of their features"""
TESTED = "tested.parquet"
"""ending of the file of a shard of the second pass with the features of documents that test"""

Positions = NDArray[np.int32]
"""of documents in a shard, ascending; a corpus may have many, and all of them are in memory"""
Columns = Mapping[FeatureColumn, NDArray[np.int64] | slice]
"""for each column the neurons that are wanted; a slice of all of them: the whole column"""


@dataclass(frozen=True)
class Reading:
    """How the backbone reads a text, as the first extraction in a store has found it out; later ones take it over."""

    types: Mapping[str, str]
    """numpy type of each feature column"""
    widths: Mapping[str, int]
    """neurons of each feature column"""
    scales: str | None = None
    """the scales by which the backbone is rounded to int8, as safetensors in base64; None in another precision"""
    precision_trial: PrecisionTrial | None = None
    """by which int8 was taken or not; None if it was not tried"""

    @property
    def int8_scales(self) -> Int8Scales | None:
        """The scales by which the backbone is rounded to int8; None in another precision."""
        return None if self.scales is None else Int8Scales.from_bytes(b64decode(self.scales))

    @property
    def column_types(self) -> dict[FeatureColumn, type[np.floating]]:
        """The numpy type of each feature column."""
        return {FeatureColumn.parse(name): np.dtype(kind).type for name, kind in self.types.items()}

    @property
    def column_widths(self) -> dict[FeatureColumn, int]:
        """The neurons of each feature column."""
        return {FeatureColumn.parse(name): width for name, width in self.widths.items()}


@dataclass(frozen=True)
class FeaturePlan:
    """The derived values of the plan of `extract`, which it determines before it runs the backbone."""

    shards: tuple[Shard, ...]
    """of the corpus, in the order of the feature store's rows"""
    documents: int
    """in all shards"""
    reading: Reading
    form: str
    """of the pool that holds the features"""
    known: tuple[str, ...]
    """shards of the pool that held features of the corpus before"""
    unread: tuple[Shard, ...]
    """shards of the texts that the pool lacked, each text once"""
    spool: str
    """folder of the parts of the corpus in the spool"""
    part_size: PartSize
    """of these parts"""

    @property
    def pooled(self) -> tuple[str, ...]:
        """The shards of the pool that hold the features of the corpus, once it is extracted."""
        return (*self.known, *(shard.name for shard in self.unread))


@dataclass(frozen=True)
class KeptShard:
    """The features of further documents of a shard, by a second pass."""

    features: str
    """key of the Parquet file with the kept neurons of documents that train or validate"""
    rows: Positions
    """these documents"""
    tested_features: str
    """key of the Parquet file with the kept neurons, and with whole columns, of documents that test"""
    tested: Positions
    """these documents"""


@dataclass(frozen=True)
class KeptFeatures:
    """The features of a second pass over the documents that the first one left out."""

    store: Store
    shards: tuple[KeptShard, ...]
    """as those of the first pass"""
    selection: Selection
    """the neurons that are kept"""
    whole: frozenset[FeatureColumn]
    """columns of which documents that test have all neurons"""

    def sources(self, index: int, columns: Columns) -> list[_Source]:
        """The files of a shard that hold these neurons of some of its documents."""
        shard, sources = self.shards[index], []
        kept: dict[FeatureColumn, NDArray[np.int64] | slice] = {}
        for column, wanted in columns.items():
            neurons = self.selection.neurons.get(column, np.empty(0, np.int64))
            if not isinstance(wanted, slice) and np.isin(wanted, neurons).all():
                kept[column] = np.searchsorted(neurons, wanted)
        if kept.keys() == columns.keys():
            sources.append(_Source(self.store, shard.features, shard.rows, kept))
        if kept.keys() | self.whole >= columns.keys():
            tested = {c: wanted if c in self.whole else kept[c] for c, wanted in columns.items()}
            sources.append(_Source(self.store, shard.tested_features, shard.tested, tested))
        return sources


@dataclass(frozen=True)
class FeatureShards:
    """The features of a corpus, document by document in plan order.

    Either all columns of all documents, or all columns of a sample and, after a second pass, the kept neurons of the
    others. Reading what was not extracted raises ValueError.
    """

    store: Store
    """of the extract stage"""
    sizes: tuple[int, ...]
    """documents of each shard"""
    files: tuple[str, ...]
    """keys of the Parquet files with a list of values per feature column, which the places of the documents number"""
    columns: dict[FeatureColumn, int]
    """the width of every feature column, the baseline columns of the last layer included"""
    kept: KeptFeatures | None = None
    """of the second pass"""
    labels: str = LABELS
    """key of the table of the documents: id, label, split, hashes and place; its rows are those of all shards"""

    @classmethod
    def of(cls, store: Store, plan: StagePlan[FeaturePlan], files: Sequence[str]) -> FeatureShards:
        """The features that the extract stage with this plan has stored, given the files of the pool's shards."""
        derived = plan.derived
        sizes = tuple(shard.documents for shard in derived.shards)
        return cls(store, sizes, tuple(files), derived.reading.column_widths, labels=labels_key(plan))

    @property
    def probed(self) -> list[FeatureColumn]:
        """The columns that probes are fitted on: all but those of the last layer's baseline."""
        return [column for column in self.columns if column.site.kind != "final"]

    @cached_property
    def borders(self) -> Rows:
        """The first row of every shard, and at last the number of documents."""
        return np.cumsum([0, *self.sizes])

    @cached_property
    def places(self) -> Places:
        """Where the features of each document are."""
        table = self.documents(["file", "row"])
        return Places(table["file"].to_numpy(), table["row"].to_numpy())

    @property
    def extracted(self) -> Rows | None:
        """The rows of the sample of which all columns are wanted; None if they are wanted of all rows.

        Other rows may have them, too, where the text has been read before; what has been read before decides nothing.
        """
        # guarded by test_a_sample_does_not_depend_on_what_was_read_before; broken by:
        #   rows = np.flatnonzero(self.places.files >= 0)
        rows = np.flatnonzero(self.documents(["sampled"])["sampled"].to_numpy())
        return None if len(rows) == len(self.places.files) else rows

    def read_rows(self, column: FeatureColumn, rows: Rows) -> NDArray[np.floating]:
        """One column of m rows in ascending order, (m, width); one shard is held in memory at a time."""
        return np.concatenate(list(self.column_blocks(column, rows)))

    def column_blocks(self, column: FeatureColumn, rows: Rows) -> Iterator[NDArray[np.floating]]:
        """The same, one shard after the other."""
        for index, own in self._rows_of_shards(rows):
            yield self._read(index, own, {column: slice(None)})

    def selection_blocks(
        self, selection: Selection, rows: Rows, words: NDArray[np.floating] | None = None
    ) -> Iterator[NDArray[np.floating]]:
        """The p features of a selection for rows in ascending order, in blocks (m, p): those of one shard each.

        `words` (m, K) are the words' logits of these rows, which no feature store holds, for a selection with words.
        """
        done = 0
        for index, own in self._rows_of_shards(rows):
            neurons = self._read(index, own, selection.neurons)
            own_words = [] if words is None or not selection.word_logits else [words[done : done + len(own)]]
            yield np.concatenate([*own_words, neurons], axis=1)
            done += len(own)

    def _read(self, index: int, own: Rows, columns: Columns) -> NDArray[np.floating]:
        """Some neurons of some documents of a shard, (m, p)."""
        if not columns:
            return np.empty((len(own), 0), np.float32)
        further = [] if self.kept is None else self.kept.sources(index, columns)
        return _gather([*self._sources(index, own, columns), *further], own)

    def _sources(self, index: int, own: Rows, columns: Columns) -> Iterator[_Source]:
        """The files of the first pass that hold some documents of a shard; if there are none, one for the types."""
        files, rows = (values[self.borders[index] + own] for values in (self.places.files, self.places.rows))
        for number in np.unique(files[files >= 0]).tolist() or [0]:
            held = files == number
            yield _Source(self.store, self.files[number], own[held].astype(np.int32), columns, rows[held])

    def documents(self, names: Sequence[str]) -> pa.Table:
        """Some of id, label, split, text_hash, group, file, row and sampled of all documents, as an Arrow table."""
        return _read_table(self.store, self.labels, names)

    def _rows_of_shards(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """The indices of the shards that hold some of the rows, with their positions in the shard.

        If there are no rows it is the first shard alone, so that a reader knows the type of no values.
        """
        firsts = np.searchsorted(rows, self.borders)
        shards = np.flatnonzero(np.diff(firsts)).tolist() if len(rows) else [0]
        for index in shards:
            yield index, rows[firsts[index] : firsts[index + 1]] - self.borders[index]


@dataclass(frozen=True)
class _Source:
    """A file with features of some documents of a shard."""

    store: Store
    key: str
    rows: Positions
    columns: Columns
    """which of the stored values are wanted of each column"""
    places: NDArray[np.int32] | None = None
    """rows of these documents in the file; None: they are all of it, in order"""

    def read(self, own: Rows) -> NDArray[np.floating]:
        """The wanted values (m, p) of m documents, which the file must hold."""
        table = _read_table(self.store, self.key, [str(column) for column in self.columns])
        held = np.searchsorted(self.rows, own)
        positions: Rows = held if self.places is None else self.places[held].astype(np.int64)
        return np.concatenate(
            [
                values[positions] if isinstance(wanted, slice) else values[np.ix_(positions, wanted)]
                for wanted, values in ((wanted, from_lists(table[str(c)])) for c, wanted in self.columns.items())
            ],
            axis=1,
        )


def _gather(sources: Sequence[_Source], own: Rows) -> NDArray[np.floating]:
    """The values (m, p) of m documents of a shard, each from the first source that holds it."""
    parts: list[tuple[NDArray[np.bool_], NDArray[np.floating]]] = []
    missing = np.full(len(own), True)
    for source in sources:
        held = missing & np.isin(own, source.rows)
        if held.any() or not (parts or len(own)):
            parts.append((held, source.read(own[held])))
            missing &= ~held
    if missing.any():
        names = ", ".join(map(str, sources[0].columns))[:100]
        raise ValueError(f"{sources[0].key}: {missing.sum()} of {len(own)} documents have no values of {names}")
    if len(parts) == 1:
        return parts[0][1]
    values = np.empty((len(own), parts[0][1].shape[1]), np.result_type(*(part for _, part in parts)))
    for held, part in parts:
        values[held] = part
    return values


def _read_table(store: Store, key: str, names: Sequence[str]) -> pa.Table:
    with store_errors(f"{store.uri}/{key}"), store.open(key) as file:
        return pq.read_table(file, columns=list(names), pre_buffer=True)


def add_places(documents: pa.Table, places: Places, sample: Rows | None = None) -> pa.Table:
    """The table of n documents with the places of their features, and whether they are in a sample; None: all are."""
    sampled = np.full(len(places.files), sample is None)
    sampled[[] if sample is None else sample] = True
    names = [*documents.column_names, "file", "row", "sampled"]
    return pa.table([*documents.columns, *map(pa.array, (places.files, places.rows, sampled))], names=names)


def labels_key(plan: StagePlan[FeaturePlan]) -> str:
    """The key of the table of the documents: another corpus, or another division of it into files, has another."""
    return f"{plan.folder}/{fingerprint(plan.derived.pooled)[:16]}/{LABELS}"
