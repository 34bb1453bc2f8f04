"""The rows of open Parquet, JSONL and CSV files, strictly: a file that is cut or ambiguous raises BadFileError."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.service_errors import BadFileError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Arrow's codec by file-name ending"""
MAX_BYTES = 1 << 26
"""bytes of text that a shard, a part of the spool or a row holds at most"""
BLOCK = 1 << 24
"""bytes per request where a file is read from its beginning"""
_BUFFER = 1 << 20
"""bytes that are decompressed at a time"""
_TAIL = 1 << 14
"""bytes per request in search of the end of a line"""
_SAMPLES, _SAMPLE = 4, 1 << 16
"""places where the mean length of a line is measured, and bytes read at each"""
_ROWS, _ROWS_BYTES = 4096, 1 << 23
"""most rows of a row group that are held at a time, and about how many bytes"""

csv.field_size_limit(MAX_BYTES)


def compression_codec(uri: str) -> str | None:
    """Arrow's codec for a file, by its name; None if it is not compressed."""
    return next((codec for ending, codec in COMPRESSIONS.items() if uri.lower().endswith(ending)), None)


def buffered(source: BinaryIO, size: int = 0) -> BinaryIO:
    """A file that is read in requests of `BLOCK` bytes, or a file of small known size in one request."""
    if 0 < size <= BLOCK:
        return io.BytesIO(source.read(size))
    return _BlockReader(source, BLOCK)  # type: ignore[arg-type]


class _BlockReader(io.BufferedReader):
    """A file that is read in whole blocks, also by `read1`, by which text is decoded a few kilobytes at a time."""

    def read1(self, size: int = -1, /) -> bytes:
        # `read` refills the buffer with a block; `read1` would request no more than `size` bytes
        return self.read(BLOCK if size < 0 else size)


def decompressed(source: BinaryIO, uri: str) -> BinaryIO:
    """A file from its beginning, decompressed if its name says that it is compressed."""
    codec = compression_codec(uri)
    if codec is None:
        return source
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(source, mode="r"), codec), _BUFFER)


# JSONL


def read_lines(source: BinaryIO, uri: str) -> Iterator[bytes]:
    """The lines that are not blank, each with its line end; the last one may have none.

    Raises BadFileError if there is not even a blank one, or for a line of more than `MAX_BYTES`.
    """
    first = True
    while line := _read_line(source, uri):
        first = False
        if line.strip():
            yield line
    if first:
        raise empty_file(uri)


def read_lines_between(
    source: BinaryIO, uri: str, start: int, stop: int, block: int = MAX_BYTES + 1
) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at a byte from `start` on and before `stop`, each with that byte; blank ones are left out.

    The bytes between are read in requests of `block` bytes at most, the rest of the last line in small ones.
    """
    position = max(0, start - 1)
    source.seek(position)
    window = _Window(source, position, stop)
    lines = io.BufferedReader(window, min(block, max(1, stop - position)))
    if start > 0:
        position += len(_read_line(lines, uri))  # the rest of the line before
    while position < stop and (line := _read_line(lines, uri)):
        if line.strip():
            yield position, line
        position += len(line)


def mean_line_bytes(source: BinaryIO, start: int, stop: int) -> float:
    """The mean length of the lines between two bytes, measured in several places: one may be within a huge line."""
    length = stop - start
    places = 1 if length <= _SAMPLES * _SAMPLE else _SAMPLES
    lines = sampled = 0
    for place in range(places):
        source.seek(start + length * place // places)
        sample = source.read(min(length, _SAMPLE if places > 1 else length))
        lines, sampled = lines + sample.count(b"\n"), sampled + len(sample)
    return sampled / max(1, lines)


def _read_line(source: BinaryIO, uri: str) -> bytes:
    line = source.readline(MAX_BYTES + 1)
    if len(line) > MAX_BYTES:
        raise BadFileError(f"{uri} has a line of more than {MAX_BYTES >> 20} MB; expected one document per line")
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


# CSV


def read_csv(source: BinaryIO, uri: str) -> Iterator[list[str]]:
    """The header and the rows, all of as many values as the header. Values are texts, whatever they look like.

    The file is read once and in bounded memory. Raises BadFileError for an empty file, a header with a name twice, a
    row of more or fewer values, an open quote at the end, text after a quoted value, and a value of more than
    `MAX_BYTES`; UnicodeDecodeError if it is not UTF-8.
    """
    rows = csv.reader(io.TextIOWrapper(source, encoding="utf-8-sig", newline=""), strict=True)
    header = _next_row(rows, uri, 0)
    if header is None:
        raise empty_file(uri)
    for name in header:
        if name and header.count(name) > 1:
            raise BadFileError(
                f"{uri} has {header.count(name)} columns of one name, the first of which is column "
                f"{header.index(name)} of {len(header)}; expected a header with different names in the first line"
            )
    yield header
    number = 0
    while (row := _next_row(rows, uri, number)) is not None:
        if len(row) != len(header):
            raise BadFileError(f"{uri} row {number} has {len(row)} values; expected {len(header)}, as in the header")
        yield row
        number += 1


def _next_row(rows: Any, uri: str, number: int) -> list[str] | None:
    """The next row that is not blank, None at the end."""
    try:
        while (row := next(rows, None)) == []:
            pass
    except csv.Error as error:
        # the messages of the module do not hold the row
        raise BadFileError(
            f"{uri} row {number} cannot be read: {_CSV_ERRORS.get(str(error), str(error))}; is a quote not closed, or "
            "not doubled within a value?"
        ) from None
    return row


_CSV_ERRORS = {
    "unexpected end of data": "the file ends inside a quoted value",
    "',' expected after '\"'": "text follows a quoted value",
}
"""messages of the csv module in plain words"""


# Parquet


def open_parquet(source: BinaryIO, *, stream: bool = False, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file; `stream` reads a row group in pieces of `BLOCK` bytes, else it is read in few large requests.

    With the metadata of the file, they are not read again.
    """
    buffering: dict[str, Any] = {"buffer_size": BLOCK, "pre_buffer": False} if stream else {"pre_buffer": True}
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, **buffering)


