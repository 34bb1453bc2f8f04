"""The documents of a shard: what Parquet, JSONL and CSV hold, row by row."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import open_filesystem, store_errors
from spin.labels.label_space import Label
from spin.settings import DataSettings

PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROW = re.compile(r"(Expected \d+ columns, got \d+): .*")
"""what Arrow says of a CSV row, and the row, which is not for logs"""
_SAMPLE = 1 << 20
_BLOCK = 1 << 24
"""bytes asked of a store at a time where a file is read from its beginning; no CSV row may be longer"""


@dataclass(frozen=True)
class Shard:
    """A unit of work: a range of one file, rows of it, or bytes that begin and end at line ends."""

    index: int
    uri: str
    kind: str
    start: int
    stop: int
    by_bytes: bool = False
    documents: int = field(default=0, compare=False)
    """rows, where a range of bytes only tells about how many"""

    @property
    def name(self) -> str:
        return f"{self.index:06d}"


@dataclass
class Documents:
    """The rows of a shard, in order; what a file has no column for is None."""

    ids: list[str | None] = field(default_factory=list)
    texts: list[Any] = field(default_factory=list)
    labels: list[Label | None] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    malformed: dict[int, str] = field(default_factory=dict)
    """rows that could not be read as a record, or whose list of labels holds more than names, and why"""

    def __len__(self) -> int:
        return len(self.ids)


def read_shard(shard: Shard, data: DataSettings, *, labelled: bool = False) -> Documents:
    """The rows of a shard; without `labelled`, only ids and texts. Raises BadFileError, naming the file."""
    columns = _columns(data, labelled)
    documents = Documents()
    with reading(shard.uri):
        if shard.kind == "jsonl":
            _read_lines(_lines(shard), columns, documents)
        else:
            tables = _parquet_rows(shard, columns) if shard.kind == "parquet" else _csv_rows(shard, columns)
            for table in tables:
                _append(documents, table, columns)
    return documents


def parquet_groups(uri: str, data: DataSettings) -> list[int]:
    """The rows of each row group. Raises BadFileError where the columns are not there or the text is none."""
    with _parquet(uri) as parquet:
        _check_columns(parquet.schema_arrow, (data.id, data.text), uri)
        kind = parquet.schema_arrow.field(data.text).type
        if not _is_text(kind):
            raise BadFileError(f"{uri}: column '{data.text}' is {kind}, expected string")
        return [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]


def count_rows(uri: str, kind: str, data: DataSettings) -> int:
    """The rows of a CSV file or of packed JSONL, which only reading all of it can tell."""
    whole = Shard(0, uri, kind, 0, 1 << 62)
    if kind == "csv":
        return sum(batch.num_rows for batch in _csv_rows(whole, _columns(data, labelled=False)))
    return sum(1 for _ in _lines(whole))


def is_unicode(text: str) -> bool:
    """Whether a string holds no lone surrogates, which no encoder takes and no Arrow string can hold."""
    return text.isascii() or not _SURROGATE.search(text)


def compression_codec(uri: str) -> str | None:
    """What a file is packed with, by its name."""
    return next((codec for ending, codec in PACKED.items() if uri.lower().endswith(ending)), None)


def _check_columns(schema: pa.Schema, names: Iterable[str], uri: str) -> None:
    for name in names:
        if (times := schema.names.count(name)) != 1:
            found = f"{times} columns" if times else "no column"
            raise BadFileError(f"{uri} has {found} '{name}'; it has {', '.join(schema.names)}")


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


def _columns(data: DataSettings, labelled: bool) -> dict[str, str]:
    """Field of `Documents` to column."""
    wanted = {"ids": data.id, "texts": data.text}
    if labelled:
        wanted |= {"labels": data.label} | ({"splits": data.split} if data.split else {})
    return wanted


@contextmanager
def _parquet(uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as source, pq.ParquetFile(source, page_checksum_verification=True) as parquet:
        yield parquet


@contextmanager
def _stream(uri: str) -> Iterator[BinaryIO]:
    """A file from its beginning, unpacked."""
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as source, io.BufferedReader(source, _BLOCK) as plain:
        codec = compression_codec(uri)
        if codec is None:
            yield plain
            return
        with pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), codec) as packed:
            yield io.BufferedReader(packed, _SAMPLE)


def _parquet_rows(shard: Shard, columns: dict[str, str]) -> Iterator[pa.Table]:
    with _parquet(shard.uri) as parquet:
        _check_columns(parquet.schema_arrow, columns.values(), shard.uri)
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            start, stop = max(shard.start, first), min(shard.stop, first + rows)
            if start < stop:
                table = parquet.read_row_group(group, columns=list(dict.fromkeys(columns.values())))
                yield table.slice(start - first, stop - start)
            first += rows


def _csv_rows(shard: Shard, columns: dict[str, str]) -> Iterator[pa.Table]:
    names = list(dict.fromkeys(columns.values()))
    convert = pacsv.ConvertOptions(
        include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    with _stream(shard.uri) as source:
        try:
            reader = pacsv.open_csv(
                source,
                read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),  # threads lose row numbers
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
        except KeyError as error:
            raise BadFileError(f"{shard.uri}: {error.args[0]}; expected a header with {', '.join(names)}") from None
        first = 0
        for batch in reader:
            start, stop = max(shard.start, first), min(shard.stop, first + batch.num_rows)
            if start < stop:
                yield pa.Table.from_batches([batch]).slice(start - first, stop - start)
            first += batch.num_rows
            if first >= shard.stop:
                return


def _lines(shard: Shard) -> Iterator[bytes]:
    """The lines that are not blank."""
    if shard.by_bytes:
        fs, path = open_filesystem(shard.uri)
        data = fs.cat_file(path, start=shard.start, end=shard.stop)
        yield from (line for line in data.split(b"\n") if line.strip())
        return
    with _stream(shard.uri) as source:
        lines = (line.removesuffix(b"\n") for line in source if line.strip())
        for row, line in enumerate(lines):
            if row >= shard.stop:
                return
            if row >= shard.start:
                yield line


def _read_lines(lines: Iterator[bytes], columns: dict[str, str], documents: Documents) -> None:
    for row, line in enumerate(lines):
        record: Any = None
        try:
            record = json.loads(line.decode("utf-8-sig"))
            if not isinstance(record, dict):
                documents.malformed[row] = f"the line is a JSON {type(record).__name__}, expected an object"
        except (ValueError, RecursionError) as error:
            documents.malformed[row] = f"the line is not JSON: {error}"
        if not isinstance(record, dict):
            record = {}
        found = {field: record.get(column) for field, column in columns.items()}
        documents.ids.append(_name(found["ids"]))
        documents.texts.append(found["texts"])
        _append_label(documents, found.get("labels"), columns)
        documents.splits.append(_name(found.get("splits")))


def _name(value: Any) -> str | None:
    """An id or a label as text: a number by its digits; null, NaN and what is empty is no name."""
    if value is None or value == "" or value != value or isinstance(value, (dict, list)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _append_label(documents: Documents, value: Any, columns: dict[str, str]) -> None:
    """A name, or a list of names; a list that holds anything else makes the row malformed."""
    if not isinstance(value, list):
        documents.labels.append(_name(value))
        return
    names = [_name(element) for element in value]
    if None in names:
        at = names.index(None)
        documents.malformed[len(documents.labels)] = (
            f"the label ({columns['labels']}) is a list with {_nameless(value[at])} as element {at}; "
            "expected only names, mend the row or leave it out"
        )
        documents.labels.append(None)
    else:
        documents.labels.append([name for name in names if name is not None])


def _nameless(value: Any) -> str:
    """What stands where a name should, without its content."""
    if value is None:
        return "null"
    if value == "":
        return "an empty string"
    return "NaN" if value != value else f"a {type(value).__name__}"


def _append(documents: Documents, table: pa.Table, columns: dict[str, str]) -> None:
    for name in ("ids", "texts", "labels", "splits"):
        values = getattr(documents, name)
        if name not in columns:
            values.extend([None] * table.num_rows)
            continue
        column = table[columns[name]]
        if name == "texts":
            values.extend(column.to_pylist())
        elif name == "labels" and _is_list(column.type):
            # a list within a list has no cast, and is refused row by row as in JSONL
            lists = column if pa.types.is_nested(column.type.value_type) else pc.cast(column, pa.list_(pa.string()))
            for value in lists.to_pylist():
                _append_label(documents, value, columns)
        else:
            values.extend(value or None for value in pc.cast(column, pa.string()).to_pylist())


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Storage errors in one line, and a file that is not what its name says named."""
    with store_errors(uri):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise  # the disk or the store, not the file
            reason = _ROW.sub(r"\1", " ".join(str(error).split()))[:160]
            raise BadFileError(
                f"{uri} cannot be read, it is corrupt, truncated or not what its name says: {reason}"
            ) from None
