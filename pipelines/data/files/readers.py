"""Read the documents of shards from Parquet, JSONL and CSV: every row is there, and a bad file or row is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, BinaryIO, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.files import formats
from pipelines.data.files.formats import check_columns, compression_codec
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.kept_columns import keep_column, parse_column
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.files.text_values import column_to_text, to_text
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import store_errors
from pipelines.storage.input_opener import InputOpener
from spin.errors import SpinError, shorten_message
from spin.labels.label_space import Label
from spin.settings import DataSettings

_log = logging.getLogger(__name__)
Column = Literal["id", "text", "label", "split", "group"]
"""a column by its role; `data.id` and so on name it in the file"""
IDS: tuple[Column, ...] = ("id",)
TEXTS: tuple[Column, ...] = ("text",)
ID_AND_TEXT: tuple[Column, ...] = ("id", "text")
ALL_COLUMNS: tuple[Column, ...] = ("id", "text", "label", "split", "group")
_REQUIRED = {"ids", "texts", "labels"}
"""fields of `Documents` that every row has"""
FIELDS = ("ids", "texts", "labels", "splits", "groups")
"""the lists of `Documents`"""
_MISSING_IN_CSV = frozenset({"NaN", "nan", "NA", "N/A", "n/a", "<NA>", "NULL", "null"})
"""what pandas, R and databases write to CSV in place of a value that is missing"""
T = TypeVar("T")
_CHUNK, _CHUNK_BYTES = 1000, 1 << 22
"""most lines or CSV rows that are parsed at a time, and about how many bytes"""
_EVERYTHING = 1 << 62


@dataclass
class Documents:
    """Rows in order: five lists of equal length. A column that was not requested holds None."""

    ids: list[str | None] = field(default_factory=list)
    """None for null and empty ids"""
    texts: list[Any] = field(default_factory=list)
    """as the file holds them, which need not be strings"""
    labels: list[Label | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    malformed: dict[int, str] = field(default_factory=dict)
    """rows that are no record, or that hold a value of another type than expected, each with the reason"""
    absent: dict[int, str] = field(default_factory=dict)
    """lines of JSONL that lack a requested column, each with what it has; in other formats a file lacks it"""
    kept: pa.Table | None = None
    """the columns of `data.keep` that the file has, if they were requested; types may differ between files"""

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, other: Documents) -> None:
        """Add rows to the end; kept columns are not added."""
        self.malformed |= {len(self) + row: reason for row, reason in other.malformed.items()}
        self.absent |= {len(self) + row: reason for row, reason in other.absent.items()}
        self.ids += other.ids
        self.texts += other.texts
        self.labels += other.labels
        self.splits += other.splits
        self.groups += other.groups


def read_shard(shard: Shard, data: DataSettings, *, columns: Collection[Column] = ID_AND_TEXT) -> Documents:
    """The rows of a shard with the given columns, by default ids and texts.

    Of Parquet only these columns are read; of JSONL and CSV everything is read and only these columns are kept. If the
    settings name no split or group column, splits or groups are None. Raises BadFileError, naming the file.
    """
    documents, opener = Documents(), InputOpener()
    for piece in shard.pieces:
        for part in read_piece(piece, data, opener_of(piece, opener), columns=columns):
            documents.extend(part)
    return documents


def opener_of(piece: Piece, opener: InputOpener) -> Callable[[], BinaryIO]:
    """A function that opens the file of a piece."""
    return lambda: opener.open(piece.uri, size=piece.size, version=piece.version)


def read_piece(
    piece: Piece,
    data: DataSettings,
    open_file: Callable[[], BinaryIO],
    *,
    columns: Collection[Column] = ID_AND_TEXT,
    keep: bool = False,
) -> Iterator[Documents]:
    """The rows of a piece of an input file in order, some at a time; `keep` adds the columns of `data.keep`.

    All but a piece of Parquet by rows, which is held, is read in bounded memory. Raises BadFileError, naming the file,
    also after the first rows.
    """
    with file_errors(piece.uri), open_file() as source:
        if piece.kind == "parquet":
            with formats.open_parquet(_whole_if_small(source, piece), stream=piece.by_bytes) as parquet:
                yield from read_parquet(parquet, piece, data, columns=columns, keep=keep, stream=piece.by_bytes)
        elif piece.kind == "jsonl":
            for chunk in _chunks((line for _, line in read_lines(source, piece)), len):
                yield parse_lines(chunk, piece.uri, data, columns=columns, keep=keep)
        else:
            yield from _read_csv(source, piece, data, columns=columns, keep=keep)


def _chunks(rows: Iterator[T], weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Rows in lists of bounded length and bytes."""
    chunk: list[T] = []
    weight = 0
    for row in rows:
        chunk.append(row)
        weight += weigh(row)
        if len(chunk) == _CHUNK or weight > _CHUNK_BYTES:
            yield chunk
            chunk, weight = [], 0
    if chunk:
        yield chunk