def check_columns(names: Sequence[str], wanted: Sequence[str], uri: str, *, header: bool = False) -> None:
    """Raise BadFileError unless each wanted column is there once.

    The error names the columns, except those in a `header`: where a file has none, its first line is a document.
    """
    for name in wanted:
        if (times := names.count(name)) != 1:
            number = f"{times} columns" if times else "no column"
            there = f"among its {len(names)}; is the first line a header?" if header else f"; it has {', '.join(names)}"
            raise BadFileError(f"{uri} has {number} '{name}'{' ' if header else ''}{there}")


def is_text(kind: pa.DataType) -> bool:
    """Whether the values of an Arrow type are strings, or all null."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in texts)


def is_list(kind: pa.DataType) -> bool:
    """Whether the values of an Arrow type are lists."""
    kinds = pa.types
    lists = (
        kinds.is_list,
        kinds.is_large_list,
        kinds.is_fixed_size_list,
        kinds.is_list_view,
        kinds.is_large_list_view,
    )
    return any(is_kind(kind) for is_kind in lists)


def read_row_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], *, stream: bool = False
) -> Iterator[pa.Table]:
    """The columns of row groups: all of them in few requests, or a few rows at a time in bounded memory."""
    if not groups:
        return
    if not stream:
        yield parquet.read_row_groups(groups, columns=list(columns), use_threads=False)
        return
    rows = max(1, min(_ROWS, _ROWS_BYTES * parquet.metadata.num_rows // max(1, uncompressed_bytes(parquet, columns))))
    for batch in parquet.iter_batches(rows, row_groups=list(groups), columns=list(columns), use_threads=False):
        yield pa.Table.from_batches([batch])


def uncompressed_bytes(parquet: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None) -> int:
    """The bytes of columns before compression, in all row groups or in some."""
    total = 0
    for group in range(parquet.num_row_groups) if groups is None else groups:
        metadata = parquet.metadata.row_group(group)
        for at in range(metadata.num_columns):
            column = metadata.column(at)
            if any(column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.") for name in columns):
                total += column.total_uncompressed_size
    return total


def group_starts(parquet: pq.ParquetFile) -> list[int]:
    """The byte at which each row group begins."""
    starts = []
    for group in range(parquet.num_row_groups):
        column = parquet.metadata.row_group(group).column(0)
        dictionary = column.dictionary_page_offset
        starts.append(column.data_page_offset if dictionary is None else min(dictionary, column.data_page_offset))
    return starts


def empty_file(uri: str) -> BadFileError:
    """The error for a file without a single byte: no format but JSONL allows it, and there it is a file cut short."""
    return unreadable_file(uri, "it is empty")


def unreadable_file(uri: str, reason: str) -> BadFileError:
    """The error for a file that is not what its name says."""
    return BadFileError(f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}")
