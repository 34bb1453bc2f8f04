"""Read the documents of a shard from Parquet, JSONL or CSV, row by row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.data.shards import Piece, Shard
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import open_input, store_errors
from spin.labels.label_space import Label
from spin.settings import DataSettings

Column = Literal["id", "text", "label", "split"]
"""a column by its role; `data.id` and so on name it in the file"""
IDS: tuple[Column, ...] = ("id",)
TEXTS: tuple[Column, ...] = ("text",)
ID_AND_TEXT: tuple[Column, ...] = ("id", "text")
ALL_COLUMNS: tuple[Column, ...] = ("id", "text", "label", "split")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Arrow's codec by file-name ending"""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROW = re.compile(r"(Expected \d+ columns, got \d+): .*")
"""Arrow's message about a CSV row; the row follows, which must not appear in logs"""
_BUFFER = 1 << 20
"""bytes that are decompressed at a time"""
_BLOCK = 1 << 24
"""bytes per request where a file is read from its beginning; no CSV row may be longer"""


@dataclass
class Documents:
    """The rows of a shard in order: four lists of equal length. A column that was not requested holds None."""

    ids: list[str | None] = field(default_factory=list)
    """None for null and empty ids"""
    texts: list[Any] = field(default_factory=list)
    """as the file holds them, which need not be strings"""
    labels: list[Label | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    malformed: dict[int, str] = field(default_factory=dict)
    """rows that are no record or whose list of labels holds something that is no name, each with the reason"""

    def __len__(self) -> int:
        return len(self.ids)


def read_shard(shard: Shard, data: DataSettings, *, columns: Collection[Column] = ID_AND_TEXT) -> Documents:
    """The rows of a shard with the given columns, by default ids and texts.

    Of Parquet only these columns are read; of JSONL and CSV everything is read and only these columns are kept. If the
    settings name no split column, splits are None. Raises BadFileError, naming the file.
    """
    names = _column_names(data, columns)
    documents = Documents()
    for piece in shard.pieces:
        with file_errors(piece.uri):
            if piece.kind == "jsonl":
                _append_lines(documents, _lines(piece), names)
            else:
                tables = _parquet_rows(piece, names) if piece.kind == "parquet" else _csv_rows(piece, names)
                for table in tables:
                    _append_table(documents, table, names)
    return documents


def row_group_sizes(uri: str, data: DataSettings) -> list[int]:
    """The number of rows in each row group. Raises BadFileError if a column is missing or the text is not a string."""
    with _parquet(uri) as parquet:
        _check_columns(parquet.schema_arrow, (data.id, data.text), uri)
        kind = parquet.schema_arrow.field(data.text).type
        if not _is_text(kind):
            raise BadFileError(f"{uri}: column '{data.text}' is {kind}, expected string")
        return [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]


def count_rows(uri: str, kind: str, data: DataSettings) -> int:
    """The number of rows in a CSV file or in compressed JSONL, for which all of it is read."""
    whole = Piece(uri, kind, 0, 1 << 62)
    if kind == "csv":
        return sum(batch.num_rows for batch in _csv_rows(whole, _column_names(data, ID_AND_TEXT)))
    return sum(1 for _ in _lines(whole))


def is_unicode(text: str) -> bool:
    """Whether a string is free of lone surrogates, which cannot be encoded as UTF-8."""
    return text.isascii() or not _SURROGATE.search(text)


def compression_codec(uri: str) -> str | None:
    """Arrow's codec for a file, by its name; None if it is not compressed."""
    return next((codec for ending, codec in COMPRESSIONS.items() if uri.lower().endswith(ending)), None)


def _check_columns(schema: pa.Schema, names: Iterable[str], uri: str) -> None:
    for name in names:
        if (times := schema.names.count(name)) != 1:
            number = f"{times} columns" if times else "no column"
            raise BadFileError(f"{uri} has {number} '{name}'; it has {', '.join(schema.names)}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_text(kind) for is_text in texts)


def _is_list(kind: pa.DataType) -> bool:
    kinds = pa.types
    lists = (
        kinds.is_list,
        kinds.is_large_list,
        kinds.is_fixed_size_list,
        kinds.is_list_view,
        kinds.is_large_list_view,
    )
    return any(is_list(kind) for is_list in lists)


def _column_names(data: DataSettings, columns: Collection[Column]) -> dict[str, str]:
    """The name of each column in the file, by field of `Documents`."""
    named = {"id": ("ids", data.id), "text": ("texts", data.text), "label": ("labels", data.label)}
    if data.split:
        named["split"] = ("splits", data.split)
    return dict(named[column] for column in ALL_COLUMNS if column in columns and column in named)


@contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = open_input(uri)
    with fs.open(path, "rb") as source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        yield parquet


@contextmanager
def _stream(uri: str) -> Iterator[BinaryIO]:
    """A file from its beginning, decompressed."""
    fs, path = open_input(uri)
    with fs.open(path, "rb") as source, io.BufferedReader(source, _BLOCK) as plain:
        codec = compression_codec(uri)
        if codec is None:
            yield plain
            return
        with pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), codec) as packed:
            yield io.BufferedReader(packed, _BUFFER)


