"""The corpus of a training in its spool, and the texts of it by row."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.input_files import InputFile
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.labelled_corpus import read_labelled
from pipelines.data.spool import SPOOL, LostPartError, PartSize, SpoolPart, SpoolWriter, read_part
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import delete_objects
from spin.arrays import Rows
from spin.settings import DataSettings

_log = logging.getLogger(__name__)
_SCHEMA = pa.schema({"text": pa.large_string()})


@dataclass(frozen=True)
class CorpusSpool:
    """The place and size of the parts of a corpus; together with the files, enough to write the parts again."""

    store: Store
    """of the training"""
    folder: str
    """of the parts, in the spool of the store"""
    size: PartSize

    @property
    def parts(self) -> Store:
        """The store of the parts."""
        return self.store / SPOOL / self.folder

    def save(self, part: SpoolPart) -> str:
        """Write a part and return its key: a plan names parts by their keys, so that the store may be moved."""
        key = f"{part.number:06d}.parquet"
        self.parts.write(key, part.parquet)
        return key

    def locate(self, shards: Sequence[Shard]) -> tuple[Shard, ...]:
        """Shards whose parts are named by their keys with the URIs of these."""
        return tuple(
            replace(shard, pieces=tuple(replace(part, uri=f"{self.parts.uri}/{part.uri}") for part in shard.pieces))
            for shard in shards
        )

    def delete(self, lease: Lease, *, others: bool = False) -> None:
        """Delete the parts of this corpus, or those of all others."""
        keys = self.store.list(SPOOL)
        own = f"{SPOOL}/{self.folder}/"
        delete_objects(self.store, [key for key in keys if key.startswith(own) != others], lease)


@dataclass(frozen=True)
class Corpus:
    """The texts of a corpus that was taken in. A stage opens one and passes it on.

    Its spool is read once, at the first use, or its files where the training that needed the spool has ended. From then
    on the texts come from a temporary file, so that those of one part are in memory at a time.
    """

    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    """of the spool, in plan order"""
    spool: CorpusSpool
    data: DataSettings

    @property
    def parts(self) -> list[Piece]:
        """The parts of the spool, in order."""
        return [piece for shard in self.shards for piece in shard.pieces]

    def restore(self) -> None:
        """Write the spool again if it is not there, for workers that read it."""
        uris = {f"{self.spool.parts.uri}/{key}" for key in self.spool.parts.list()}
        if any(part.uri not in uris for part in self.parts):
            self._take_in(self.spool.save)

    def read_texts(self, rows: Rows) -> list[str]:
        """The texts of some rows in ascending order."""
        return [text for texts in self.text_blocks(rows) for text in texts]

    def text_blocks(self, rows: Rows) -> Iterator[list[str]]:
        """The same, those of one part after the other; a part without any of the rows has no block."""
        if not len(rows):
            return
        local, borders = self._local
        firsts = np.searchsorted(rows, borders)
        for part in np.flatnonzero(np.diff(firsts)).tolist():
            own = rows[firsts[part] : firsts[part + 1]] - borders[part]
            yield local.get_batch(part).column(0).take(pa.array(own)).to_pylist()

    @cached_property
    def _local(self) -> tuple[pa.ipc.RecordBatchFileReader, Rows]:
        """All texts in a temporary file without a name, one batch per part, and the first row of every part."""
        descriptor, path = tempfile.mkstemp(prefix="spin-texts-", suffix=".arrow")
        os.close(descriptor)
        try:
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                self._copy_texts(writer)
            return pa.ipc.open_file(pa.OSFile(path)), np.cumsum([0, *(part.documents for part in self.parts)])
        finally:
            os.unlink(path)  # the open file stays readable, and ends with the process

    def _copy_texts(self, writer: pa.ipc.RecordBatchFileWriter) -> None:
        """Write the texts of all parts, from the files as soon as one of them is gone."""
        written, opener = 0, InputOpener()

        def write(table: pa.Table) -> None:
            nonlocal written
            texts = table["text"].cast(pa.large_string()).combine_chunks()
            writer.write_batch(pa.record_batch([texts], schema=_SCHEMA))
            written += 1

        def write_again(part: SpoolPart) -> str:
            if part.number == written:
                write(pq.read_table(io.BytesIO(part.parquet), columns=["text"]))
            return ""

        try:
            for part in self.parts:
                write(read_part(part, opener, ["text"]))
        except LostPartError:
            _log.debug("the spool is gone, the files are read again", exc_info=True)
            self._take_in(write_again)

    def _take_in(self, save: Callable[[SpoolPart], str]) -> None:
        """Read and cut the files again, which gives the same parts."""
        read_labelled(self.files, self.data, spool=SpoolWriter(self.spool.size, save))
