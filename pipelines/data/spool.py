"""The spool: rows of the input, checked and written as Parquet by the intake, so that each file is read once.

A row of the spool is sound, or it is known to be a dead letter and has a reason. Both kinds keep the file that they
come from and the place in it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.files.formats import MAX_BYTES
from pipelines.data.files.kept_columns import columns_of_type, merge_types, type_text
from pipelines.data.files.reader import Documents
from pipelines.data.files.shards import EVEN_SHARDS, LEAST_DOCUMENTS, Piece, Shard
from pipelines.data.files.text_values import is_unicode, to_unicode
from pipelines.data.forgotten_ids import NOTHING_FORGOTTEN, ForgottenIds
from pipelines.storage.filesystem import store_errors
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.parquet import to_parquet
from spin.errors import UserError

SPOOL = "spool"
"""kind of a piece that is a part of the spool, and the folder of the parts"""
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("file", pa.string()),
        ("first", pa.int64()),  # byte from which rows are counted: 0, or in a large plain JSONL file that of a line
        ("row", pa.int64()),  # number of the row after that
        ("reason", pa.string()),  # null for a sound row
        ("message", pa.string()),
    ]
)


FORGOTTEN = "forgotten"
"""reason of the rows of documents that were forgotten: nothing of them is read but their place"""
_FORGOTTEN_MESSAGE = "its id is among those that `spin forget` was given, so it is not classified"


class LostPartError(UserError):
    """A part of the spool is gone."""


@dataclass(frozen=True)
class CheckedRows:
    """The rows of a shard in order, each sound or known to be a dead letter. The lists are of equal length."""

    ids: list[str | None]
    """with lone surrogates replaced, which only dead letters have"""
    texts: list[str | None]
    """None if the row holds no text"""
    files: list[str]
    """URIs of the input files that the rows come from"""
    firsts: list[int]
    """byte from which the rows are counted: 0, or in a large plain JSONL file that of a line"""
    rows: list[int]
    """number of the row after that"""
    dead: dict[int, tuple[str, str]]
    """reason and message for each row that cannot be classified; no message contains a document's text"""
    kept: pa.Table
    """kept columns, with a row per row"""

    def __len__(self) -> int:
        return len(self.ids)

    def texts_of(self, rows: Sequence[int]) -> list[str]:
        """The texts of sound rows."""
        return [self.texts[row] or "" for row in rows]


def read_rows(shard: Shard, kept: pa.Schema, forgotten: ForgottenIds = NOTHING_FORGOTTEN) -> CheckedRows:
    """The rows of a shard, whose pieces are parts of the spool, or rows of them.

    `kept` are the kept columns of the night with their types. Forgotten documents are dead letters.
    """
    opener = InputOpener()
    tables = [hide_forgotten(read_part(piece, opener), forgotten) for piece in shard.pieces]
    table = pa.concat_tables([_SCHEMA.empty_table(), *(each.select(_SCHEMA.names) for each in tables)])
    ids, texts, files, firsts, rows, reasons, messages = (column.to_pylist() for column in table.columns)
    dead = {row: (reason, messages[row]) for row, reason in enumerate(reasons) if reason is not None}
    kept_rows = pa.concat_tables([kept.empty_table(), *(columns_of_type(each, kept) for each in tables)])
    return CheckedRows(ids, texts, files, firsts, rows, dead, kept_rows)


def read_documents(shard: Shard) -> tuple[list[str], list[str]]:
    """The ids and the texts of a shard of sound rows.

    Raises LostPartError; a training that is repeated writes lost parts again.
    """
    opener, remedy = InputOpener(), "run the command again"
    ids: list[str] = []
    texts: list[str] = []
    for piece in shard.pieces:
        part = read_part(piece, opener, ["id", "text"], remedy)
        ids += part["id"].to_pylist()
        texts += part["text"].to_pylist()
    return ids, texts


def read_texts(shard: Shard) -> list[str]:
    """The texts of a shard of sound rows. Raises LostPartError as `read_documents` does."""
    return read_documents(shard)[1]


