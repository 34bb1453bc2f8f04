"""The formats of input files, and the reader of each."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

from pipelines.data.files.csv_reader import CsvReader
from pipelines.data.files.formats import BLOCK, file_errors
from pipelines.data.files.jsonl_reader import JsonLinesReader
from pipelines.data.files.parquet_reader import ParquetReader
from pipelines.data.files.reader import ID_AND_TEXT, Documents, Reader, Role
from pipelines.data.files.shards import Piece
from pipelines.storage.filesystem import PARALLEL_REQUESTS
from pipelines.storage.input_opener import InputOpener
from spin.errors import UserError
from spin.settings import DataSettings

READERS: tuple[Reader, ...] = (ParquetReader(), JsonLinesReader(), CsvReader())
"""every format; a line here registers another one"""


def find_reader(uri: str) -> Reader | None:
    """The reader of a file, by its name; None for a file of no known format."""
    return next((reader for reader in READERS if reader.recognises(uri)), None)


def reader_of(piece: Piece) -> Reader:
    """The reader of a piece, by its kind. Raises UserError for a kind that nothing reads."""
    for reader in READERS:
        if reader.name == piece.kind:
            return reader
    known = list_formats([reader.name for reader in READERS])
    raise UserError(f"{piece.uri} is of the kind '{piece.kind}', which nothing reads; expected {known}")


def list_formats(names: Sequence[str]) -> str:
    """`Parquet, JSONL or CSV`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def opener_of(piece: Piece, opener: InputOpener) -> Callable[[], BinaryIO]:
    """A function that opens the file of a piece."""
    return lambda: opener.open(piece.uri, size=piece.size, version=piece.version)


def read_piece(
    piece: Piece,
    data: DataSettings,
    open_file: Callable[[], BinaryIO] | None = None,
    *,
    columns: Collection[Role] = ID_AND_TEXT,
) -> Iterator[Documents]:
    """The rows of a piece of an input file in order, some at a time, in bounded memory.

    They have the given columns, by default ids and texts, and those of `data.keep`. Of Parquet only these columns are
    read. Raises BadFileError, naming the file, also after the first rows.
    """
    reader = reader_of(piece)
    with file_errors(piece.uri), (open_file or opener_of(piece, InputOpener()))() as source:
        small = piece.start == 0 and piece.stop == piece.size <= BLOCK
        place: tuple[int, int] | None = None
        for documents in reader.read(io.BytesIO(source.read(piece.size)) if small else source, piece, data, columns):
            documents.first, documents.row = place or (documents.first, documents.row)
            place = documents.first, documents.row + len(documents)
            yield documents


def find_columns(piece: Piece, data: DataSettings) -> Sequence[str]:
    """The names of the columns of a file, for messages. Raises BadFileError if it cannot be read."""
    with file_errors(piece.uri), opener_of(piece, InputOpener())() as source:
        return reader_of(piece).column_names(source, piece.uri, data)


def find_lines(piece: Piece, rows: Collection[int], data: DataSettings, first: int = 0) -> list[int] | None:
    """The lines, from 1, at which rows of a file begin, in ascending order; None where its format has no lines.

    The rows are counted from the byte `first` on. The file is read again: only messages count lines.
    """
    wanted = set(rows)
    with file_errors(piece.uri), opener_of(piece, InputOpener())() as source:
        numbers = reader_of(piece).lines(source, piece.uri, data, first)
        if numbers is None:
            return None
        return [line for row, line in enumerate(islice(numbers, max(wanted) + 1)) if row in wanted]


@contextmanager
def open_all(pieces: Sequence[Piece]) -> Iterator[Iterator[tuple[Piece, Callable[[], BinaryIO]]]]:
    """The pieces in order, each with a function that opens its file; several small files are requested at a time."""
    opener = InputOpener()
    if len(pieces) == 1:
        yield iter([(pieces[0], opener_of(pieces[0], opener))])
        return
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as readers:
        requests = {
            piece: readers.submit(opener.read, piece.uri, size=piece.size, version=piece.version) for piece in pieces
        }
        try:
            yield ((piece, _opened(requests, piece)) for piece in pieces)
        finally:
            readers.shutdown(cancel_futures=True)


def _opened(requests: dict[Piece, Future[bytes]], piece: Piece) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(requests.pop(piece).result())
