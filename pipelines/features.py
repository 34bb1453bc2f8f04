"""The feature shards of a store, read by column: each reader fetches only the bytes of what it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.store import Store, store_errors
from spin.features import from_lists
from spin.select import Selection
from spin.sites import Column


@dataclass(frozen=True)
class FeatureShards:
    """What `extract` published: the shards of a finished store, in plan order."""

    store: Store
    names: tuple[str, ...]
    columns: dict[Column, int]
    """every site.pooling and its width, the last layer's baseline columns among them"""

    @classmethod
    def of(cls, store: Store, detail: dict[str, Any]) -> FeatureShards:
        columns = {Column.parse(name): width for name, width in detail["widths"].items()}
        return cls(store, tuple(f"{index:06d}" for index in range(len(detail["shards"]))), columns)

    @property
    def probed(self) -> list[Column]:
        """The columns that a probe is fitted on."""
        return [column for column in self.columns if column.site.kind != "final"]

    def read(self, column: Column) -> NDArray[np.floating]:
        """All rows of one column, (n, width)."""
        return from_lists(self.table([str(column)])[str(column)])

    def read_selection(self, selection: Selection) -> NDArray[np.floating]:
        """The selected neurons of all rows, (n, p), in the selection's order."""
        parts = [self.read(column)[:, neurons] for column, neurons in selection.neurons.items()]
        return np.concatenate(parts, axis=1)

    def table(self, names: Sequence[str]) -> pa.Table:
        """Columns of all rows as Arrow."""
        tables = []
        for name in self.names:
            with (
                store_errors(f"{self.store.uri}/parts/{name}.parquet"),
                self.store.open(f"parts/{name}.parquet") as file,
            ):
                tables.append(pq.read_table(file, columns=list(names), pre_buffer=True))
        return pa.concat_tables(tables)