def read_part(
    piece: Piece, opener: InputOpener, columns: list[str] | None = None, remedy: str = "start over with --restart"
) -> pa.Table:
    """The rows of a part of the spool, all columns or some. Raises LostPartError, with a remedy, if it is gone."""
    with store_errors(piece.uri):
        try:
            content = opener.read(piece.uri, size=piece.size)
        except FileNotFoundError:
            raise LostPartError(f"{piece.uri} is missing, so the run cannot go on; {remedy}") from None
    table = pq.read_table(io.BytesIO(content), columns=columns).slice(piece.start, piece.stop - piece.start)
    return table if piece.rows is None else table.take(pa.array(piece.rows))


def check_rows(documents: Documents, file: str) -> pa.Table:
    """The documents of a file as rows of the spool."""
    dead, row = find_dead_rows(documents), documents.row
    table = pa.table(
        [
            pa.array([to_unicode(id) for id in documents.ids], pa.string()),
            pa.array([to_unicode(text) for text in documents.texts], pa.string()),
            pa.repeat(file, len(documents)),
            pa.repeat(documents.first, len(documents)).cast(pa.int64()),
            pa.array(range(row, row + len(documents)), pa.int64()),
            pa.array([dead[n][0] if n in dead else None for n in range(len(documents))], pa.string()),
            pa.array([dead[n][1] if n in dead else None for n in range(len(documents))], pa.string()),
        ],
        schema=_SCHEMA,
    )
    kept = pa.table({}) if documents.kept is None else documents.kept
    for name in kept.column_names:
        table = table.append_column(name, kept[name])
    return table


def hide_forgotten(table: pa.Table, forgotten: ForgottenIds) -> pa.Table:
    """Rows of the spool in which those of forgotten documents hold their place and a reason, and nothing else."""
    gone = forgotten.find(table["id"].to_pylist()) if len(forgotten) else []
    if not gone:
        return table
    shown = np.ones(len(table), bool)
    # guarded by test_later_nights_leave_the_documents_out
    shown[gone] = False
    mask, places = pa.array(shown), ("file", "first", "row")
    told = {"reason": FORGOTTEN, "message": _FORGOTTEN_MESSAGE}
    columns = [
        table[name] if name in places else pc.if_else(mask, table[name], pa.scalar(told.get(name), table[name].type))
        for name in table.column_names
    ]
    return pa.table(columns, schema=table.schema)


def find_dead_rows(documents: Documents) -> dict[int, tuple[str, str]]:
    """The reason and a message for each row that cannot be classified; no message contains a document's text."""
    dead: dict[int, tuple[str, str]] = {}
    for row, (id, text) in enumerate(zip(documents.ids, documents.texts, strict=True)):
        if row in documents.malformed:
            dead[row] = "malformed", documents.malformed[row]
        elif id is None:
            dead[row] = "null_id", documents.absent.get(row, "the id is null or empty")
        elif not is_unicode(id):
            dead[row] = "bad_id", "the id holds lone surrogates, expected Unicode"
        elif row in documents.dropped:
            dead[row] = documents.dropped[row]
        elif text is None:
            dead[row] = "null_text", documents.absent.get(row, "the text is null")
        elif not text or text.isspace():
            dead[row] = "empty_text", "the text is empty"
        elif not is_unicode(text):
            dead[row] = "not_text", "the text holds lone surrogates, expected Unicode"
    return dead


@dataclass(frozen=True)
class SpoolPart:
    """A part of the spool that is full."""

    number: int
    """place among the parts of its task, from 0"""
    ids: Sequence[str | None]
    """by row; None for dead letters, whose ids another row may have"""
    parquet: bytes
    """content of the part"""


@dataclass(frozen=True)
class ReadyPiece:
    """A part of the spool that was saved."""

    piece: Piece
    part: int
    """number of the `SpoolPart`"""
    bytes: int
    """of its texts and the other columns"""


Save = Callable[[SpoolPart], str]
"""writes the digests of a part's ids, and its content; returns the URI of the content"""