def row_group_sizes(source: BinaryIO, uri: str, data: DataSettings) -> list[int]:
    """The number of rows in each row group. Raises BadFileError if a column is missing or the text is not a string."""
    with formats.open_parquet(source) as parquet:
        check_parquet_columns(parquet, uri, data, ID_AND_TEXT)
        return [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]


def count_rows(source: BinaryIO, uri: str, kind: str, data: DataSettings) -> int:
    """The number of rows in a CSV file or in compressed JSONL, for which all of it is read."""
    whole = Piece(uri, kind, 0, _EVERYTHING)
    if kind == "jsonl":
        return sum(1 for _ in read_lines(source, whole))
    return sum(len(part) for part in _read_csv(source, whole, data, columns=ID_AND_TEXT, keep=False))


def check_parquet_columns(
    parquet: pq.ParquetFile, uri: str, data: DataSettings, columns: Collection[Column]
) -> dict[str, str]:
    """The name of each column in the file, by field of `Documents`.

    Raises BadFileError if one is not there once, or if the text is not a string.
    """
    names = _column_names(data, columns)
    schema = parquet.schema_arrow
    check_columns(schema.names, list(names.values()), uri)
    if "texts" in names and not formats.is_text(schema.field(data.text).type):
        raise BadFileError(f"{uri}: column '{data.text}' is {schema.field(data.text).type}, expected string")
    return names


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Turn the errors of reading an input file into SpinErrors of one line.

    Raises BadFileError for a file that is not of the type that its name ends in, or that is no longer there, otherwise
    as `store_errors` does.
    """
    with store_errors(uri):
        try:
            yield
        except FileNotFoundError:
            raise BadFileError(f"{uri}: not found; it was there when the files were listed") from None
        except MemoryError:  # Arrow's is an ArrowException, too
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, PermissionError) and error.errno is not None:  # of a disk; a store's has no number
                raise BadFileError(
                    f"{uri} may not be read by this user; give read permission, or move it away"
                ) from None
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # an error of the disk or the store, not of the file
            raise formats.unreadable_file(uri, shorten_message(str(error))) from None


def _column_names(data: DataSettings, columns: Collection[Column]) -> dict[str, str]:
    """The name of each column in the file, by field of `Documents`."""
    named = {"id": ("ids", data.id), "text": ("texts", data.text), "label": ("labels", data.label)}
    if data.split:
        named["split"] = ("splits", data.split)
    if data.group:
        named["group"] = ("groups", data.group)
    return dict(named[column] for column in ALL_COLUMNS if column in columns and column in named)


def _whole_if_small(source: BinaryIO, piece: Piece) -> BinaryIO:
    """The file, read in one request if the piece is all of a small file."""
    whole = piece.by_bytes and piece.start == 0 and piece.stop == piece.size
    return formats.buffered(source, piece.size) if whole and piece.size <= formats.BLOCK else source


# Parquet


def read_parquet(
    parquet: pq.ParquetFile,
    piece: Piece,
    data: DataSettings,
    *,
    columns: Collection[Column],
    keep: bool,
    stream: bool = False,
) -> Iterator[Documents]:
    """The rows of a piece of an open file; see `read_piece`."""
    names = check_parquet_columns(parquet, piece.uri, data, columns)
    kept = [name for name in (data.keep if keep else ()) if name in parquet.schema_arrow.names]
    check_columns(parquet.schema_arrow.names, kept, piece.uri)
    wanted = list(dict.fromkeys([*names.values(), *kept]))
    groups, first, rows = _row_groups(parquet, piece)
    for table in formats.read_row_groups(parquet, groups, wanted, stream=stream):
        start, stop = max(0, rows[0] - first), min(len(table), rows[1] - first)
        first += len(table)
        if start < stop:
            yield _table_documents(table.slice(start, stop - start), piece.uri, data, names, kept)


def _row_groups(parquet: pq.ParquetFile, piece: Piece) -> tuple[list[int], int, tuple[int, int]]:
    """The row groups of a piece, the first row of the first one, and the first row of the piece and that after it."""
    sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    firsts = [0, *accumulate(sizes)]
    if piece.by_bytes:
        starts = formats.group_starts(parquet)
        groups = [group for group, start in enumerate(starts) if piece.start <= start < piece.stop]
        rows = 0, _EVERYTHING
    else:
        rows = piece.start, piece.stop
        groups = [g for g in range(len(sizes)) if max(firsts[g], rows[0]) < min(firsts[g + 1], rows[1])]
    return groups, firsts[groups[0]] if groups else 0, rows


def _table_documents(
    table: pa.Table, uri: str, data: DataSettings, names: dict[str, str], kept: Sequence[str]
) -> Documents:
    documents = Documents()
    for field_name in FIELDS:
        values = getattr(documents, field_name)
        if field_name not in names:
            values.extend([None] * table.num_rows)
            continue
        column = table[names[field_name]]
        if field_name == "texts":
            values.extend(column.to_pylist())
        elif field_name == "labels" and formats.is_list(column.type):
            for value in _label_lists(column):
                _append_label(documents, value, names)
        else:
            values.extend(column_to_text(column))
    if kept:
        documents.kept = pa.table({name: keep_column(table[name], name, data.keep[name], uri) for name in kept})
    return documents


def _label_lists(column: pa.ChunkedArray) -> list[Any]:
    """Lists of labels; a list within a list has no cast, and is refused row by row as in JSONL."""
    kind = column.type.value_type
    if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return list(column.to_pylist())
    return list(pc.cast(column, pa.list_(pa.string())).to_pylist())


# JSONL


def read_lines(source: BinaryIO, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The lines of a piece that are not blank, each with the byte or the row at which it begins."""
    if piece.by_bytes and compression_codec(piece.uri) is None and (piece.start or piece.stop != piece.size):
        yield from formats.read_lines_between(source, piece.uri, piece.start, piece.stop)
        return
    size = piece.size if piece.by_bytes else 0
    lines = formats.read_lines(formats.decompressed(formats.buffered(source, size), piece.uri), piece.uri)
    yield from enumerate(lines) if piece.by_bytes else islice(enumerate(lines), piece.start, piece.stop)