def _parquet_rows(piece: Piece, names: dict[str, str]) -> Iterator[pa.Table]:
    with _parquet(piece.uri) as parquet:
        _check_columns(parquet.schema_arrow, names.values(), piece.uri)
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            start, stop = max(piece.start, first), min(piece.stop, first + rows)
            if start < stop:
                table = parquet.read_row_group(group, columns=list(dict.fromkeys(names.values())))
                yield table.slice(start - first, stop - start)
            first += rows


def _csv_rows(piece: Piece, names: dict[str, str]) -> Iterator[pa.Table]:
    columns = list(dict.fromkeys(names.values()))
    convert = pacsv.ConvertOptions(
        include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
    )
    with _stream(piece.uri) as source:
        try:
            reader = pacsv.open_csv(
                source,
                read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),  # threads lose row numbers
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
        except KeyError as error:
            raise BadFileError(f"{piece.uri}: {error.args[0]}; expected a header with {', '.join(columns)}") from None
        first = 0
        for batch in reader:
            start, stop = max(piece.start, first), min(piece.stop, first + batch.num_rows)
            if start < stop:
                yield pa.Table.from_batches([batch]).slice(start - first, stop - start)
            first += batch.num_rows
            if first >= piece.stop:
                return


def _lines(piece: Piece) -> Iterator[bytes]:
    """The lines that are not blank."""
    if piece.by_bytes:
        fs, path = open_input(piece.uri)
        data = fs.cat_file(path, start=piece.start, end=piece.stop)
        yield from (line for line in data.split(b"\n") if line.strip())
        return
    with _stream(piece.uri) as source:
        lines = (line.removesuffix(b"\n") for line in source if line.strip())
        for row, line in enumerate(lines):
            if row >= piece.stop:
                return
            if row >= piece.start:
                yield line


def _append_lines(documents: Documents, lines: Iterator[bytes], names: dict[str, str]) -> None:
    for row, line in enumerate(lines, len(documents)):
        record: Any = None
        try:
            record = json.loads(line.decode("utf-8-sig"))
            if not isinstance(record, dict):
                documents.malformed[row] = f"the line is a JSON {type(record).__name__}, expected an object"
        except (ValueError, RecursionError) as error:
            documents.malformed[row] = f"the line is not JSON: {error}"
        if not isinstance(record, dict):
            record = {}
        values = {field: record.get(name) for field, name in names.items()}
        documents.ids.append(_name(values.get("ids")))
        documents.texts.append(values.get("texts"))
        _append_label(documents, values.get("labels"), names)
        documents.splits.append(_name(values.get("splits")))


def _name(value: Any) -> str | None:
    """An id or a label as text, a number by its digits; None for null, NaN and empty values."""
    if value is None or value == "" or value != value or isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _append_label(documents: Documents, value: Any, names: dict[str, str]) -> None:
    """A name, or a list of names; a list that holds anything else makes the row malformed."""
    if not isinstance(value, list):
        documents.labels.append(_name(value))
        return
    labels = [_name(element) for element in value]
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


def _append_table(documents: Documents, table: pa.Table, names: dict[str, str]) -> None:
    for field_name in ("ids", "texts", "labels", "splits"):
        values = getattr(documents, field_name)
        if field_name not in names:
            values.extend([None] * table.num_rows)
            continue
        column = table[names[field_name]]
        if field_name == "texts":
            values.extend(column.to_pylist())
        elif field_name == "labels" and _is_list(column.type):
            # a list within a list has no cast, and is refused row by row as in JSONL
            lists = column if pa.types.is_nested(column.type.value_type) else pc.cast(column, pa.list_(pa.string()))
            for value in lists.to_pylist():
                _append_label(documents, value, names)
        else:
            values.extend(value or None for value in pc.cast(column, pa.string()).to_pylist())


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Turn the errors of reading an input file into SpinErrors of one line.

    Raises BadFileError for a file that is not of the type that its name ends in, otherwise as `store_errors` does.
    """
    with store_errors(uri):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # an error of the disk or the store, not of the file
            reason = _ROW.sub(r"\1", " ".join(str(error).split()))[:160]
            raise BadFileError(
                f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}"
            ) from None
