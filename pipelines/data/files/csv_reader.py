"""CSV: a header, then rows of texts, in any delimiter and encoding."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, tee
from typing import Any, BinaryIO

from pipelines.data.files.formats import (
    BAD_ROWS,
    MAX_BYTES,
    check_column_count,
    check_columns,
    decompressed,
    empty_file,
    long_row,
    name_places,
    not_encoded,
    text_codec,
)
from pipelines.data.files.reader import FIELDS, Documents, Reader, Role, in_chunks, keep_values, names_by_field
from pipelines.data.files.shards import Piece
from pipelines.data.files.text_values import is_unicode
from pipelines.service_errors import BadFileError
from spin.pages.number_format import counted
from spin.settings import DataSettings

_DELIMITERS = (",", ";", "\t")
"""among which the header of a CSV file decides"""
_HEADER_LINES = 1000
"""most lines of a header in which the delimiter is sought"""
_MISSING = frozenset({"NaN", "nan", "NA", "N/A", "n/a", "<NA>", "NULL", "null"})
"""what pandas, R and databases write to CSV in place of a value that is missing"""

csv.field_size_limit(MAX_BYTES)


class CsvReader(Reader):
    """CSV, which is read from its beginning: a line end may be part of a quoted value."""

    name, title, endings = "csv", "CSV", (".csv",)

    def read(
        self, source: BinaryIO, piece: Piece, data: DataSettings, columns: Collection[Role]
    ) -> Iterator[Documents]:
        numbered = read_csv(decompressed(source, piece.uri, data), piece.uri, data)
        (_, header), names = next(numbered), names_by_field(data, columns)
        check_columns(header, list(names.values()), piece.uri, header=True)
        kept = [name for name in data.keep if name in header]
        for chunk in in_chunks((row for _, row in numbered), partial(_weigh, piece.uri, data.max_row_bytes)):
            texts = dict(zip(header, zip(*chunk, strict=True), strict=True))
            documents = Documents()
            for field_name in FIELDS:
                values: Sequence[Any] = texts[names[field_name]] if field_name in names else [None] * len(chunk)
                if field_name != "texts":
                    missing = _MISSING | {""} if field_name == "groups" else {""}
                    values = [None if value in missing else value for value in values]
                getattr(documents, field_name).extend(values)
            if "labels" in names:
                _refuse_missing_labels(documents, names["labels"])
            keep_values(documents, {name: texts[name] for name in kept}, data)
            yield documents

    def column_names(self, source: BinaryIO, uri: str, data: DataSettings) -> Sequence[str]:
        _, header = next(read_csv(decompressed(source, uri, data), uri, data))
        return header

    def lines(self, source: BinaryIO, uri: str, data: DataSettings, first: int) -> Iterator[int]:
        rows = read_csv(decompressed(source, uri, data), uri, data)
        next(rows)  # the header
        return (line for line, _ in rows)


def _weigh(uri: str, most: int, row: Sequence[str]) -> int:
    """The characters of a row. Raises BadFileError for more than it may have bytes."""
    weight = sum(map(len, row))
    if weight > most:
        raise long_row(uri, "row", most)
    return weight


def _refuse_missing_labels(documents: Documents, column: str) -> None:
    """Make rows malformed whose label is what other programs write in place of none."""
    for row, label in enumerate(documents.labels):
        if label in _MISSING:
            documents.malformed[row] = (
                f"the label ({column}) is {label}, which CSV has for a missing one; label the row or leave it out; a "
                f"class that is named so needs another name in the file, such as 'class {label}'"
            )


def read_csv(source: BinaryIO, uri: str, data: DataSettings) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows, all of as many values as the header, each with the line, from 1, at which it begins.

    Values are texts, whatever they look like. The file is read once and in bounded memory. Raises BadFileError for an
    empty file, a header with a name twice, rows of more or fewer values, an open quote at the end, text after a quoted
    value, too many columns, a row or a line of more than `data.max_row_bytes`, and a line that is not in
    `data.encoding`.
    """
    lines = _decoded_lines(source, uri, data)
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
    check_column_count(len(header), uri, data)
    times = Counter(header)
    for name in header:
        if name and times[name] > 1:
            raise BadFileError(
                f"{uri} has {times[name]} columns of one name, the first of which is column {header.index(name)} of "
                f"{len(header)}; expected a header with different names in the first line"
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


def _decoded_lines(source: BinaryIO, uri: str, data: DataSettings) -> Iterator[str]:
    """The lines of a text file with their ends.

    Raises BadFileError for the first one that is not in the encoding, or is too long.
    """
    text = io.TextIOWrapper(source, encoding=text_codec(data.encoding), errors="surrogateescape", newline="")
    most = data.max_row_bytes
    for number, line in enumerate(iter(partial(text.readline, most + 1), ""), 1):
        if len(line) > most:
            raise long_row(uri, "line", most)
        if not is_unicode(line):
            byte = next(ord(character) for character in line if "\udc80" <= character <= "\udcff") - 0xDC00
            raise BadFileError(f"{uri} line {number} {not_encoded(byte, data.encoding)}")
        yield line


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