def describe_columns(file: InputFile, data: DataSettings) -> str:
    """The columns of an input file for a message, those of its first row in JSONL; empty if it cannot be read now."""
    try:
        with file_errors(file.uri), InputOpener().open(file.uri, size=file.size, version=file.version) as source:
            return f"{file.uri} has {formats.list_columns(_read_columns(source, file, data)) or 'none'}"
    except SpinError:
        _log.debug("the columns of %s could not be listed", file.uri, exc_info=True)
        return ""


def _read_columns(source: BinaryIO, file: InputFile, data: DataSettings) -> Sequence[str]:
    if file.kind == "parquet":
        with formats.open_parquet(source) as parquet:
            return list(parquet.schema_arrow.names)
    opened = formats.decompressed(formats.buffered(source), file.uri)
    if file.kind == "csv":
        _, header = next(formats.read_csv(opened, file.uri, data))
        return header
    return list(_parse_line(next(formats.read_lines(opened, file.uri)), file.uri, data.encoding, {}, 0))


def find_lines(piece: Piece, rows: Sequence[int], data: DataSettings) -> list[int]:
    """The lines, from 1, at which rows of a piece of a CSV or JSONL file begin, in ascending order.

    The file is read again: only messages count lines.
    """
    wanted = set(rows)
    with file_errors(piece.uri), opener_of(piece, InputOpener())() as source:
        opened = formats.decompressed(formats.buffered(source), piece.uri)
        numbers = _csv_lines(opened, piece, data) if piece.kind == "csv" else _json_lines(opened, piece)
        return [line for row, line in enumerate(islice(numbers, max(wanted) + 1)) if row in wanted]


def _csv_lines(source: BinaryIO, piece: Piece, data: DataSettings) -> Iterator[int]:
    """The lines at which the rows of a piece of CSV begin, by their number in the file."""
    rows = formats.read_csv(source, piece.uri, data)
    next(rows)  # the header
    return (line for line, _ in islice(rows, piece.start, piece.stop))


def _json_lines(source: BinaryIO, piece: Piece) -> Iterator[int]:
    """The lines of a piece of JSONL that are not blank, by their number in the file."""
    position = row = 0
    for number, line in enumerate(iter(source.readline, b""), 1):
        if line.strip():
            if piece.start <= (position if piece.by_bytes else row) < piece.stop:
                yield number
            row += 1
        position += len(line)


def parse_lines(
    lines: Sequence[bytes], uri: str, data: DataSettings, *, columns: Collection[Column], keep: bool
) -> Documents:
    """The documents of lines. Raises BadFileError if the last one has no line end and is not JSON: the file was cut."""
    names, documents = _column_names(data, columns), Documents()
    records = []
    for row, line in enumerate(lines):
        record = _parse_line(line, uri, data.encoding, documents.malformed, row)
        records.append(record)
        if row not in documents.malformed and not record.keys() >= (
            required := {names[f] for f in _REQUIRED & names.keys()}
        ):
            documents.absent[row] = _describe_absent(record, required)
        values = {field: record.get(name) for field, name in names.items()}
        documents.ids.append(to_text(values.get("ids")))
        documents.texts.append(values.get("texts"))
        _append_label(documents, values.get("labels"), names)
        documents.splits.append(to_text(values.get("splits")))
        documents.groups.append(to_text(group := values.get("groups")))
        if isinstance(group, (list, dict)):
            kind = type(group).__name__
            documents.malformed.setdefault(
                row, f"the group ({names['groups']}) is a {kind}; expected one value, or null"
            )
    if keep and data.keep:
        columns_of_values = {
            name: [record.get(name) for record in records]
            for name in data.keep
            if any(name in record for record in records)
        }
        _keep_values(documents, columns_of_values, data)
    return documents


