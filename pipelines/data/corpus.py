"""The texts of a labelled corpus, by row."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipelines.data.files.readers import TEXTS, read_shard
from pipelines.data.files.shards import Shard
from spin.arrays import Rows
from spin.settings import DataSettings

_SCHEMA = pa.schema({"text": pa.large_string()})


@dataclass(frozen=True)
class Corpus:
    """The texts of a corpus that `read_labelled` has checked. A stage opens one and passes it on.

    Its files are read once, at the first use, from Parquet without the other columns. From then on the texts come from
    a temporary file, so that those of one shard are in memory at a time.
    """

    shards: tuple[Shard, ...]
    """of the corpus, in plan order"""
    data: DataSettings

    def read_texts(self, rows: Rows) -> list[str]:
        """The texts of some rows in ascending order."""
        return [text for texts in self.text_blocks(rows) for text in texts]

    def text_blocks(self, rows: Rows) -> Iterator[list[str]]:
        """The same, those of one shard after the other; a shard without any of the rows has no block."""
        if not len(rows):
            return
        local, borders = self._local
        firsts = np.searchsorted(rows, borders)
        for shard in np.flatnonzero(np.diff(firsts)).tolist():
            own = rows[firsts[shard] : firsts[shard + 1]] - borders[shard]
            yield local.get_batch(shard).column(0).take(pa.array(own)).to_pylist()

    @cached_property
    def _local(self) -> tuple[pa.ipc.RecordBatchFileReader, Rows]:
        """All texts in a temporary file without a name, one batch per shard, and the first row of every shard."""
        descriptor, path = tempfile.mkstemp(prefix="spin-texts-", suffix=".arrow")
        os.close(descriptor)
        sizes = [0]
        try:
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                for shard in self.shards:
                    texts = read_shard(shard, self.data, columns=TEXTS).texts
                    sizes.append(len(texts))
                    writer.write_batch(pa.record_batch([pa.array(texts, pa.large_string())], schema=_SCHEMA))
            return pa.ipc.open_file(pa.OSFile(path)), np.cumsum(sizes)
        finally:
            os.unlink(path)  # the open file stays readable, and ends with the process