@dataclass(frozen=True)
class PartSize:
    """The limits on a part of the spool."""

    documents: int
    """at most"""
    even_bytes: int = MAX_BYTES
    """bytes of text, above which a part holds at most `LEAST_DOCUMENTS` documents: an even share of a small input"""

    @classmethod
    def of(cls, size: int, documents: int) -> PartSize:
        """The size where all input files have `size` bytes, in shards of at most so many documents."""
        return cls(documents, min(MAX_BYTES, -(-size // EVEN_SHARDS)))


class SpoolWriter:
    """Cuts rows into parts of about equal numbers of documents and of bounded size, and saves each when it is full.

    The rows of a file count only when it is accepted. Those of a large file are saved meanwhile, and forgotten if it is
    rejected.
    """

    def __init__(self, size: PartSize, save: Save, forgotten: ForgottenIds = NOTHING_FORGOTTEN) -> None:
        self.ready: list[ReadyPiece] = []
        """the parts so far"""
        self.types: dict[str, str] = {}
        """types of the kept columns in the accepted files"""
        self._size, self._save, self._forgotten = size, save, forgotten
        self._number = 0
        self._buffer: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._held: list[pa.Table] = []
        self._held_bytes = 0
        self._file_types: dict[str, str] = {}
        self._checkpoint: int | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows of the current file. Of forgotten documents nothing but their place is saved."""
        table = hide_forgotten(table, self._forgotten)
        kept = {field.name: type_text(field.type) for field in list(table.schema)[len(_SCHEMA) :]}
        self._file_types = merge_types(self._file_types, kept, "a file")
        self._held.append(table)
        self._held_bytes += table.nbytes
        if self._held_bytes > MAX_BYTES // 4:
            self._begin_to_save()
            self._pour()

    def accept(self, uri: str) -> None:
        """End the current file: its rows are part of the night. Raises KeptTypeError for another type of a column."""
        self.types = merge_types(self.types, self._file_types, uri)
        self._pour()
        self._begin_file()

    def reject(self) -> None:
        """End the current file: none of its rows is part of the night."""
        if self._checkpoint is not None:
            self._buffer, self._rows, self._bytes = [], 0, 0
            del self.ready[self._checkpoint :]
        self._begin_file()

    def flush(self) -> None:
        """Save the rows that wait as a part; called once more at the end, for what is left."""
        if not self._rows:
            return
        table = pa.concat_tables(self._buffer, promote_options="default")
        sound, parquet = pc.is_null(table["reason"]), to_parquet(table)
        # guarded by test_texts_of_large_parquet_files_decide_which_row_is_first; broken by:
        #   ids = table["id"].to_pylist()
        ids = pc.if_else(sound, table["id"], pa.scalar(None, pa.string())).to_pylist()
        uri = self._save(SpoolPart(self._number, ids, parquet))
        piece = Piece(uri, SPOOL, 0, len(table), documents=len(table), size=len(parquet))
        self.ready.append(ReadyPiece(piece, self._number, self._bytes))
        self._number += 1
        self._buffer, self._rows, self._bytes = [], 0, 0

    def _begin_file(self) -> None:
        self._held, self._held_bytes, self._file_types, self._checkpoint = [], 0, {}, None

    def _begin_to_save(self) -> None:
        """From here on parts hold rows of the current file alone, so that they can be forgotten."""
        if self._checkpoint is None:
            self.flush()
            self._checkpoint = len(self.ready)

    def _pour(self) -> None:
        for table in self._held:
            lengths = _row_bytes(table)
            start = 0
            while start < len(table):
                ends = np.cumsum(lengths[start : start + self._size.documents - self._rows]) + self._bytes
                rows = self._count_fitting(ends) or (0 if self._rows else 1)
                if rows:
                    self._buffer.append(table.slice(start, rows))
                    self._rows, self._bytes, start = self._rows + rows, int(ends[rows - 1]), start + rows
                if not rows or self._rows >= self._size.documents:
                    self.flush()
        self._held, self._held_bytes = [], 0

    def _count_fitting(self, ends: NDArray[np.float64]) -> int:
        """Count how many further rows fit into the part, given its bytes after each (n,)."""
        most = int(np.searchsorted(ends, MAX_BYTES, side="right"))
        even = int(np.searchsorted(ends, self._size.even_bytes, side="right"))
        return min(most, max(even, LEAST_DOCUMENTS - self._rows))


def _row_bytes(table: pa.Table) -> NDArray[np.float64]:
    """The bytes of each row: of its text, and its share of the other columns."""
    texts = pc.fill_null(pc.binary_length(table["text"]), 0).to_numpy().astype(np.float64)
    return texts + max(0.0, table.nbytes - texts.sum()) / max(1, len(table))
