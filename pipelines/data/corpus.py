"""The corpus of a training in its spool, and the texts of it by row."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import IO

import numpy as np
import pyarrow as pa

from pipelines.data.files.formats import MAX_BYTES
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.intake import read_files
from pipelines.data.labelled_corpus import read_labelled
from pipelines.data.spool import SPOOL, LostPartError, PartSize, ReadyPiece, SpoolPart, SpoolWriter, read_part
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.lease import LEASE_CHECK_SECONDS, Lease
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

    def open_writer(self, lease: Lease) -> SpoolWriter:
        """A writer of the parts. It names them by their keys, as plans do, so that the store may be moved.

        It raises HeldError soon after another run has taken the lease.
        """

        def save(part: SpoolPart) -> str:
            lease.check(max_age=LEASE_CHECK_SECONDS)
            key = f"{part.number:06d}.parquet"
            self.parts.write(key, part.parquet)
            return key

        return SpoolWriter(self.size, save)

    def locate(self, shards: Sequence[Shard]) -> tuple[Shard, ...]:
        """Shards whose parts are named by their keys with the URIs of these."""
        return tuple(
            replace(shard, pieces=tuple(replace(part, uri=f"{self.parts.uri}/{part.uri}") for part in shard.pieces))
            for shard in shards
        )

    def delete(self, lease: Lease, *, others: bool = False) -> None:
        """Delete the parts of this corpus, or those of all others."""
        keys = [item.key for item in self.store.list_all(SPOOL)]
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
        """The parts of the spool, in order and whole: a shard may hold some rows of one."""
        pieces = [piece for shard in self.shards for piece in shard.pieces]
        return list({piece.uri: replace(piece, start=0, documents=piece.stop) for piece in pieces}.values())

    def restore(self, lease: Lease) -> None:
        """Write the spool again if it is not there, for workers that read it. Raises HeldError without the lease."""
        uris = {f"{self.spool.parts.uri}/{key}" for key in self.spool.parts.list()}
        if any(part.uri not in uris for part in self.parts):
            read_labelled(self.files, self.data, spool=self.spool.open_writer(lease))

    def read_texts(self, rows: Rows) -> list[str]:
        """The texts of some rows in ascending order."""
        if not len(rows):
            return []
        local, borders = self._local
        firsts = np.searchsorted(rows, borders)
        texts: list[str] = []
        for part in np.flatnonzero(np.diff(firsts)).tolist():
            own = rows[firsts[part] : firsts[part + 1]] - borders[part]
            texts += local.get_batch(part).column(0).take(pa.array(own)).to_pylist()
        return texts

    def text_blocks(self, rows: Rows) -> Iterator[list[str]]:
        """The same, those of one shard after the other, as features are read; a shard without any has no block."""
        borders = np.cumsum([shard.documents for shard in self.shards])
        for own in np.split(rows, np.searchsorted(rows, borders)):
            if len(own):
                yield self.read_texts(own)

    @cached_property
    def _local(self) -> tuple[pa.ipc.RecordBatchFileReader, Rows]:
        """All texts in a temporary file without a name, one batch per part, and the first row of every part."""
        file = tempfile.TemporaryFile(prefix="spin-texts-")  # noqa: SIM115 (open as long as its texts are read)
        try:
            _write_texts(file, self._read_spool())
        except LostPartError:
            _log.debug("the spool is gone, the files are read again", exc_info=True)
            file.seek(0)
            file.truncate()
            _write_texts(file, self._read_files())
        return pa.ipc.open_file(file), np.cumsum([0, *(part.documents for part in self.parts)])

    def _read_spool(self) -> Iterator[pa.Array]:
        """The texts of each part. Raises LostPartError if one is gone."""
        opener = InputOpener()
        for part in self.parts:
            yield read_part(part, opener, ["text"])["text"].cast(pa.large_string()).combine_chunks()

    def _read_files(self) -> Iterator[pa.Array]:
        """The texts of each part from the files, which were checked when they were taken in."""
        texts = (text for documents in read_files(self.files, self.data, ["text"]) for text in documents.texts)
        for part in self.parts:
            yield pa.array(islice(texts, part.documents), pa.large_string())


def _write_texts(file: IO[bytes], parts: Iterable[pa.Array]) -> None:
    """Write a batch per part to a file, which stays open."""
    with pa.ipc.new_file(file, _SCHEMA) as writer:
        for texts in parts:
            writer.write_batch(pa.record_batch([texts], schema=_SCHEMA))


def divide_parts(parts: Sequence[ReadyPiece], documents: int, rows: Rows | None = None) -> list[Shard]:
    """The rows of a spool in shards of so many documents, fewer where a part would bring more than 64 MB into one.

    `rows` are the numbers in the corpus, ascending, of the documents that are wanted; None: all.
    """
    shards: list[list[Piece]] = []
    room, space = 0, 0.0
    borders = np.cumsum([0, *(part.piece.documents for part in parts)])
    wanted = np.arange(borders[-1]) if rows is None else rows
    of_parts = np.split(wanted, np.searchsorted(wanted, borders[1:-1]))
    for part, first, of_part in zip(parts, borders, of_parts, strict=False):
        own, each = of_part - first, part.bytes / part.piece.documents
        while len(own):
            count = min(room, len(own))
            if not count or (shards[-1] and count * each > space):
                shards.append([])
                room, space = documents, float(MAX_BYTES)
                continue
            shards[-1].append(_take_rows(part.piece, own[:count]))
            own, room, space = own[count:], room - count, space - count * each
    return [Shard(n, tuple(pieces)) for n, pieces in enumerate(shards)]


def number_rows(shards: Sequence[Shard], of: Sequence[Shard]) -> Rows:
    """The numbers of the rows of some shards in a corpus, given the shards of all of it."""
    firsts: dict[str, int] = {}
    done = 0
    for piece in (piece for shard in of for piece in shard.pieces):
        firsts.setdefault(piece.uri, done - piece.start)
        done += piece.documents
    rows = [
        firsts[piece.uri] + piece.start + (np.arange(piece.documents) if piece.rows is None else np.array(piece.rows))
        for shard in shards
        for piece in shard.pieces
    ]
    return np.concatenate([np.empty(0, np.int64), *rows])


def _take_rows(part: Piece, rows: Rows) -> Piece:
    """Some rows of a part of the spool, ascending."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    some = None if stop - start == len(rows) else tuple((rows - start).tolist())
    return replace(part, start=start, stop=stop, documents=len(rows), rows=some)
