"""Change the footer and the pages of a Parquet file, as no writer would."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.thrift import Struct, read_struct, write_struct

MAGIC = b"PAR1"
# fields of the footer
SCHEMA, NUM_ROWS, ROW_GROUPS, METADATA = 2, 3, 4, 5
# fields of an element of the schema
TYPE, TYPE_LENGTH, REPETITION, NAME, CHILDREN, CONVERTED, LOGICAL = 1, 2, 3, 4, 5, 6, 10
# fields of a row group
COLUMNS, GROUP_BYTES, GROUP_ROWS = 1, 2, 3
# fields of a column chunk and of its description
FILE_PATH, CHUNK_META = 1, 3
CODEC, NUM_VALUES, UNCOMPRESSED, COMPRESSED, DATA_OFFSET, DICTIONARY_OFFSET = 4, 5, 6, 7, 9, 11
# fields of a page header, and of what it says of a page of data
PAGE_UNCOMPRESSED, PAGE_COMPRESSED, PAGE_CRC, DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 2, 3, 4, 5, 7, 8
PAGE_VALUES, PAGE_ENCODING = 1, 2


@dataclass
class Page:
    """A page of a column."""

    header: Struct
    body: bytes


def write_parquet(table: pa.Table | dict[str, Any], **options: Any) -> bytes:
    """A Parquet file without statistics and indexes, whose values are not dictionary-encoded unless an option says so.

    A dictionary of columns becomes a table without nulls.
    """
    if isinstance(table, dict):
        columns = {name: pa.array(values) for name, values in table.items()}
        fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
        table = pa.table(list(columns.values()), schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    defaults: dict[str, Any] = {
        "use_dictionary": False,
        "write_statistics": False,
        "compression": "none",
        "store_schema": False,
    }
    pq.write_table(table, sink, **(defaults | options))
    return bytes(sink.getvalue())


def read_footer(parquet: bytes) -> tuple[bytes, Struct]:
    """What is before the footer of a file, and the footer."""
    (length,) = struct.unpack("<I", parquet[-8:-4])
    return parquet[: -8 - length], read_struct(parquet, len(parquet) - 8 - length)[0]


def add_footer(body: bytes, footer: Struct | bytes, length: int | None = None) -> bytes:
    """A file of a body and a footer, which may claim another length than it has."""
    written = footer if isinstance(footer, bytes) else write_struct(footer)
    return body + written + struct.pack("<I", len(written) if length is None else length & 0xFFFFFFFF) + MAGIC


def change_footer(parquet: bytes, change: Callable[[Struct], None]) -> bytes:
    """The file with another footer."""
    body, footer = read_footer(parquet)
    change(footer)
    return add_footer(body, footer)


def change_chunk(parquet: bytes, **values: int) -> bytes:
    """The file with other numbers in the description of the last column of the first row group, by field names."""

    def change(footer: Struct) -> None:
        for name, value in values.items():
            last_chunk(footer)[globals()[name]] = value

    return change_footer(parquet, change)


def last_chunk(footer: Struct) -> Struct:
    """The description of the last column of the first row group."""
    described: Struct = footer[ROW_GROUPS][0][COLUMNS][-1][CHUNK_META]
    return described


def change_pages(parquet: bytes, change: Callable[[list[Page]], None]) -> bytes:
    """The file, of one row group, with other pages of its last column.

    The footer says the sizes that the headers of the pages say.
    """
    body, footer = read_footer(parquet)
    chunk = last_chunk(footer)
    start = chunk[DICTIONARY_OFFSET] if DICTIONARY_OFFSET in chunk else chunk[DATA_OFFSET]
    pages, at, stop = [], start, start + chunk[COMPRESSED]
    while at < stop:
        header, at = read_struct(body, at)
        pages.append(Page(header, body[at : at + header[PAGE_COMPRESSED]]))
        at += header[PAGE_COMPRESSED]
    change(pages)
    written = [write_struct(page.header) for page in pages]
    if DICTIONARY_OFFSET in chunk:
        chunk[DATA_OFFSET] = start + len(written[0]) + len(pages[0].body)
    chunk[COMPRESSED] = sum(len(head) + len(page.body) for head, page in zip(written, pages, strict=True))
    chunk[UNCOMPRESSED] = sum(
        len(head) + page.header[PAGE_UNCOMPRESSED] for head, page in zip(written, pages, strict=True)
    )
    content = b"".join(head + page.body for head, page in zip(written, pages, strict=True))
    return add_footer(body[:start] + content, footer)


def change_body(parquet: bytes, body: bytes, uncompressed: int, *, page: int = -1) -> bytes:
    """The file with another content of a page of its last column, by default the last one."""

    def change(pages: list[Page]) -> None:
        pages[page].body = body
        pages[page].header[PAGE_COMPRESSED] = len(body)
        pages[page].header[PAGE_UNCOMPRESSED] = uncompressed

    return change_pages(parquet, change)
