"""Valid files of every format, encoding and compression, and seeded mutations of them."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow as pa

from tests.hostile.parquet_edits import Page, add_footer, change_pages, read_footer, write_parquet
from tests.hostile.thrift import BINARY, INTEGERS, Items, Struct, walk, write_struct

_ROWS = 60
_INSERTED = 5000
"""most bytes that a mutation inserts"""
_NUMBERS = [0, 1, 2, 7, 8, 31, 32, 63, 64, 127, 128, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 63) - 1]
_EXTREMES = [*_NUMBERS, *(-number for number in _NUMBERS), -(1 << 63)]
_BYTES = b"\0\n\r\t\"\\,;{}[]:'0a\x1a\x1b\x7f\x80\xc3\xed\xfe\xff"
"""what means something to a parser"""
_NOT_PARSED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)


@dataclass(frozen=True)
class Base:
    """A valid file."""

    name: str
    ending: str
    """of file names"""
    content: bytes
    """not compressed, except for Parquet, whose pages are"""
    compress: Callable[[bytes], bytes]
    parquet: bool = False

    @property
    def kind(self) -> str:
        """Format and compression for a table: that of Parquet alone."""
        return "parquet" if self.parquet else self.ending.removeprefix(".")


def build_bases() -> list[Base]:
    """The valid files, always the same."""
    return [*_parquet_bases(), *_text_bases()]


def _parquet_bases() -> list[Base]:
    table = pa.table(
        {
            "id": [f"d{n}" for n in range(_ROWS)],
            "source": [("mail", "web", None)[n % 3] for n in range(_ROWS)],
            "number": pa.array(range(_ROWS), pa.int64()),
            "weight": pa.array([n / 7 for n in range(_ROWS)], pa.float64()),
            "label": [["a", "b"][: n % 3] for n in range(_ROWS)],
            "text": [None if n % 20 == 19 else f"some text {n % 11} of a document" for n in range(_ROWS)],
        }
    )
    plain: dict[str, Any] = {"column_encoding": {"text": "PLAIN", "weight": "BYTE_STREAM_SPLIT"}}
    options: dict[str, dict[str, Any]] = {
        **{codec: {"compression": codec} for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd")},
        "dictionary": {"use_dictionary": True, "store_schema": True},
        "dictionary-zstd": {"use_dictionary": True, "compression": "zstd", "data_page_version": "2.0"},
        "delta-lengths": {"column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY", "number": "DELTA_BINARY_PACKED"}},
        "delta": {"column_encoding": {"text": "DELTA_BYTE_ARRAY", "id": "DELTA_BYTE_ARRAY"}, "data_page_size": 200},
        "split": {**plain, "write_statistics": True},
        "v2": {**plain, "data_page_version": "2.0", "compression": "snappy"},
        "groups": {"row_group_size": 13, "use_dictionary": True, "write_page_index": True},
        "checksums": {"write_page_checksum": True, "compression": "zstd"},
    }
    return [
        Base(f"parquet-{name}", ".parquet", write_parquet(table, **each), bytes, parquet=True)
        for name, each in options.items()
    ]


def _text_bases() -> list[Base]:
    rows = [{"id": f"d{n}", "source": "web", "text": f'some text {n}, "quoted"; ü € 文'} for n in range(_ROWS)]
    jsonl = "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(rows)).encode()
    quoted = ('"' + row["text"].replace('"', '""') + '"' for row in rows)
    csv = "id,source,text\n" + "".join(f"d{n},web,{text}\n" for n, text in enumerate(quoted))
    compressions: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": lambda data: gzip.compress(data, mtime=0),
        ".bz2": bz2.compress,
        ".zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
    }
    return [
        Base(f"{name}{ending}", f".{name}{ending}", content, compress)
        for name, content in (("jsonl", jsonl), ("csv", csv.encode()))
        for ending, compress in compressions.items()
    ]


def mutate(base: Base, random: Random) -> bytes:
    """The file with one to four mutations: of its bytes, of what is compressed, or of structures of Parquet."""
    content = base.content
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        if base.parquet:
            (change,) = random.choices((_mutate_structure, _mutate_body, mutate_bytes), weights=(6, 3, 1))
        else:
            (change,) = random.choices((_mutate_text, mutate_bytes, _keep), weights=(5, 2, 3))
        content = change(content, random)
    written = base.compress(content)
    outside = not base.parquet and (content == base.content or random.random() < 0.2)
    return mutate_bytes(written, random) if outside else written


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """The data with some bytes flipped, replaced, cut, inserted or doubled."""
    at, length = random.randrange(len(data) + 1), random.choice((1, 2, 4, 16, 100, 1000))
    return random.choice(_BYTE_MUTATIONS)(data, at, length, random)


def _flip_bits(data: bytes, at: int, length: int, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(min(length, 16) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _replace(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at] + random.randbytes(length) + data[at + length :]


def _replace_with_number(data: bytes, at: int, length: int, random: Random) -> bytes:
    width = random.choice((1, 4, 8))
    number = random.choice(_EXTREMES) % (1 << 8 * width)
    return data[:at] + number.to_bytes(width, random.choice(("little", "big"))) + data[at + width :]


def _replace_with_meaning(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at] + bytes([random.choice(_BYTES)]) + data[at + 1 :]


def _cut_end(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at]


def _cut_out(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at] + data[at + length :]


def _insert_run(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at] + bytes([random.choice(_BYTES)]) * random.randrange(1, _INSERTED) + data[at:]


def _insert_random(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[:at] + random.randbytes(length) + data[at:]


def _double(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data[: at + length] + data[at:]


def _append_beginning(data: bytes, at: int, length: int, random: Random) -> bytes:
    return data + data[:at]


_BYTE_MUTATIONS = (
    _flip_bits,
    _replace,
    _replace_with_number,
    _replace_with_meaning,
    _cut_end,
    _cut_out,
    _insert_run,
    _insert_random,
    _double,
    _append_beginning,
)


def _keep(data: bytes, random: Random) -> bytes:
    return data


def _mutate_text(data: bytes, random: Random) -> bytes:
    """The text with a character that means something in place of another, between two, or many times."""
    at = random.randrange(len(data) + 1)
    return random.choice((_replace_with_meaning, _insert_run, _replace_with_meaning, _double))(data, at, 16, random)


def _mutate_body(parquet: bytes, random: Random) -> bytes:
    """The file with other bytes before the footer, as many as there were."""
    stop = max(1, len(parquet) - 8 - int.from_bytes(parquet[-8:-4], "little"))
    body = random.choice((_flip_bits, _replace, _replace_with_number))(
        parquet[:stop], random.randrange(stop), random.choice((1, 4, 16)), random
    )
    return body[:stop] + parquet[stop:]


def _mutate_structure(parquet: bytes, random: Random) -> bytes:
    """The file with a lie in its footer or in a page of its last column, or as it is where it cannot be parsed."""
    try:
        return random.choice((_mutate_footer, _mutate_footer, _mutate_pages))(parquet, random)
    except _NOT_PARSED:  # an earlier mutation has broken it
        return mutate_bytes(parquet, random)


def _mutate_footer(parquet: bytes, random: Random) -> bytes:
    body, footer = read_footer(parquet)
    if random.random() < 0.1:
        return add_footer(body, footer, length=random.choice(_EXTREMES))
    if random.random() < 0.15:
        return add_footer(body, mutate_bytes(write_struct(footer), random))
    _lie(footer, random)
    return add_footer(body, footer)


def _mutate_pages(parquet: bytes, random: Random) -> bytes:
    def change(pages: list[Page]) -> None:
        page = random.choice(pages)
        if random.random() < 0.6:
            _lie(page.header, random)
        else:
            page.body = mutate_bytes(page.body, random)

    return change_pages(parquet, change)


def _lie(within: Struct, random: Random) -> None:
    """Change one field: a number, a text, the length of a list, or the items of a list."""
    owner, number, kind = random.choice(list(walk(within)))
    value = owner.fields[number][1]
    if kind in INTEGERS:
        near = value + random.choice((-1, 1, -8, 8, 100, value, 1 << 20))
        owner[number] = random.choice((near, random.choice(_EXTREMES), random.choice(range(16))))
    elif kind == BINARY:
        owner[number] = mutate_bytes(value, random)
    elif isinstance(value, Items) and value.values:
        _change_items(value, random)
    else:
        del owner.fields[number]


def _change_items(items: Items, random: Random) -> None:
    at = random.randrange(len(items.values))
    choice = random.randrange(4)
    if choice == 0:
        items.length = random.choice((0, 1, 14, 15, 1000, 999_999, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
    elif choice == 1:
        del items.values[at]
    elif choice == 2:
        items.values.insert(random.randrange(len(items.values)), items.values[at])
    else:
        items.values += items.values[at:] * random.choice((1, 2, 100))
