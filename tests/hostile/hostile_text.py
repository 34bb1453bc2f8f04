"""JSONL and CSV files that were made to harm."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Iterator

import pyarrow as pa

from tests.hostile.bombs import MEGABYTE, repeat_bz2, repeat_gzip, repeat_zstd
from tests.hostile.hostile_file import HostileFile, bad, dead, good, harmless

_LINE = b'{"id": "a", "text": "some text"}\n'
_HALF = '"\\ud800"'
"""half a character, as JSON writes it"""


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def jsonl_files() -> Iterator[HostileFile]:
    """JSONL files, those with compressed bombs included."""
    yield from _json_values()
    yield from _json_keys()
    yield from _json_bytes()
    yield from _json_sizes()


def _json_values() -> Iterator[HostileFile]:
    digits = b"7" * 5_000_000
    yield dead("id-digits.jsonl.zst", "an id of 5,000,000 digits", zstd(_LINE + b'{"id": %b, "text": "t"}\n' % digits))
    yield dead("key-digits.jsonl.zst", "a number of 5,000,000 digits", zstd(_LINE + b'{"n": -%b, "id": 1}\n' % digits))
    yield dead("exponent.jsonl", "an id that is infinite", _LINE + b'{"id": 1e999999999, "text": "t"}\n')
    yield good(
        "digits-4000.jsonl",
        "an id of 4,000 digits, which Python can read",
        _LINE + b'{"id": %b, "text": "t"}\n' % digits[:4000],
    )
    deep = b'{"id": "b", "text": "t", "x": %b%b}\n'
    yield dead("deep-lists.jsonl", "100,000 lists within one another", _LINE + deep % (b"[" * 100_000, b"]" * 100_000))
    yield dead("deep-objects.jsonl", "100,000 open objects", _LINE + b'{"id":' * 100_000 + b"\n")
    yield good("deep-500.jsonl", "500 lists within one another", _LINE + deep % (b"[" * 500, b"]" * 500))
    yield harmless(
        "deep-kept.jsonl",
        "a kept value of 500 lists",
        _LINE + b'{"id": "b", "text": "t", "source": %b%b}\n' % (b"[" * 500, b"]" * 500),
    )
    yield good("constants.jsonl", "NaN and Infinity", _LINE + b'{"id": "b", "text": "t", "x": [NaN, -Infinity]}\n')
    yield dead("scalars.jsonl", "lines that are no objects", _LINE + b'null\n1\n"text"\n[{}]\ntrue\n')
    yield dead(
        "halves.jsonl",
        "half a character as id and as text",
        _LINE + f'{{"id": {_HALF}, "text": "t"}}\n{{"id": "b", "text": {_HALF}}}\n'.encode(),
    )
    yield dead(
        "half-kept.jsonl",
        "half a character as a kept value",
        _LINE + f'{{"id": "b", "text": "t", "source": {_HALF}}}\n{{"id": {_HALF}}}\n'.encode(),
    )


def _json_keys() -> Iterator[HostileFile]:
    yield dead(
        "half-key.jsonl",
        "half a character as a key of a row without a text",
        _LINE + f'{{"id": "b", {_HALF}: 1}}\n'.encode(),
    )
    yield good(
        "half-key-beside.jsonl",
        "half a character as a further key",
        _LINE + f'{{"id": "b", "text": "t", {_HALF}: {{{_HALF}: 1}}}}\n'.encode(),
    )
    yield dead(
        "half-key-kept.jsonl",
        "an object with half a character as key in a kept column",
        _LINE + f'{{"id": "b", "text": "t", "source": {{{_HALF}: {_HALF}}}}}\n{{"text": {_HALF}}}\n'.encode(),
    )
    yield good("same-keys.jsonl", "a key twice", _LINE + b'{"id": "b", "text": 1, "text": "t", "id": "c"}\n')
    many = json.dumps({"text": "t"} | {f"key {n}": n for n in range(200_000)}).encode()
    yield dead("many-keys.jsonl.zst", "200,000 keys and no id", zstd(_LINE + many + b"\n"))
    yield dead(
        "long-key.jsonl.zst",
        "a key of 20 MB and no id",
        zstd(_LINE + b'{"%b": 1, "text": "t"}\n' % (b"k" * (20 * MEGABYTE))),
    )


def _json_bytes() -> Iterator[HostileFile]:
    yield dead("nul-bytes.jsonl", "NUL bytes in a text", _LINE + b'{"id": "b", "text": "t\0"}\n')
    yield good(
        "nul-escapes.jsonl",
        "NUL and escape sequences as JSON escapes",
        _LINE + b'{"id": "\\u0000", "text": "\\u0000\\u001b[2J t"}\n',
    )
    yield bad("nothing-but-nul.jsonl", "a megabyte of NUL bytes, as a crash leaves", bytes(MEGABYTE))
    yield dead(
        "not-utf-8.jsonl", "bytes that are not UTF-8", _LINE + b'{"id": "\xff\xfe", "text": "\xc0\x80\xed\xa0\x80"}\n'
    )
    yield bad("utf-16.jsonl", "UTF-16 with a byte order mark", _LINE.decode().encode("utf-16"))
    yield bad("utf-32.jsonl", "UTF-32", _LINE.decode().encode("utf-32"))
    yield bad("cut.jsonl", "cut within a line", (_LINE * 3)[:-9])
    yield bad("cut.jsonl.gz", "gzip, cut", gzip.compress(_LINE * 1000, mtime=0)[:-12])
    yield bad("cut.jsonl.bz2", "bz2, cut", bz2.compress(_LINE * 1000)[:-12])
    yield bad("cut.jsonl.zst", "zstd, cut", zstd(_LINE * 1000)[:-5])
    yield bad(
        "garbage.jsonl.gz", "two gzip members, and bytes after them", gzip.compress(_LINE, mtime=0) * 2 + b"garbage"
    )
    yield bad(
        "checksum.jsonl.gz",
        "gzip with a wrong checksum",
        gzip.compress(_LINE, mtime=0)[:-8] + bytes(4) + len(_LINE).to_bytes(4, "little"),
    )
    yield bad("gzip.jsonl.zst", "gzip under the name of zstd", gzip.compress(_LINE, mtime=0))
    yield bad("plain.jsonl.bz2", "text under the name of bz2", _LINE)
    yield bad("zstd.jsonl", "zstd under the name of text", zstd(_LINE * 100))
    yield bad("empty.jsonl", "no byte", b"")
    yield bad("nothing.jsonl.gz", "nothing, compressed", gzip.compress(b"", mtime=0))


def _json_sizes() -> Iterator[HostileFile]:
    cell = b'{"id": "b", "text": "%b"}\n'
    yield bad("long-line.jsonl.zst", "a line of 3 GB", repeat_zstd(b"x" * (32 * MEGABYTE), 96, _LINE + b'{"id": "'))
    yield bad("row-65-mb.jsonl.zst", "a row of 65 MB", zstd(_LINE + cell % (b"x " * (65 * MEGABYTE // 2))))
    yield bad(
        "row-65-mb.jsonl.gz", "a row of 65 MB", repeat_gzip(b"x" * MEGABYTE, 65, _LINE + b'{"id": "b", "text": "')
    )
    yield bad(
        "blank-lines.jsonl.zst", "33 kB that are 1 GB of blank lines", repeat_zstd(b"\n" * (32 * MEGABYTE), 32, _LINE)
    )
    yield bad("empty-objects.jsonl.zst", "300 MB of empty objects", repeat_zstd(b"{}\n" * MEGABYTE, 100, _LINE))
    yield bad("same-rows.jsonl.zst", "300 MB of the same row", repeat_zstd(_LINE * (MEGABYTE // 4), 35))
    yield bad(
        "nested-twice.jsonl.gz",
        "gzip in gzip of 1 GB",
        gzip.compress(repeat_gzip(b"\n" * (8 * MEGABYTE), 128), mtime=0),
    )
    yield dead(
        "text-20-mb.jsonl.zst",
        "a text of 20 MB without a blank",
        zstd(_LINE + cell % (b"x" * (20 * MEGABYTE))),
        "too_long",
    )
    cjk = "文".encode() * 7_000_000
    yield dead("text-cjk.jsonl.zst", "a text of 7 million Chinese characters", zstd(_LINE + cell % cjk), "too_long")
    yield good("text-9-mb.jsonl.zst", "a text of 9 MB", zstd(_LINE + cell % (b"x " * (9 * MEGABYTE // 2))))


def csv_files() -> Iterator[HostileFile]:
    """CSV files."""
    head = b"id,source,text\n"
    row = b"a,web,some text\n"
    names = ",".join(["id", "text", *(f"column {n}" for n in range(100_000))]).encode()
    commas = b"," * 1_000_000
    yield bad("header-100k.csv", "a header of 100,000 names", names + b"\n")
    yield bad(
        "header-100k-rows.csv.zst",
        "100,000 columns in 20 rows",
        zstd(names + b"\n" + (b"x" + b"," * 100_001 + b"\n") * 20),
    )
    yield bad(
        "empty-columns.csv.zst",
        "1,000,000 columns without a name or a value",
        zstd(b"id,text" + commas + b"\n" + (b"a,t" + commas + b"\n") * 20),
    )
    yield bad(
        "more-values.csv.zst",
        "rows of 1,000,000 values below a header of three",
        zstd(head + row + (b"a,w,t" + commas + b"\n") * 20),
    )
    yield bad("same-names.csv", "a header with a name twice", b"id,text,text\na,b,c\n")
    yield bad(
        "same-names-100k.csv.zst", "a header of one name 100,000 times", zstd(b"id,text" + b",x" * 100_000 + b"\n")
    )
    yield bad(
        "open-quote.csv.zst",
        "an open quote and 100 MB after it",
        repeat_zstd(row * (MEGABYTE // 16), 100, head + b'a,web,"'),
    )
    yield bad(
        "open-quote-header.csv.zst",
        "an open quote in the header and 100 MB after it",
        repeat_zstd(b"x,y\n" * (MEGABYTE // 4), 100, b'id,"text'),
    )
    yield bad("open-quote.csv", "an open quote", head + row + b'b,web,"text\n' + row * 100)
    yield bad("after-quote.csv", "text after a quoted value", head + b'b,web,"text" and more\n')
    yield bad(
        "long-line.csv.zst",
        "98 kB that are one line of 3 GB",
        repeat_zstd(b"x" * (32 * MEGABYTE), 96, head + b"a,web,"),
    )
    yield bad("long-header.csv.zst", "a header of 1 GB without a delimiter", repeat_zstd(b"x" * (32 * MEGABYTE), 32))
    yield bad(
        "one-row-many-lines.csv.zst",
        "a row of 70 values of 1 MB",
        zstd(b"id,text" + b"".join(b",c%d" % n for n in range(70)) + b"\na,t" + (b"," + b"x" * MEGABYTE) * 70 + b"\n"),
    )
    yield bad(
        "blank-lines.csv.zst",
        "33 kB that are 1 GB of blank lines",
        repeat_zstd(b"\n" * (32 * MEGABYTE), 32, head + row),
    )
    yield bad(
        "blank-lines-first.csv.zst", "1 GB of blank lines before the header", repeat_zstd(b"\n" * (32 * MEGABYTE), 32)
    )
    yield bad("same-rows.csv.bz2", "300 MB of the same row", repeat_bz2(row * (MEGABYTE // 64), 1250, head))
    yield bad("cut.csv", "cut within a row", head + row + b"b,we")
    yield bad("cut.csv.gz", "gzip, cut", gzip.compress(head + row * 1000, mtime=0)[:-12])
    yield bad("cut.csv.bz2", "bz2, cut", bz2.compress(head + row * 1000)[:-12])
    yield bad("cut.csv.zst", "zstd, cut", zstd(head + row * 1000)[:-5])
    yield bad("not-utf-8.csv", "bytes that are not UTF-8", head + b"b,web,\xff\xfe\n")
    yield bad("utf-16.csv", "UTF-16 with a byte order mark", (head + row).decode().encode("utf-16"))
    yield good("nul-bytes.csv", "NUL bytes in a text", head + row + b"b,web,t\0t\n")
    yield good("old-line-ends.csv", "line ends of old computers", (head + row).replace(b"\n", b"\r"))
    yield dead(
        "text-20-mb.csv.zst",
        "a text of 20 MB without a blank",
        zstd(head + row + b"b,web," + b"x" * (20 * MEGABYTE) + b"\n"),
        "too_long",
    )
    yield dead(
        "text-of-lines.csv.zst",
        "a quoted text of 7 million lines",
        zstd(head + row + b'b,web,"' + b"xy\n" * 7_000_000 + b'"\n'),
        "too_long",
    )
