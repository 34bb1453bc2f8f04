"""Read the feature shards of a store by column: only the bytes of the requested columns are fetched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    columns: dict[FeatureColumn, int]
    """the width of every feature column, the baseline columns of the last layer included"""

    @classmethod
    def of(cls, store: Store, plan: FeaturePlan, outcomes: Iterable[ShardOutcome[Any]]) -> FeatureShards:
        """The shards that the extract stage with this plan has written to its store, given their outcomes."""
        columns = {FeatureColumn.parse(name): width for name, width in plan.widths.items()}
        return cls(store, tuple(key for outcome in outcomes for key in outcome.files), columns)

    @property
    def probed(self) -> list[FeatureColumn]:
        """The columns that probes are fitted on: all but those of the last layer's baseline."""
        return [column for column in self.columns if column.site.kind != "final"]

    def read(self, column: FeatureColumn) -> NDArray[np.floating]:
        """All rows of one column, (n, width)."""
        return from_lists(self.table([str(column)])[str(column)])

    def read_rows(self, column: FeatureColumn, rows: Rows) -> NDArray[np.floating]:
        """One column of m rows in ascending order, (m, width); one shard is held in memory at a time."""
        parts = [from_lists(table[str(column)])[own] for table, own in self._tables_with_rows([str(column)], rows)]
        return np.concatenate(parts)

    def read_selection(
        self, selection: Selection, rows: Rows, words: NDArray[np.floating] | None = None
    ) -> NDArray[np.floating]:
        """The p features of a selection for m rows in ascending order, (m, p); one shard is held in memory at a time.

        `words` (m, K) are the words' logits of these rows, which no feature store holds, for a selection with words.
        """
        if selection.words:
            assert words is not None
            return np.concatenate([words, self.read_selection(replace(selection, words=0), rows)], axis=1)
        if not selection.neurons:
            return np.empty((len(rows), 0), np.float32)
        parts = []
        for table, own in self._tables_with_rows([str(column) for column in selection.neurons], rows):
            columns = [from_lists(table[str(c)])[np.ix_(own, n)] for c, n in selection.neurons.items()]
            parts.append(np.concatenate(columns, 1))
        return np.concatenate(parts)

    def table(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows as an Arrow table."""
        tables = list(self._tables(names))
        # in a shard without rows the labels have Arrow's null type, which cannot be concatenated with lists
        return pa.concat_tables([table for table in tables if len(table)] or tables[:1])

    def _tables_with_rows(self, names: Sequence[str], rows: Rows) -> Iterator[tuple[pa.Table, Rows]]:
        """Every shard, with the positions in it of those of its rows that are among the given ones."""
        first = 0
        for table in self._tables(names):
            yield table, rows[(rows >= first) & (rows < first + len(table))] - first
            first += len(table)

    def _tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        for key in self.keys:
            with store_errors(f"{self.store.uri}/{key}"), self.store.open(key) as file:
                table = pq.read_table(file, columns=list(names), pre_buffer=True)
            yield table
