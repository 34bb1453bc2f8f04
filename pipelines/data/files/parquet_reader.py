"""Parquet, in ranges of bytes that hold whole row groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.files.formats import (
    BLOCK,
    MAX_BYTES,
    DecodedBytes,
    check_column_count,
    check_columns,
    long_row,
    unreadable_file,
)
from pipelines.data.files.kept_columns import keep_column
from pipelines.data.files.reader import FIELDS, Documents, Reader, Role, append_label, names_by_field
from pipelines.data.files.shards import Piece
from pipelines.data.files.text_values import column_to_text
from pipelines.service_errors import BadFileError
from spin.settings import DataSettings

_ROWS, _ROWS_BYTES = 4096, 1 << 23
"""most rows that are held at a time, and about how many bytes"""
_ROW_BYTES = 16
"""bytes that a row takes at least, also if it holds nothing but nulls"""


class ParquetReader(Reader):
    """Parquet, of which only the columns that are wanted are read."""

    name, title, endings, compressible, window = "parquet", "Parquet", (".parquet",), False, 8 * MAX_BYTES

    def read(
        self, source: BinaryIO, piece: Piece, data: DataSettings, columns: Collection[Role]
    ) -> Iterator[Documents]:
        with _open(source) as parquet:
            names, kept = _check_columns(parquet, piece.uri, data, columns)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            starts, firsts = _group_starts(parquet), [0, *accumulate(sizes)]
            groups = [group for group, start in enumerate(starts) if piece.start <= start < piece.stop]
            row = firsts[groups[0]] if groups else 0
            decoded, rows = DecodedBytes(piece.uri, piece.size, data), 0
            for table in _read_groups(source, parquet, groups, list(dict.fromkeys([*names.values(), *kept]))):
                decoded.add(table.nbytes + _ROW_BYTES * len(table))
                rows += len(table)
                for part in _divide(table, piece.uri, data):
                    yield _table_documents(part, piece.uri, data, names, kept, row)
            expected = sum(sizes[group] for group in groups)
            # guarded by test_a_parquet_file_that_holds_other_rows_than_it_says_is_bad
            if rows != expected or sum(sizes) != parquet.metadata.num_rows:
                told = f"{expected:,} rows by its row groups and {parquet.metadata.num_rows:,} by its footer"
                raise unreadable_file(piece.uri, f"it has {told}, and {rows:,} were read of these row groups")

    def column_names(self, source: BinaryIO, uri: str, data: DataSettings) -> Sequence[str]:
        with _open(source) as parquet:
            return list(parquet.schema_arrow.names)


def _open(source: BinaryIO, *, stream: bool = False, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file; `stream` reads a row group in pieces of `BLOCK` bytes, else it is read in few large requests.

    With the metadata of the file, they are not read again.
    """
    buffering: dict[str, Any] = {"buffer_size": BLOCK, "pre_buffer": False} if stream else {"pre_buffer": True}
    return pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True, **buffering)


def _check_columns(
    parquet: pq.ParquetFile, uri: str, data: DataSettings, columns: Collection[Role]
) -> tuple[dict[str, str], list[str]]:
    """The name of each column in the file, by field of `Documents`, and the kept columns that it has.

    Raises BadFileError if one is not there once, if the text is not a string, or if the output has no type for one.
    """
    check_column_count(parquet.metadata.num_columns, uri, data)
    names, schema = names_by_field(data, columns), parquet.schema_arrow
    check_columns(schema.names, list(names.values()), uri)
    if "texts" in names and not _is_text(schema.field(data.text).type):
        raise BadFileError(f"{uri}: column '{data.text}' is {schema.field(data.text).type}, expected string")
    kept = [name for name in data.keep if name in schema.names]
    check_columns(schema.names, kept, uri)
    return names, kept


def _read_groups(
    source: BinaryIO, parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """The columns of row groups, a few rows at a time. Small groups are requested together, large ones in pieces."""
    size = sum(column_bytes(parquet, columns, group) for group in range(parquet.num_row_groups))
    rows = max(1, min(_ROWS, _ROWS_BYTES * parquet.metadata.num_rows // max(1, size)))
    for small, together in _join_groups(parquet, groups, columns):
        with _open(source, stream=not small, metadata=parquet.metadata) as file:
            for batch in file.iter_batches(rows, row_groups=together, columns=list(columns), use_threads=False):
                yield _decode_dictionaries(pa.Table.from_batches([batch]))


def _decode_dictionaries(table: pa.Table) -> pa.Table:
    """The same rows with columns of plain values, so that their bytes are known."""
    for at, field in enumerate(table.schema):
        if (kind := _plain_type(field.type)) != field.type:
            table = table.set_column(at, pa.field(field.name, kind), pc.cast(table.column(at), kind))
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary, also of one in lists."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def _divide(table: pa.Table, uri: str, data: DataSettings) -> Iterator[pa.Table]:
    """Rows in parts of bounded bytes: rows of very different lengths may have come together.

    Raises BadFileError for a row that is too long.
    """
    if table.nbytes <= min(2 * _ROWS_BYTES, data.max_row_bytes):
        yield table
    elif table.num_rows == 1:
        if table.nbytes > data.max_row_bytes:
            raise long_row(uri, "row", data.max_row_bytes)
        yield table
    else:
        half = table.num_rows // 2
        yield from _divide(table.slice(0, half), uri, data)
        yield from _divide(table.slice(half), uri, data)


def _join_groups(
    parquet: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]
) -> Iterator[tuple[bool, list[int]]]:
    """Adjacent row groups that have at most `BLOCK` bytes together, and whether they do: one alone may have more."""
    # Arrow cannot read a batch of lists of dictionaries from two row groups
    apart = any(pa.types.is_nested(parquet.schema_arrow.field(column).type) for column in columns)
    joined: list[int] = []
    size = 0
    for group in groups:
        more = column_bytes(parquet, columns, group)
        if joined and (apart or size + more > BLOCK):
            yield size <= BLOCK, joined
            joined, size = [], 0
        joined.append(group)
        size += more
    if joined:
        yield size <= BLOCK, joined


def column_bytes(parquet: pq.ParquetFile, columns: Sequence[str], group: int) -> int:
    """The bytes of columns, and of what is nested in them, in a row group before compression."""
    metadata = parquet.metadata.row_group(group)
    total = 0
    for chunk in map(metadata.column, range(metadata.num_columns)):
        if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in columns):
            total += chunk.total_uncompressed_size
    return total


def _table_documents(
    table: pa.Table, uri: str, data: DataSettings, names: dict[str, str], kept: Sequence[str], row: int
) -> Documents:
    documents = Documents(row=row)
    for field_name in FIELDS:
        values = getattr(documents, field_name)
        if field_name not in names:
            values.extend([None] * table.num_rows)
            continue
        column = table[names[field_name]]
        if field_name == "texts":
            values.extend(column.to_pylist())
        elif field_name == "labels" and _is_list(column.type):
            for value in _label_lists(column):
                append_label(documents, value, names)
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


def _group_starts(parquet: pq.ParquetFile) -> list[int]:
    """The byte at which each row group begins."""
    starts = []
    for group in range(parquet.num_row_groups):
        column = parquet.metadata.row_group(group).column(0)
        dictionary = column.dictionary_page_offset
        starts.append(column.data_page_offset if dictionary is None else min(dictionary, column.data_page_offset))
    return starts


def _is_text(kind: pa.DataType) -> bool:
    """Whether the values of an Arrow type are strings, or all null."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in texts)


def _is_list(kind: pa.DataType) -> bool:
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
