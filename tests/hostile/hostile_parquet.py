"""Parquet files that were made to harm."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pyarrow as pa

from tests.hostile.bombs import MEGABYTE, repeat_brotli, repeat_gzip, repeat_zstd, run_of_lz4, run_of_snappy
from tests.hostile.hostile_file import HostileFile, bad, good, harmless
from tests.hostile.parquet_edits import (
    CHILDREN,
    COLUMNS,
    CONVERTED,
    DATA_PAGE,
    DICTIONARY_PAGE,
    FILE_PATH,
    GROUP_ROWS,
    LOGICAL,
    MAGIC,
    METADATA,
    NAME,
    NUM_ROWS,
    PAGE_COMPRESSED,
    PAGE_ENCODING,
    PAGE_UNCOMPRESSED,
    PAGE_VALUES,
    REPETITION,
    ROW_GROUPS,
    SCHEMA,
    TYPE,
    TYPE_LENGTH,
    Page,
    add_footer,
    change_body,
    change_chunk,
    change_footer,
    change_pages,
    read_footer,
    write_parquet,
)
from tests.hostile.thrift import BINARY, STRUCT, Items, Struct

_ROWS = 20
_MOST, _LONGEST = (1 << 31) - 1, (1 << 63) - 1
_TEXT = {"id": [f"d{n}" for n in range(_ROWS)], "text": [f"some text {n % 3}" for n in range(_ROWS)]}
_UNNOTICED = {
    *(f"chunk-num_values-{value}.parquet" for value in (10, _MOST, _LONGEST)),
    *(f"chunk-data_offset-{value}.parquet" for value in ("beyond", _LONGEST)),
    *(f"page-uncompressed-{value}.parquet" for value in (0, _MOST)),
    *(f"page-values-{value}.parquet" for value in (1000, _MOST)),
    "bit-width-0.parquet",
    "abort-list-2.parquet",
    "schema-repetition-99.parquet",
}
"""lies by which no row is lost, so that a reader need not notice them"""


def parquet_files() -> Iterator[HostileFile]:
    """Parquet files, whose pages are bombs or whose metadata lie."""
    parts = (_bombs, _rows_of_nothing, _lying_footers, _lying_chunks, _lying_pages, _schemas, _wrong_types)
    for file in (file for part in parts for file in part()):
        yield replace(file, expected="any") if file.name in _UNNOTICED else file


def _bombs() -> Iterator[HostileFile]:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 12_000, pa.int32()), pa.array(["x" * MEGABYTE]))
    table = pa.table({"id": [str(n) for n in range(12_000)], "text": texts})
    asked = write_parquet(
        table, use_dictionary=["text"], compression="zstd", dictionary_pagesize_limit=2 * MEGABYTE, compression_level=19
    )
    yield bad("dictionary-12-gb.parquet", "a dictionary of 1 MB that 12,000 rows refer to: 12 GB of text", asked)
    # a page of text is the length of each value and its bytes: the zeros are empty values
    zeros = repeat_zstd(b"\0" * (8 * MEGABYTE), 64)
    page = change_body(write_parquet(_TEXT, compression="zstd"), zeros, 512 * MEGABYTE)
    yield harmless("page-512-mb.parquet", "a page of 20 rows that is 512 MB", page)
    yield bad(
        "cell-300-mb.parquet", "a value of 300 MB in zstd", _one_cell("zstd", repeat_zstd(b"x" * MEGABYTE, 300), 300)
    )
    yield bad(
        "cell-1900-mb.parquet",
        "a value of 1.9 GB in zstd",
        _one_cell("zstd", repeat_zstd(b"x" * (19 * MEGABYTE), 100), 1900),
    )
    for codec, repeat in (("gzip", repeat_gzip), ("brotli", repeat_brotli)):
        page = repeat(b"x" * MEGABYTE, 300, _length(300 * MEGABYTE))
        cell = _one_cell(codec, page, 300, whole=True)
        yield bad(f"cell-300-mb-{codec}.parquet", f"a value of 300 MB in {codec}", cell)
    lz4 = run_of_lz4(_length(300 * MEGABYTE) + b"x", 300 * MEGABYTE - 1)
    yield bad("cell-300-mb-lz4.parquet", "a value of 300 MB in lz4", _one_cell("lz4", lz4, 300, whole=True))
    snappy = run_of_snappy(_length(65 * MEGABYTE) + b"x", 65 * MEGABYTE - 1)
    yield bad("cell-65-mb-snappy.parquet", "a value of 65 MB in snappy", _one_cell("snappy", snappy, 65, whole=True))


def _rows_of_nothing() -> Iterator[HostileFile]:
    nulls = pa.table({name: pa.nulls(6_000_000, pa.string()) for name in ("id", "text")})
    yield bad("rows-6-million.parquet", "6 million rows of nulls", write_parquet(nulls, compression="zstd"))


def _length(value: int) -> bytes:
    return struct.pack("<I", value)


def _one_cell(codec: str, body: bytes, megabytes: int, *, whole: bool = False) -> bytes:
    """A file of one text; the body is that of its page, or without the length of the text, in frames of zstd."""
    page = body if whole else repeat_zstd(_length(megabytes * MEGABYTE), 1) + body
    return change_body(write_parquet({"id": ["b"], "text": ["t"]}, compression=codec), page, megabytes * MEGABYTE + 4)


def _lying_footers() -> Iterator[HostileFile]:
    parquet = write_parquet(_TEXT)
    for rows in (-1, 0, 10, _LONGEST):
        yield bad(
            f"rows-{rows}.parquet",
            f"the footer says {rows} rows",
            change_footer(parquet, _set(_root, NUM_ROWS, rows)),
        )
    yield from _lying_groups(parquet)
    body, footer = read_footer(parquet)
    for length in (0, 8, len(parquet), _MOST, -1):
        yield bad(
            f"footer-length-{length}.parquet",
            f"the footer says it has {length} bytes",
            add_footer(body, footer, length),
        )
    yield bad("no-footer.parquet", "the footer is cut off", body)
    yield bad("cut.parquet", "the last byte is cut off", parquet[:-1])
    yield bad("beginning-cut.parquet", "the first 50 bytes are cut off", parquet[50:])
    yield bad("magic-alone.parquet", "nothing but the magic number", MAGIC * 3)
    yield bad("encrypted.parquet", "the magic number of an encrypted footer", b"PARE" + parquet[4:-4] + b"PARE")
    yield bad("zeros-within.parquet", "its pages are zeros", MAGIC + bytes(len(body) - 4) + parquet[len(body) :])
    for number, name in ((SCHEMA, "schema"), (ROW_GROUPS, "row groups")):
        lying = read_footer(parquet)[1]
        lying.fields[number][1].length = _MOST
        yield bad(
            f"list-of-{name.replace(' ', '-')}.parquet",
            f"the list of the {name} says 2^31 - 1 items",
            add_footer(body, lying),
        )
    yield bad("garbage.parquet", "bytes after the footer", parquet + b"garbage")
    yield good("no-groups.parquet", "no row group", write_parquet(pa.table(_TEXT).slice(0, 0)), empty=True)


def _lying_groups(parquet: bytes) -> Iterator[HostileFile]:
    for rows in (-1, 0, 5, 10**6, _LONGEST):
        lie = change_footer(parquet, _set(_group, GROUP_ROWS, rows))
        yield bad(f"group-rows-{rows}.parquet", f"the row group says {rows} rows", lie)
    yield bad(
        "groups-20k.parquet",
        "a row group 20,000 times",
        change_footer(parquet, _repeat_groups),
    )
    yield bad(
        "groups-named-twice.parquet",
        "the only row group is named twice, the rows of one are counted",
        change_footer(parquet, _name_group_twice),
    )


def _name_group_twice(footer: Struct) -> None:
    footer[ROW_GROUPS].append(_group(footer))


def _repeat_groups(footer: Struct) -> None:
    footer[ROW_GROUPS] = footer[ROW_GROUPS] * 20_000  # within what Thrift reads at most


def _lying_chunks() -> Iterator[HostileFile]:
    parquet = write_parquet(_TEXT, use_dictionary=True, compression="zstd")
    lies = {
        "NUM_VALUES": (-1, 0, 10, _MOST, _LONGEST),
        "COMPRESSED": (-1, 0, 10, _MOST, _LONGEST),
        "DATA_OFFSET": (-1, 0, len(parquet), _LONGEST),
        "DICTIONARY_OFFSET": (-1, len(parquet), _LONGEST),
        "CODEC": (0, 1, 3, 99, -1),
    }
    for name, values in lies.items():
        for value in values:
            phrase = f"the description of a column says {name.lower().replace('_', ' ')} {value}"
            shown = "beyond" if value == len(parquet) else value
            yield bad(f"chunk-{name.lower()}-{shown}.parquet", phrase, change_chunk(parquet, **{name: value}))
    for value in (-1, 0, 1, _LONGEST):
        phrase = f"the description of a column says {value} bytes before compression"
        yield harmless(f"chunk-uncompressed-{value}.parquet", phrase, change_chunk(parquet, UNCOMPRESSED=value))
    foreign = change_footer(parquet, _set(_chunk, FILE_PATH, b"/etc/passwd"))
    yield harmless("other-file.parquet", "a column is said to be in /etc/passwd", foreign)
    fewer = change_footer(parquet, lambda footer: footer[ROW_GROUPS][0][COLUMNS].pop())
    yield bad("column-missing.parquet", "a row group lacks a column", fewer)


def _lying_pages() -> Iterator[HostileFile]:
    parquet = write_parquet(_TEXT, use_dictionary=True)
    for number, name in ((PAGE_COMPRESSED, "compressed"), (PAGE_UNCOMPRESSED, "uncompressed")):
        for value in (-1, 0, _MOST):
            yield bad(
                f"page-{name}-{value}.parquet",
                f"a page says {value} bytes {name}",
                _lie_in_page(parquet, number, value),
            )
    for value in (-1, 0, 10, 1000, _MOST):
        yield bad(
            f"page-values-{value}.parquet",
            f"a page says {value} values",
            _lie_in_page(parquet, PAGE_VALUES, value, DATA_PAGE),
        )
        if value > 3 or value < 0:
            lie = _lie_in_page(parquet, PAGE_VALUES, value, DICTIONARY_PAGE, page=0)
            yield bad(f"dictionary-values-{value}.parquet", f"a dictionary of three values says {value}", lie)
    for encoding in (1, 5, 6, 7, 9, 99, -1):
        lie = _lie_in_page(parquet, PAGE_ENCODING, encoding, DATA_PAGE)
        yield bad(f"page-encoding-{encoding}.parquet", f"a dictionary-encoded page says encoding {encoding}", lie)
    for width in (0, 1, 33, 64, 255):
        yield bad(
            f"bit-width-{width}.parquet",
            f"references to a dictionary of {width} bits",
            _references(parquet, bytes([width]) + b"\x28" + b"\xff" * 9),
        )
    endless = b"\x02" + b"\xff" * 9 + b"\x01" + b"\0"
    yield bad("run-endless.parquet", "a run of 2^64 references", _references(parquet, endless))
    yield bad("run-empty.parquet", "runs of no references", _references(parquet, b"\x02" + b"\0\0" * 5000))
    yield bad("checksum.parquet", "a page with a wrong checksum", _break_checksum())
    yield from _lying_deltas()
    yield from _aborting()
    yield bad("text-not-utf-8.parquet", "a text that is not UTF-8", _plain(b"\xff\xfe\xed\xa0\x80" * 3))
    for length in (-1, _MOST, 100):
        yield bad(f"value-length-{length}.parquet", f"a text of 5 bytes says {length}", _plain(b"abcde", length))


def _lie_in_page(parquet: bytes, number: int, value: int, part: int | None = None, page: int = -1) -> bytes:
    """The file with another number in a page header, or in a part of one, before the same content."""

    def change(pages: list[Page]) -> None:
        (pages[page].header if part is None else pages[page].header[part])[number] = value

    return change_pages(parquet, change)


def _references(parquet: bytes, body: bytes) -> bytes:
    return change_body(parquet, body, len(body))


def _plain(value: bytes, length: int | None = None) -> bytes:
    parquet = write_parquet({"id": ["b"], "text": ["t"]})
    body = struct.pack("<I", (len(value) if length is None else length) & 0xFFFFFFFF) + value
    return change_body(parquet, body, len(body))


def _break_checksum() -> bytes:
    parquet = write_parquet(_TEXT, write_page_checksum=True)
    return parquet.replace(b"some text 2", b"SOME TEXT 2")


def _lying_deltas() -> Iterator[HostileFile]:
    parquet = write_parquet(_TEXT, column_encoding={"text": "DELTA_LENGTH_BYTE_ARRAY"})
    prefixes = write_parquet(_TEXT, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    big = b"\xff" * 4 + b"\x0f"
    heads = {
        "values-4-billion": b"\x80\x01\x04" + big + b"\0",
        "no-miniblocks": b"\x80\x01\0\x14\0",
        "block-4-billion": big + b"\x04\x14\0",
        "block-zero": b"\0\x04\x14\0",
        "lengths-negative": b"\x80\x01\x04\x14\x09\0\0\0\0\0",
        "lengths-huge": b"\x80\x01\x04\x14" + b"\xfe" + big[1:] + b"\0\0\0\0\0",
        "width-255": b"\x80\x01\x04\x14\0\0\xff\xff\xff\xff" + b"\xff" * 64,
    }
    for name, head in heads.items():
        body = head + b"x" * 50
        phrase = name.replace("-", " ")
        yield bad(f"delta-{name}.parquet", f"delta-encoded lengths: {phrase}", change_body(parquet, body, len(body)))
        yield bad(f"prefix-{name}.parquet", f"delta-encoded prefixes: {phrase}", change_body(prefixes, body, len(body)))


def _aborting() -> Iterator[HostileFile]:
    """Files that end the process in C++ with pyarrow 25: it counts the levels by the schema, which lies."""
    label = pa.array([["a", "b"]] * _ROWS)
    nested = write_parquet(pa.table([_TEXT["id"], label, _TEXT["text"]], names=["id", "label", "text"]))
    for value in (-1, 0, 2, _MOST):
        lie = change_footer(write_parquet(pa.table(_TEXT)), _set(_text, REPETITION, value))
        yield bad(f"abort-text-{value}.parquet", f"texts with nulls, of which the schema says repetition {value}", lie)
        lie = change_footer(nested, _set(lambda footer: footer[SCHEMA][3], REPETITION, value))
        yield bad(f"abort-list-{value}.parquet", f"lists, of which the schema says repetition {value}", lie)


def _schemas() -> Iterator[HostileFile]:
    element = {NAME: (BINARY, b"x"), TYPE: (5, 6), REPETITION: (5, 1)}
    yield bad("columns-100k.parquet", "100,000 columns and no row", _with_schema([*_leaves(100_000)], 100_002))
    yield bad(
        "columns-20k.parquet",
        "20,000 columns of one row",
        write_parquet({"id": ["b"], "text": ["t"]} | {f"c{n}": [n] for n in range(20_000)}),
    )
    for depth in (1000, 100_000):
        groups = [Struct({REPETITION: (5, 0), NAME: (BINARY, b"g"), CHILDREN: (5, 1)}) for _ in range(depth)]
        nested = _with_schema([*groups, Struct(dict(sorted(element.items())))], 3)
        yield bad(f"nested-{depth}.parquet", f"a column of {depth:,} structures within one another", nested)
    for children in (-1, 0, 3, _MOST):
        yield bad(
            f"children-{children}.parquet", f"a schema of two columns says {children}", _with_schema([], children)
        )
    parquet = write_parquet(_TEXT)
    for name, number, value in (
        ("type", TYPE, 7),
        ("type", TYPE, 99),
        ("type", TYPE, 1),
        ("repetition", REPETITION, 2),
        ("repetition", REPETITION, 1),
        ("repetition", REPETITION, 99),
        ("converted-type", CONVERTED, 5),
        ("converted-type", CONVERTED, 99),
    ):
        lie = change_footer(parquet, _set(_text, number, value))
        yield bad(
            f"schema-{name}-{value}.parquet", f"the schema says {name.replace('-', ' ')} {value} of the texts", lie
        )
    fixed = write_parquet({"id": pa.array([b"abcd"] * 4, pa.binary(4)), "text": ["t"] * 4})
    for length in (-1, 0, _MOST):
        lie = change_footer(fixed, _set(_id, TYPE_LENGTH, length))
        yield bad(f"id-length-{length}.parquet", f"ids of 4 bytes, of which the schema says {length}", lie)


def _leaves(count: int) -> Iterator[Struct]:
    for n in range(count):
        yield Struct({TYPE: (5, 1), REPETITION: (5, 1), NAME: (BINARY, b"c%d" % n)})


def _with_schema(more: Sequence[Struct], children: int) -> bytes:
    """A file without rows, with more columns, whose schema says that it has so many."""
    parquet = write_parquet(pa.table(_TEXT).slice(0, 0))

    def change(footer: Struct) -> None:
        footer[SCHEMA][0][CHILDREN] = children
        footer[SCHEMA].extend(more)

    return change_footer(parquet, change)


def _set(find: Callable[[Struct], Struct], number: int, value: Any) -> Callable[[Struct], None]:
    """A change of a footer: of a field of a structure in it."""

    def change(footer: Struct) -> None:
        found = find(footer)
        found[number] = value
        found.fields = dict(sorted(found.fields.items()))

    return change


def _root(footer: Struct) -> Struct:
    return footer


def _group(footer: Struct) -> Struct:
    return cast(Struct, footer[ROW_GROUPS][0])


def _chunk(footer: Struct) -> Struct:
    return cast(Struct, _group(footer)[COLUMNS][-1])


def _id(footer: Struct) -> Struct:
    return cast(Struct, footer[SCHEMA][1])


def _text(footer: Struct) -> Struct:
    found = cast(Struct, footer[SCHEMA][-1])
    found.fields.pop(LOGICAL, None)
    return found


def _wrong_types() -> Iterator[HostileFile]:
    two = pa.table([_TEXT["id"], _TEXT["text"], _TEXT["text"]], names=["id", "text", "text"])
    yield bad("same-names.parquet", "two columns of one name", write_parquet(two))
    yield bad("binary-text.parquet", "texts that are bytes", write_parquet({"id": ["b"], "text": [b"t"]}))
    yield bad("nested-id.parquet", "ids that are lists", write_parquet(pa.table({"id": [["b"]], "text": ["t"]})))
    # the metadata of the type are a pickle that ends the process which loads it
    pickle = b"cos\n_exit\n(I3\ntR."
    for kind in ("arrow_pickled_object", "arrow_tensor", "arrow_tensor_v2", "arrow_variable_shaped_tensor"):
        yield harmless(
            f"ray-{kind}.parquet",
            f"the extension type {kind} of Ray, with a pickle",
            _extension(f"ray.data.{kind}", pickle),
        )
    yield harmless("extension.parquet", "a pickled Arrow extension type", _extension("arrow.py_extension_type", pickle))
    yield harmless("extension-uuid.parquet", "a text that says it is a UUID", _extension("arrow.uuid", b""))
    for name, value in {
        "garbage": b"garbage",
        "cut": b64encode(pa.schema([("id", pa.string())]).serialize())[:40],
    }.items():
        lie = change_footer(write_parquet(_TEXT), partial(_add_arrow_schema, value=value))
        yield harmless(f"arrow-schema-{name}.parquet", f"an Arrow schema that is {name}", lie)
    other = b64encode(
        pa.schema([("text", pa.list_(pa.int8(), 1 << 30)), ("x", pa.dictionary(pa.int8(), pa.string()))]).serialize()
    )
    lie = change_footer(write_parquet(_TEXT), partial(_add_arrow_schema, value=other))
    yield harmless("arrow-schema-other.parquet", "an Arrow schema of other columns", lie)


def _extension(name: str, metadata: bytes) -> bytes:
    """A file whose ids say that they are of an extension type."""
    described = {"ARROW:extension:name": name.encode(), "ARROW:extension:metadata": metadata}
    schema = pa.schema([pa.field("id", pa.binary(), metadata=described), pa.field("text", pa.string())])
    table = pa.table([[id.encode() for id in _TEXT["id"]], _TEXT["text"]], schema=schema)
    return write_parquet(table, store_schema=True)


def _add_arrow_schema(footer: Struct, value: bytes) -> None:
    entry = Struct({1: (BINARY, b"ARROW:schema"), 2: (BINARY, value)})
    footer.fields[METADATA] = 9, Items(STRUCT, [entry])
    footer.fields = dict(sorted(footer.fields.items()))
