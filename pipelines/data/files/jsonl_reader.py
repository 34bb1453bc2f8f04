"""JSONL: an object per line, which may be read from any byte on."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

from pipelines.data.files.formats import (
    BLOCK,
    MAX_BYTES,
    compression_codec,
    decompressed,
    long_row,
    not_encoded,
    text_codec,
)
from pipelines.data.files.reader import Documents, Reader, Role, in_chunks, to_documents
from pipelines.data.files.shards import Piece
from pipelines.service_errors import BadFileError
from spin.settings import DataSettings

_TAIL = 1 << 14
"""bytes per request in search of the end of a line"""


class JsonLinesReader(Reader):
    """JSONL. A compressed file is read from its beginning."""

    name, title, endings, window = "jsonl", "JSONL", (".jsonl", ".ndjson"), 4 * MAX_BYTES

    def read(
        self, source: BinaryIO, piece: Piece, data: DataSettings, columns: Collection[Role]
    ) -> Iterator[Documents]:
        if compression_codec(piece.uri) is None:
            lines = read_lines_between(source, piece, data)
        else:
            content = decompressed(source, piece.uri, data)
            lines = ((0, line) for line in read_lines(content, piece.uri, data))
        for chunk in in_chunks(lines, lambda line: len(line[1])):
            malformed: dict[int, str] = {}
            records = [_parse_line(line, piece.uri, data, malformed, row) for row, (_, line) in enumerate(chunk)]
            documents = to_documents(records, data, columns, malformed=malformed, noun="line")
            documents.first = chunk[0][0] if piece.start else 0
            yield documents

    def column_names(self, source: BinaryIO, uri: str, data: DataSettings) -> Sequence[str]:
        line = next(read_lines(decompressed(source, uri, data), uri, data))
        return list(_parse_line(line, uri, data, {}, 0))

    def lines(self, source: BinaryIO, uri: str, data: DataSettings, first: int) -> Iterator[int]:
        position = 0
        content = decompressed(source, uri, data)
        for number, line in enumerate(iter(lambda: _read_line(content, uri, data.max_row_bytes), b""), 1):
            if position >= first and line.strip():
                yield number
            position += len(line)


def read_lines(source: BinaryIO, uri: str, data: DataSettings) -> Iterator[bytes]:
    """The lines that are not blank, each with its line end; the last one may have none.

    Raises BadFileError for a line of more than `data.max_row_bytes`.
    """
    while line := _read_line(source, uri, data.max_row_bytes):
        if line.strip():
            yield line


def read_lines_between(source: BinaryIO, piece: Piece, data: DataSettings) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that begin within a piece of it, each with its first byte; blank ones are left out.

    The bytes of the piece are read in requests of `BLOCK` bytes at most, the rest of the last line in small ones.
    Raises BadFileError as `read_lines` does.
    """
    position = max(0, piece.start - 1)
    source.seek(position)
    window = _Window(source, position, piece.stop)
    lines = io.BufferedReader(window, min(BLOCK, max(1, piece.stop - position)))
    most = data.max_row_bytes
    if piece.start > 0:
        position += len(_read_line(lines, piece.uri, most))  # the rest of the line before
    while position < piece.stop and (line := _read_line(lines, piece.uri, most)):
        if line.strip():
            yield position, line
        position += len(line)


def _read_line(source: BinaryIO, uri: str, most: int) -> bytes:
    line = source.readline(most + 1)
    if len(line) > most:
        raise long_row(uri, "line", most)
    return line


class _Window(io.RawIOBase):
    """A file that is read up to a byte in large requests, and in small ones after it."""

    def __init__(self, source: BinaryIO, position: int, stop: int) -> None:
        self.source, self.position, self.stop = source, position, stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.stop - self.position if self.position < self.stop else _TAIL)
        data = self.source.read(wanted)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _parse_line(line: bytes, uri: str, data: DataSettings, malformed: dict[int, str], row: int) -> dict[str, Any]:
    """The object in a line; an empty one, and a reason in `malformed`, if there is none.

    Raises BadFileError for a line without an end that is not JSON: the file was cut.
    """
    try:
        record = json.loads(line.removesuffix(b"\n").decode(text_codec(data.encoding)))
        if not isinstance(record, dict):
            malformed[row] = f"the line is a JSON {type(record).__name__}, expected an object"
        elif len(record) > data.max_columns:
            malformed[row] = (
                f"the line has {len(record):,} columns, expected at most {data.max_columns:,} (data.max_columns)"
            )
        else:
            return record
    except (ValueError, RecursionError) as error:
        reason = _describe_no_json(error, data.encoding)
        if not line.endswith(b"\n"):
            raise BadFileError(
                f"{uri} ends inside a line: the last one has no line end and {reason}; was the file cut?"
            ) from None
        malformed[row] = f"the line {reason}"
    return {}


def _describe_no_json(error: Exception, encoding: str) -> str:
    """Describe why a line is no JSON, by its column: the module counts lines within the line."""
    if isinstance(error, UnicodeDecodeError):
        return not_encoded(error.object[error.start], encoding)
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} in column {error.colno}"
    return f"is not JSON: {error}"
