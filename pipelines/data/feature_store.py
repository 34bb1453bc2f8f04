"""Read the feature shards of a store by column: only the bytes of the requested columns are fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.shards import Shard
from pipelines.storage.filesystem import store_errors
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardOutcome
from spin.activations.feature_table import from_lists
from spin.arrays import Rows
from spin.heads.selection import Selection
from spin.sites import FeatureColumn


@dataclass(frozen=True)
class FeaturePlan:
    """The derived values of the plan of `extract`, which it determines before it runs the backbone."""

    shards: tuple[Shard, ...]
    """of the corpus, in the order of the feature store's rows"""
    documents: int
    """in all shards"""
    types: Mapping[str, str]
    """numpy type of each feature column"""
    widths: Mapping[str, int]
    """neurons of each feature column"""
    depth: int
    """blocks of the backbone"""
    causal: bool
    """whether the backbone is a decoder"""


@dataclass(frozen=True)
class FeatureShards:
    """The feature shards that `extract` has published, in plan order."""

    store: Store
    """of the extract stage"""
    keys: tuple[str, ...]
    """of the Parquet files of the shards"""
    sizes: tuple[int, ...]
    """number of documents in each of these files"""
    columns: dict[FeatureColumn, int]
    """the width of every feature column, the baseline columns of the last layer included"""

    @classmethod
    def of(cls, store: Store, plan: FeaturePlan, outcomes: Iterable[ShardOutcome[Any]]) -> FeatureShards:
        """The shards that the extract stage with this plan has written to its store, given their outcomes."""
        columns = {FeatureColumn.parse(name): width for name, width in plan.widths.items()}
        files = [(key, outcome.counts.rows) for outcome in outcomes for key in outcome.files]
        return cls(store, tuple(key for key, _ in files), tuple(rows for _, rows in files), columns)

    @property
    def probed(self) -> list[FeatureColumn]:
        """The columns that probes are fitted on: all but those of the last layer's baseline."""
        return [column for column in self.columns if column.site.kind != "final"]

    def read_rows(self, column: FeatureColumn, rows: Rows) -> NDArray[np.floating]:
        """One column of m rows in ascending order, (m, width); one shard is held in memory at a time."""
        return np.concatenate(list(self.column_blocks(column, rows)))

    def column_blocks(self, column: FeatureColumn, rows: Rows) -> Iterator[NDArray[np.floating]]:
        """The same, one shard after the other."""
        for table, own in self._tables_with_rows([str(column)], rows):
            yield from_lists(table[str(column)])[own]

    def read_selection(
        self, selection: Selection, rows: Rows, words: NDArray[np.floating] | None = None
    ) -> NDArray[np.floating]:
        """The p features of a selection for m rows in ascending order, (m, p); see `selection_blocks`."""
        return np.concatenate(list(self.selection_blocks(selection, rows, words)))

    def selection_blocks(
        self, selection: Selection, rows: Rows, words: NDArray[np.floating] | None = None
    ) -> Iterator[NDArray[np.floating]]:
        """The features of a selection for rows in ascending order, in blocks of rows: those of one shard each.

        `words` (m, K) are the words' logits of these rows, which no feature store holds, for a selection with words.
        """
        done = 0
        for neurons in self._neuron_blocks(selection, rows):
            own_words = [] if words is None or not selection.words else [words[done : done + len(neurons)]]
            yield np.concatenate([*own_words, neurons], axis=1)
            done += len(neurons)

    def _neuron_blocks(self, selection: Selection, rows: Rows) -> Iterator[NDArray[np.floating]]:
        if not selection.neurons:
            yield from (np.empty((len(own), 0), np.float32) for _, own in self._rows_of_shards(rows))
            return
        for table, own in self._tables_with_rows([str(column) for column in selection.neurons], rows):
            yield np.concatenate([from_lists(table[str(c)])[np.ix_(own, n)] for c, n in selection.neurons.items()], 1)

    def table(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows as an Arrow table."""
        tables = [self._read(key, names) for key in self.keys]
        # in a shard without rows the labels have Arrow's null type, which cannot be concatenated with lists
        return pa.concat_tables([table for table in tables if len(table)] or tables[:1])

    def _tables_with_rows(self, names: Sequence[str], rows: Rows) -> Iterator[tuple[pa.Table, Rows]]:
        """The shards that hold some of the rows, each with the positions of these in it."""
        for key, own in self._rows_of_shards(rows):
            yield self._read(key, names), own

    def _rows_of_shards(self, rows: Rows) -> Iterator[tuple[str, Rows]]:
        """The files that hold some of the rows; the first file if there are no rows, which has a type all the same."""
        borders = np.cumsum([0, *self.sizes])
        firsts = np.searchsorted(rows, borders)
        for index, key in enumerate(self.keys):
            own = rows[firsts[index] : firsts[index + 1]] - borders[index]
            if len(own) or (not len(rows) and index == 0):
                yield key, own

    def _read(self, key: str, names: Sequence[str]) -> pa.Table:
        with store_errors(f"{self.store.uri}/{key}"), self.store.open(key) as file:
            return pq.read_table(file, columns=list(names), pre_buffer=True)