def _parse_line(line: bytes, uri: str, encoding: str, malformed: dict[int, str], row: int) -> dict[str, Any]:
    """The object in a line; an empty one, and a reason in `malformed`, if there is none."""
    try:
        record = json.loads(line.removesuffix(b"\n").decode(formats.text_codec(encoding)))
        if isinstance(record, dict):
            return record
        malformed[row] = f"the line is a JSON {type(record).__name__}, expected an object"
    except (ValueError, RecursionError) as error:
        reason = _describe_no_json(error, encoding)
        if not line.endswith(b"\n"):
            raise BadFileError(
                f"{uri} ends inside a line: the last one has no line end and {reason}; was the file cut?"
            ) from None
        malformed[row] = f"the line {reason}"
    return {}


def _describe_no_json(error: Exception, encoding: str) -> str:
    """Why a line is no JSON, by its column: the module counts lines within the line."""
    if isinstance(error, UnicodeDecodeError):
        return formats.not_encoded(error.object[error.start], encoding)
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} in column {error.colno}"
    return f"is not JSON: {error}"


def _describe_absent(record: dict[str, Any], required: Collection[str]) -> str:
    """Which columns a line lacks, and which it has."""
    lacks = " and no ".join(f"'{name}'" for name in required if name not in record)
    return f"the line has no {lacks}; it has {formats.list_columns(record.keys()) or 'none'}"


def _append_label(documents: Documents, value: Any, names: dict[str, str]) -> None:
    """A name, or a list of names; a list that holds anything else makes the row malformed."""
    if not isinstance(value, list):
        documents.labels.append(to_text(value))
        return
    labels = [to_text(element) for element in value]
    if None in labels:
        at = labels.index(None)
        documents.malformed[len(documents.labels)] = (
            f"the label ({names['labels']}) is a list with {_describe_no_name(value[at])} as element {at}; "
            "expected only names, mend the row or leave it out"
        )
        documents.labels.append(None)
    else:
        documents.labels.append([label for label in labels if label is not None])


def _describe_no_name(value: Any) -> str:
    """The kind of value that a row has in place of a name, without its content."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    return "NaN" if value != value else f"a {type(value).__name__}"


def _keep_values(documents: Documents, values: dict[str, list[Any]], data: DataSettings) -> None:
    """Keep columns of JSON values or CSV texts; a row with a value of another type than declared is malformed."""
    columns = {}
    for name, column in values.items():
        columns[name], rejected = parse_column(column, data.keep[name])
        for row in rejected:
            documents.malformed.setdefault(row, f"the value of '{name}' is no {data.keep[name]}")
    if columns:
        documents.kept = pa.table(columns)


# CSV


def _read_csv(
    source: BinaryIO, piece: Piece, data: DataSettings, *, columns: Collection[Column], keep: bool
) -> Iterator[Documents]:
    size = piece.size if piece.by_bytes else 0
    numbered = formats.read_csv(formats.decompressed(formats.buffered(source, size), piece.uri), piece.uri, data)
    (_, header), names = next(numbered), _column_names(data, columns)
    check_columns(header, list(names.values()), piece.uri, header=True)
    kept = [name for name in (data.keep if keep else ()) if name in header]
    rows = (row for _, row in numbered)
    for chunk in _chunks(
        rows if piece.by_bytes else islice(rows, piece.start, piece.stop), lambda row: sum(map(len, row))
    ):
        texts = dict(zip(header, zip(*chunk, strict=True), strict=True))
        documents = Documents()
        for field_name in FIELDS:
            values: Sequence[Any] = texts[names[field_name]] if field_name in names else [None] * len(chunk)
            getattr(documents, field_name).extend(
                values if field_name == "texts" else [value or None for value in values]
            )
        if "labels" in names:
            _refuse_missing_labels(documents, names["labels"])
        _keep_values(documents, {name: list(texts[name]) for name in kept}, data)
        yield documents


def _refuse_missing_labels(documents: Documents, column: str) -> None:
    """Make rows of CSV malformed whose label is what other programs write in place of none."""
    if _MISSING_IN_CSV.isdisjoint(documents.labels):
        return
    for row, label in enumerate(documents.labels):
        if label in _MISSING_IN_CSV:
            documents.malformed[row] = (
                f"the label ({column}) is {label}, which CSV has for a missing one; label the row or leave it out; a "
                f"class that is named so needs another name in the file, such as 'class {label}'"
            )
