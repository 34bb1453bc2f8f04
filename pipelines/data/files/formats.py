"""The rows of open Parquet, JSONL and CSV files, strictly: a file that is cut or ambiguous raises BadFileError."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, tee
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.text_values import is_unicode
from pipelines.service_errors import BadFileError
from spin.pages.number_format import counted
from spin.settings import DataSettings

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
_DELIMITERS = (",", ";", "\t")
"""among which the header of a CSV file decides"""
_HEADER_LINES = 1000
"""most lines of a header in which the delimiter is sought"""
_COLUMNS, _COLUMN = 20, 30
"""most columns that a message lists, and most characters of the name of one"""
BAD_ROWS = 10
"""most rows that a message names"""
_NAME = re.compile(r"[^\W\d][\w.-]*( [\w.-]+)?")
"""what the name of a column looks like: at most two words, the first of which begins with a letter"""
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


def text_codec(encoding: str) -> str:
    """The codec that decodes texts of an encoding; a byte order mark before UTF-8 is no part of them."""
    return "utf-8-sig" if encoding == "utf-8" else encoding


def read_csv(source: BinaryIO, uri: str, data: DataSettings) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, all of as many values as the header, each with the line, from 1, at which it begins.

    Values are texts, whatever they look like. The file is read once and in bounded memory. Raises BadFileError for an
    empty file, a header with a name twice, rows of more or fewer values, an open quote at the end, text after a quoted
    value, a value of more than `MAX_BYTES`, and a line that is not in `data.encoding`.
    """
    lines = _decoded_lines(source, uri, data.encoding)
    delimiter = data.delimiter
    if delimiter == "auto":
        lines, header_lines = tee(lines)
        delimiter = choose_delimiter(header_lines, (data.id, data.text))
        del header_lines  # which would keep all lines in memory
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    first = _next_row(rows, uri)
    if first is None:
        raise empty_file(uri)
    header = first[1]
    for name in header:
        if name and header.count(name) > 1:
            raise BadFileError(
                f"{uri} has {header.count(name)} columns of one name, the first of which is column "
                f"{header.index(name)} of {len(header)}; expected a header with different names in the first line"
            )
    yield first
    while (row := _next_row(rows, uri)) is not None:
        if len(row[1]) != len(header):
            raise _uneven_rows(row, rows, uri, len(header))
        yield row


def choose_delimiter(lines: Iterable[str], wanted: Sequence[str]) -> str:
    """The delimiter by which the header of a CSV file has most of the wanted columns, else by which it has most.

    A pure function of the header, so that all who read a part of the file agree.
    """

    def judge(lines: Iterable[str], delimiter: str) -> tuple[int, int]:
        try:
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next((row for row in rows if row), [])
        except csv.Error:
            return 0, 0
        found = sum(header.count(name) == 1 for name in wanted)
        return found, 0 if found == len(wanted) else len(header)

    tries = tee(islice(lines, _HEADER_LINES), len(_DELIMITERS))
    judged = [judge(each, delimiter) for each, delimiter in zip(tries, _DELIMITERS, strict=True)]
    return _DELIMITERS[judged.index(max(judged))]


def _decoded_lines(source: BinaryIO, uri: str, encoding: str) -> Iterator[str]:
    """The lines of a text file with their ends. Raises BadFileError for the first one that is not in the encoding."""
    text = io.TextIOWrapper(source, encoding=text_codec(encoding), errors="surrogateescape", newline="")
    for number, line in enumerate(text, 1):
        if not is_unicode(line):
            byte = next(ord(character) for character in line if "\udc80" <= character <= "\udcff") - 0xDC00
            raise BadFileError(f"{uri} line {number} {not_encoded(byte, encoding)}")
        yield line


def not_encoded(byte: int, encoding: str) -> str:
    """What is wrong with a line that holds a byte which its encoding does not know."""
    return (
        f"is not {encoding}, it holds the byte 0x{byte:02x}; name the encoding in data.encoding, as cp1252 or latin-1"
    )


def _next_row(rows: Any, uri: str) -> tuple[int, list[str]] | None:
    """The next row that is not blank with the line at which it begins, None at the end."""
    line = rows.line_num + 1
    try:
        while (row := next(rows, None)) == []:
            line = rows.line_num + 1
    except csv.Error as error:
        # the messages of the module do not hold the row
        reason = "the file ends inside a quoted value" if "end of data" in str(error) else str(error)
        reason = "text follows a quoted value" if "expected after" in reason else reason
        raise BadFileError(
            f"{uri} line {line} cannot be read: {reason}; is a quote not closed, or not doubled within a value?"
        ) from None
    return None if row is None else (line, row)


def _uneven_rows(first: tuple[int, list[str]], rows: Any, uri: str, expected: int) -> BadFileError:
    """The error for rows with more or fewer values than the header, which the rest of the file may have, too."""
    lines: list[int] = []
    more = 0
    with suppress(BadFileError):  # a row after them cannot be read at all
        while (row := _next_row(rows, uri)) is not None:
            if len(row[1]) != expected and len(lines) < BAD_ROWS - 1:
                lines.append(row[0])
            elif len(row[1]) != expected:
                more += 1
    also = f"; more or fewer in {name_places('line', lines, more)}, too" if lines else ""
    return BadFileError(
        f"{uri} line {first[0]} has {counted(len(first[1]), 'value')}; expected {expected}, as in the header{also}"
    )


def name_places(noun: str, numbers: Sequence[int], more: int = 0) -> str:
    """`line 3`, `lines 3, 5 and 8`, or with more that are not named `lines 3, 5 and 1,200 more`."""
    shown = [f"{number:,}" for number in numbers] + ([f"{more:,} more"] if more else [])
    listed = " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
    return f"{noun if len(shown) == 1 else f'{noun}s'} {listed}"


# Parquet


def open_parquet(source: BinaryIO, *, stream: bool = False, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file; `stream` reads a row group in pieces of `BLOCK` bytes, else it is read in few large requests.

    With the metadata of the file, they are not read again.
    """
    buffering: dict[str, Any] = {"buffer_size": BLOCK, "pre_buffer": False} if stream else {"pre_buffer": True}
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, **buffering)


def check_columns(names: Sequence[str], wanted: Sequence[str], uri: str, *, header: bool = False) -> None:
    """Raise BadFileError unless each wanted column is there once.

    The error lists the columns, those in a `header` if they look like names and not like a document: a file may have
    none.
    """
    for name in wanted:
        if (times := names.count(name)) != 1:
            number = f"{times} columns" if times else "no column"
            if header and not all(len(each) <= _COLUMN and _NAME.fullmatch(each) for each in names if each):
                raise BadFileError(f"{uri} has {number} '{name}' among its {len(names)}; is the first line a header?")
            raise BadFileError(f"{uri} has {number} '{name}'; it has {list_columns(names)}")


def list_columns(names: Collection[str]) -> str:
    """The names of columns for a message, long ones cut, and of very many the first."""
    shown = [name if len(name) <= _COLUMN else f"{name[:_COLUMN]}…" for name in islice(names, _COLUMNS)]
    return ", ".join(shown) + (f" and {len(names) - _COLUMNS:,} more" if len(names) > _COLUMNS else "")


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
