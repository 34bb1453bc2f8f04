"""Input files and readers: every row is read once and in order; bad files and rows are named."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.data import intake, labelled_corpus
from pipelines.data.files import formats, jsonl_reader, reader, readers
from pipelines.data.files.input_files import list_files
from pipelines.data.files.jsonl_reader import JsonLinesReader
from pipelines.data.files.parquet_reader import ParquetReader
from pipelines.data.files.reader import ALL_COLUMNS, FIELDS, ID_AND_TEXT, Documents, Reader, Role, to_documents
from pipelines.data.files.readers import read_piece
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.intake import plan_intake
from pipelines.data.labelled_corpus import read_labelled
from pipelines.data.spool import find_dead_rows
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.split_groups import hash_group, hash_text
from spin.settings import DataSettings
from tests.support.input_reads import count_input_reads
from tests.support.reading import read_in_this_process

DATA = DataSettings(train="unused")
SPLIT = DataSettings(train="unused", split="split")

Row = dict[str, Any]


def to_parquet(rows: Sequence[Row] | pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def to_jsonl(rows: Sequence[Row], end: str = "\n", **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + end for row in rows).encode()


def to_csv(rows: Sequence[Row], end: str = "\n", *, quoted: bool = False) -> bytes:
    sink, names = io.StringIO(), list(rows[0]) if rows else ["id", "text", "label"]
    writer = csv.DictWriter(sink, names, lineterminator=end, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def compress_zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def build_rows(texts: Sequence[str]) -> list[Row]:
    return [{"id": f"d{n}", "text": text, "label": "odd" if n % 2 else "even"} for n, text in enumerate(texts)]


def write_file(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def read_all(uri: str, data: DataSettings = DATA, *, columns: Sequence[Role] = ALL_COLUMNS) -> Documents:
    """Read the documents of all files of a URI, in order."""
    documents = Documents()
    for task in plan_intake(list_files(uri)):
        for part in (part for piece in task.pieces for part in read_piece(piece, data, columns=columns)):
            documents.malformed |= {len(documents) + row: reason for row, reason in part.malformed.items()}
            documents.absent |= {len(documents) + row: reason for row, reason in part.absent.items()}
            for name in FIELDS:
                assert len(getattr(part, name)) == len(part)
            for name in FIELDS:
                getattr(documents, name).extend(getattr(part, name))
    return documents


def divide_files(patch: pytest.MonkeyPatch, window: int) -> None:
    """Read all files that can be divided in ranges of so many bytes."""
    patch.setattr(intake, "SMALL", 1)
    for kind in (JsonLinesReader, ParquetReader):
        patch.setattr(kind, "window", window)


def error_message(error: pytest.ExceptionInfo[UserError], uri: str) -> str:
    """Return the message of an error; assert that it is one line and begins with the file."""
    message = str(error.value)
    assert message.startswith(uri)
    assert "\n" not in message
    return message


# Listing input files


def test_a_folder_lists_its_data_files_in_order_of_name(store_uri: str) -> None:
    """Files at any depth are listed; files and folders whose names begin with `.` or `_` are left out."""
    store = Store(store_uri)
    for key in ("b.csv", "a.jsonl", "sub/c.parquet", "_SUCCESS", ".part.crc", "_temporary/x.csv", ".git/y.csv"):
        store.write(f"data/{key}", b"12345")
    files = list_files(f"{store.uri}/data")
    assert [file.uri for file in files] == [f"{store.uri}/data/{key}" for key in ("a.jsonl", "b.csv", "sub/c.parquet")]
    assert [file.kind for file in files] == ["jsonl", "csv", "parquet"]
    assert {file.size for file in files} == {5}
    assert all(file.version for file in files)
    assert list_files(f"{store.uri}/data/") == files


def test_a_glob_matches_no_hidden_file_but_a_path_may_name_one(store_uri: str) -> None:
    """The path of an existing file names that file even if it looks like a glob."""
    store = Store(store_uri)
    for key in ("a.csv", "b.csv", "b.jsonl", "_c.csv", ".d.csv", "x[1].csv", "deep/e.csv", "_raw/f.csv"):
        store.write(key, b"")

    def list_names(pattern: str) -> list[str]:
        return [file.uri.removeprefix(f"{store.uri}/") for file in list_files(f"{store.uri}/{pattern}")]

    assert list_names("a.csv") == ["a.csv"]
    assert list_names("_c.csv") == ["_c.csv"]
    assert list_names("x[1].csv") == ["x[1].csv"]
    assert list_names("*.csv") == ["a.csv", "b.csv", "x[1].csv"]
    assert list_names("b.*") == ["b.csv", "b.jsonl"]
    assert list_names("**/*.csv") == ["a.csv", "b.csv", "deep/e.csv", "x[1].csv"]
    assert list_names("_raw/*.csv") == ["_raw/f.csv"]


def test_a_symbolic_link_has_its_own_name_and_the_size_of_its_target(tmp_path: Path) -> None:
    target = write_file(tmp_path, "blobs/1234", b"12345")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").symlink_to(target)
    [file] = list_files(str(tmp_path / "data"))
    assert (file.uri, file.size) == (str(tmp_path / "data" / "a.csv"), 5)


def test_a_changed_file_has_a_new_version(store_uri: str) -> None:
    """The version tells a plan for the old file from one for the new file, even if the size is the same."""
    store = Store(store_uri)
    store.write("a.csv", b"id,text\n1,a\n")
    [before], [unchanged] = list_files(f"{store.uri}/a.csv"), list_files(f"{store.uri}/a.csv")
    store.write("a.csv", b"id,text\n1,b\n")
    if store.local:
        os.utime(store.path("a.csv"), (1, 1))
    [after] = list_files(f"{store.uri}/a.csv")
    assert before == unchanged
    assert (before.size, before.version != after.version) == (after.size, True)


@pytest.mark.parametrize("uri", ["none", "none/*.csv", "empty"])
def test_a_uri_without_data_is_a_user_error(uri: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^no data at .*expected a file, a folder or a glob"):
        list_files(f"{tmp_path}/{uri}")


@pytest.mark.parametrize("name", ["a.txt", "a.parquet.gz", "a", "a.csv.zip"])
def test_a_file_with_an_unknown_ending_is_a_user_error(name: str, tmp_path: Path) -> None:
    """One such file in a folder is enough."""
    write_file(tmp_path, "good.csv", b"")
    uri = write_file(tmp_path, name, b"")
    with pytest.raises(UserError) as error:
        list_files(str(tmp_path))
    message = error_message(error, uri)
    assert message == f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv"


def test_an_invalid_glob_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*\*\.csv is no glob"):
        list_files(f"{tmp_path}/**.csv")


# Every row once and in order

text_lists = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=25)
windows = st.sampled_from([5, 30, 200, 10**6])
line_ends = st.sampled_from(["\n", "\r\n"])


def check_rows(name: str, data: bytes, rows: Sequence[Row], window: int) -> None:
    """Assert that a file has these rows in order if it is read in ranges of bytes, and that each has its place."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        divide_files(patch, window)
        uri = write_file(Path(folder), name, data)
        documents = read_all(uri)
        assert not documents.malformed
        assert documents.ids == [row["id"] for row in rows]
        assert documents.texts == [row["text"] for row in rows]
        assert documents.labels == [row["label"] for row in rows]
        assert documents.splits == documents.groups == [None] * len(rows)
        unlabelled = read_all(uri, columns=ID_AND_TEXT)
        assert (unlabelled.ids, unlabelled.texts) == (documents.ids, documents.texts)
        assert unlabelled.labels == [None] * len(rows)
        pieces = [piece for task in plan_intake(list_files(uri)) for piece in task.pieces]
        parts = [part for piece in pieces for part in read_piece(piece, DATA)]
        first = done = 0
        for part in parts:
            first, done = (part.first, 0) if part.first > first else (first, done)
            assert (part.first, part.row) == (first, done)
            done += len(part)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), windows)
def test_parquet_ranges_hold_the_row_groups_that_begin_in_them(group_sizes: list[int], window: int) -> None:
    rows = build_rows([f"text {n}" for n in range(sum(group_sizes))])
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in ("id", "text", "label")})
    sink, first = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, table.schema) as writer:
        for size in group_sizes:
            writer.write_table(table.slice(first, size), row_group_size=max(1, size))
            first += size
    check_rows("a.parquet", sink.getvalue().to_pybytes(), rows, 100 + 2 * window)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    text_lists,
    windows,
    line_ends,
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 24), max_size=3),
    st.booleans(),
)
def test_jsonl_ranges_hold_all_rows_in_order(
    texts: list[str], window: int, end: str, trailing: bool, ascii: bool, blanks: list[int], compressed: bool
) -> None:
    """The last line end may be absent; CRLF, blank lines, escapes and raw Unicode line separators are no obstacle."""
    rows = build_rows(texts)
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    for at in blanks:
        lines.insert(min(at, len(lines)), "  " if at % 2 else "")
    data = end.join(lines).encode() + (end.encode() if trailing else b"")
    assume(data)
    name, content = ("a.jsonl.gz", gzip.compress(data)) if compressed else ("a.jsonl", data)
    check_rows(name, content, rows, window)


@settings(max_examples=60, deadline=None)
@given(text_lists, line_ends, st.booleans())
def test_csv_holds_all_rows_in_order(texts: list[str], end: str, compressed: bool) -> None:
    """This holds for commas, quotes and line ends within quoted values."""
    data = to_csv(build_rows(texts), end, quoted=True)
    name = "a.csv.gz" if compressed else "a.csv"
    check_rows(name, gzip.compress(data) if compressed else data, build_rows(texts), 1)


FORMATS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "a.parquet": lambda rows: to_parquet(rows, row_group_size=4),
    "a.jsonl": to_jsonl,
    "a.ndjson": to_jsonl,
    "A.JSONL.GZ": lambda rows: gzip.compress(to_jsonl(rows)),
    "a.jsonl.bz2": lambda rows: bz2.compress(to_jsonl(rows)),
    "a.jsonl.zst": lambda rows: compress_zstd(to_jsonl(rows)),
    "concatenated.jsonl.gz": lambda rows: gzip.compress(to_jsonl(rows[:4])) + gzip.compress(to_jsonl(rows[4:])),
    "a.csv": to_csv,
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + to_csv(rows),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + to_jsonl(rows),
    "A.CSV.GZ": lambda rows: gzip.compress(to_csv(rows)),
    "a.csv.zst": lambda rows: compress_zstd(to_csv(rows)),
}
ROWS = build_rows(
    ["a fine day", "une journée", "日\n本", 'said "no", twice', "\u2028", "six", "seven", "eight", "nine", "ten"]
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_from_a_folder_and_from_s3(name: str, store_uri: str) -> None:
    """The rows of two files come in the order of the files."""
    store = Store(store_uri)
    store.write(f"data/{name}", FORMATS[name](ROWS))
    store.write("data/zz.jsonl", to_jsonl([{"id": "last", "text": "end", "label": "odd"}]))
    documents = read_all(f"{store.uri}/data")
    assert documents.ids == [*(row["id"] for row in ROWS), "last"]
    assert documents.texts == [*(row["text"] for row in ROWS), "end"]
    assert documents.labels == [*(row["label"] for row in ROWS), "odd"]
    assert not documents.malformed


@pytest.mark.s3
def test_a_compressed_file_is_streamed_in_few_requests(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decompressor reads small pieces, which must not become one S3 request each."""
    from s3fs import S3FileSystem

    store, requests, call = Store(f"{s3_server}/streamed-{os.getpid()}"), [], S3FileSystem._call_s3
    rows = [{"id": n, "text": os.urandom(50).hex()} for n in range(5000)]
    store.write("a.jsonl.gz", gzip.compress(to_jsonl(rows)))
    [file] = list_files(f"{store.uri}/a.jsonl.gz")

    async def count_and_call(self: Any, method: str, *args: Any, **options: Any) -> Any:
        requests.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", count_and_call)
    assert sum(map(len, read_piece(file.whole, DATA))) == 5000
    assert len(requests) <= 4


def test_lines_longer_than_a_range_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a line is found however far away it is."""
    divide_files(monkeypatch, 50_000)
    rows = build_rows(["x" * length for length in (200_000, 3, 140_000, 65_536, 1)])
    assert read_all(write_file(tmp_path, "a.jsonl", to_jsonl(rows))).texts == [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_text_of_megabytes_is_read_whole(name: str, tmp_path: Path) -> None:
    rows = build_rows(["word, " * 500_000, "short"])
    uri = write_file(tmp_path, name, FORMATS.get(name, lambda rows: gzip.compress(to_jsonl(rows)))(rows))
    assert read_all(uri).texts == [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["a.csv", "A.CSV.GZ", "a.jsonl", "A.JSONL.GZ"])
def test_rows_across_the_blocks_of_a_stream_are_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may end within a row or within a quoted value of several lines."""
    for module in (formats, jsonl_reader, readers):
        monkeypatch.setattr(module, "BLOCK", 100)
    rows = build_rows([f"line\n{n}\n" * (n % 6) + "end" for n in range(60)])
    check_rows(name, FORMATS[name](rows), rows, 1000)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_a_carriage_return_alone_does_not_end_a_jsonl_line(compressed: bool, tmp_path: Path) -> None:
    """JSON treats it as white space."""
    data = b'{"id": "a",\r"text": "x"}\r\n{"id": "b",\r\r "text": "y"}'
    name = "a.jsonl.gz" if compressed else "a.jsonl"
    uri = write_file(tmp_path, name, gzip.compress(data) if compressed else data)
    documents = read_all(uri, columns=ID_AND_TEXT)
    assert (documents.ids, documents.texts, documents.malformed) == (["a", "b"], ["x", "y"], {})


# Ids and labels become strings

COLUMNS: dict[str, tuple[Any, list[str | None]]] = {
    "ints": ([1, 20, None], ["1", "20", None]),
    "bools": ([True, False, None], ["true", "false", None]),
    "strings": (["001", "", None], ["001", None, None]),
    "dictionary": (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
    "dictionary of ints": (pa.array([7, 8, None]).dictionary_encode(), ["7", "8", None]),
    "large strings": (pa.array(["a", "é", None], pa.large_string()), ["a", "é", None]),
    "string views": (pa.array(["a", "é", None], pa.string_view()), ["a", "é", None]),
    "bytes": ([b"a", b"\xff", None], ["a", "0xff", None]),
    "bytes of fixed size": (pa.array([b"ab", b"\x00\xff", None], pa.binary(2)), ["6162", "00ff", None]),
    "UUIDs": (
        pa.array([uuid.UUID(int=n).bytes for n in (1, 255)] + [None], pa.uuid()),
        ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-0000000000ff", None],
    ),
    "floats": ([1.0, 0.1, float("nan")], ["1", "0.1", None]),
    "large floats": ([1e16, -0.0, float("inf")], ["10000000000000000", "0", None]),
    "small floats": (pa.array([0.1, 16777216.0, None], pa.float32()), ["0.1", "16777216", None]),
    "many digits": (
        pa.array([Decimal(10**37 + 1), Decimal(-(10**37)), None], pa.decimal128(38, 0)),
        ["1" + "0" * 36 + "1", "-1" + "0" * 37, None],
    ),
    "decimals": (pa.array([Decimal("1.00"), Decimal("1.50"), None], pa.decimal128(9, 2)), ["1", "1.5", None]),
    "dates": (pa.array([date(2026, 1, 31), None, None]), ["2026-01-31", None, None]),
    "nulls": (pa.nulls(3), [None, None, None]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_ids_and_labels_of_parquet_become_strings(case: str, tmp_path: Path) -> None:
    """The module `text_values` documents how; an empty string becomes None."""
    column, expected = COLUMNS[case]
    table = pa.table({"id": column, "text": ["a", "b", "c"], "label": column})
    documents = read_all(write_file(tmp_path, "a.parquet", to_parquet(table)))
    assert documents.ids == documents.labels == expected


@pytest.mark.parametrize("case", ["dictionary", "large strings", "string views", "nulls"])
def test_texts_are_read_from_every_parquet_string_type(case: str, tmp_path: Path) -> None:
    column, expected = COLUMNS[case]
    table = pa.table({"id": ["1", "2", "3"], "text": column})
    uri = write_file(tmp_path, "a.parquet", to_parquet(table))
    assert read_all(uri, columns=ID_AND_TEXT).texts == expected


def test_ids_and_labels_of_jsonl_become_strings(tmp_path: Path) -> None:
    """Objects, lists and NaN become None, except that a label can be a list."""
    values = [1, 1.0, 1.5, 10**16, True, "001", "1.0", "é", "\ud800", "", None, {"a": 1}, float("nan"), [1]]
    expected = ["1", "1", "1.5", "10000000000000000", "true", "001", "1.0", "é", "\ud800"] + [None] * 5
    uri = write_file(tmp_path, "a.jsonl", to_jsonl([{"id": v, "text": "t", "label": v} for v in values]))
    documents = read_all(uri)
    assert documents.ids == expected
    assert documents.labels == [*expected[:-1], ["1"]]


def test_csv_values_are_not_converted(tmp_path: Path) -> None:
    """Leading zeros, NA, null, true and dates stay as they are; only an empty id or label becomes None."""
    values = ["001", "1.50", "NA", "null", "NaN", "true", " x ", "2026-01-01", ""]
    data = to_csv([{"other": n, "text": v, "id": v, "label": v} for n, v in enumerate(values)])
    documents = read_all(write_file(tmp_path, "a.csv", data))
    assert documents.ids == documents.labels == [*values[:-1], None]
    assert documents.texts == values


# Lists of labels

NAMES = [["b", "a"], [], ["a"], ["a", "é"], [], ["b"], ["c", "b", "a"]]
NUMBERS = [[1, 20], [], [3], [1, 3], [], [20], [3, 20, 1]]
PAIRS = [[7, 1], [1, 3], [3, 7], [1, 7], [3, 1], [7, 3], [1, 7]]
BYTES = [[name.encode() for name in label] for label in NAMES]
LIST_COLUMNS: dict[str, tuple[list[list[Any]], pa.DataType]] = {
    "strings": (NAMES, pa.list_(pa.string())),
    "large strings": (NAMES, pa.large_list(pa.large_string())),
    "dictionaries": (NAMES, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "views": (NAMES, pa.list_view(pa.string_view())),
    "ints": (NUMBERS, pa.list_(pa.int64())),
    "large views": (NUMBERS, pa.large_list_view(pa.int32())),
    "large list of small ints": (NUMBERS, pa.large_list(pa.uint8())),
    "fixed size": (PAIRS, pa.list_(pa.int16(), 2)),
    "bytes": (BYTES, pa.list_(pa.binary())),
    "whole floats": (NUMBERS, pa.list_(pa.float64())),
    "nulls": ([[]] * 7, pa.list_(pa.null())),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LIST_COLUMNS)
def test_lists_of_labels_are_read_from_every_parquet_list_type(case: str, tmp_path: Path) -> None:
    """Numbers are written in digits."""
    lists, arrow_type = LIST_COLUMNS[case]
    ids, texts = [f"d{n}" for n in range(7)], [f"text {n}" for n in range(7)]
    table = pa.table({"id": ids, "text": texts, "label": pa.array(lists, arrow_type)})
    uri = write_file(tmp_path, "a.parquet", to_parquet(table, row_group_size=4))
    expected = [[name.decode() if isinstance(name, bytes) else str(name) for name in label] for label in lists]
    assert read_all(uri).labels == read_labelled(list_files(uri), DATA).labels == expected
    assert not read_all(uri).malformed


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_lists_of_labels_are_read_from_jsonl(compressed: bool, tmp_path: Path) -> None:
    """Elements become strings as single labels do; an empty list is a label."""
    lists: list[Any] = [["b", "a"], [], [1, 1.5, True, "001"], ["é"]]
    data = to_jsonl([{"id": n, "text": "t", "label": label} for n, label in enumerate(lists)])
    name = "a.jsonl.gz" if compressed else "a.jsonl"
    uri = write_file(tmp_path, name, gzip.compress(data) if compressed else data)
    expected = [["b", "a"], [], ["1", "1.5", "true", "001"], ["é"]]
    assert read_all(uri).labels == read_labelled(list_files(uri), DATA).labels == expected


def test_csv_labels_are_strings_even_if_they_look_like_lists(tmp_path: Path) -> None:
    uri = write_file(tmp_path, "a.csv", b'id,text,label\n1,t,"[""a""]"\n2,t,[]\n')
    assert read_labelled(list_files(uri), DATA).labels == ['["a"]', "[]"]


@pytest.mark.parametrize("label", ["NaN", "nan", "NA", "N/A", "<NA>", "null", "NULL"])
def test_a_label_that_stands_for_none_is_refused_in_csv_alone(label: str, tmp_path: Path) -> None:
    """Other programs write it there where a value is missing; where a value can be null, it is a class."""
    rows = [{"id": "d0", "text": "t", "label": "a"}, {"id": "d1", "text": "t", "label": label}]
    for name in ("a.jsonl", "a.parquet"):
        uri = write_file(tmp_path, name, FORMATS[name](rows))
        assert read_labelled(list_files(uri), DATA).labels == ["a", label]
    uri = write_file(tmp_path, "a.csv", to_csv(rows))
    with pytest.raises(UserError) as error:
        read_labelled(list_files(uri), DATA)
    assert f"the label (label) is {label}, which CSV has for a missing one; label the row or" in str(error.value)
    assert f"{uri} line 3: " in str(error.value)
    assert f"such as 'class {label}'" in str(error.value)


INVALID_LISTS: dict[str, tuple[list[Any], str]] = {
    "null": ([["a"], None], "the label (label) is missing (null, NaN or empty); label the row or leave it out"),
    "null inside": (
        [["a"], ["b", None]],
        "a list with null as element 1; expected only names, mend the row or leave it",
    ),
    "empty inside": ([["a"], ["", "b"]], "a list with an empty string as element 0; expected only names"),
    "list inside": ([[["hush"]]], "the label (label) is a list with a list as element 0; expected only names"),
    "NaN inside": ([["a"], [float("nan")]], "a list with NaN as element 0; expected only names"),
    "object inside": ([[{"hush": "a"}]], "a list with a dict as element 0; expected only names"),
}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in INVALID_LISTS
        for name in ("a.jsonl", "a.parquet")
        if (case, name) != ("NaN inside", "a.parquet")  # no Parquet list holds strings and numbers
    ],
)
def test_an_invalid_list_of_labels_is_an_error_that_names_file_and_row(case: str, name: str, tmp_path: Path) -> None:
    """The message does not repeat the values; the row is malformed and has no label."""
    invalid, expected = INVALID_LISTS[case]
    labels = [[], *invalid, []]
    rows = [{"id": f"d{n}", "text": "t", "label": label} for n, label in enumerate(labels)]
    uri = write_file(tmp_path, name, FORMATS[name](rows))
    with pytest.raises(UserError) as error:
        read_labelled(list_files(uri), DATA)
    message = error_message(error, uri)
    place = f"row {len(invalid)} (from 0)" if name == "a.parquet" else f"line {len(invalid) + 1}"
    assert message.startswith(f"{uri} {place}: the label (label) is ")
    assert expected in message
    assert "hush" not in message
    documents = read_all(uri)
    assert [label is None for label in documents.labels] == [row == len(invalid) for row in range(len(labels))]
    assert list(documents.malformed) == ([] if case == "null" else [len(invalid)])


def test_a_malformed_list_is_reported_at_its_row_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are counted across row groups; a night reads no labels, and there the row is not malformed."""
    labels = [["a"], [], ["b"], ["a"], ["b"], ["a", None]]
    table = pa.table({"id": list("abcdef"), "text": ["t"] * 6, "label": labels})
    uri = write_file(tmp_path, "a.parquet", to_parquet(table, row_group_size=2))
    for window in (100, 10**6):
        divide_files(monkeypatch, window)
        assert list(read_all(uri).malformed) == [5]
        assert read_all(uri, columns=ID_AND_TEXT).malformed == {}
        with pytest.raises(UserError, match=r"row 5 \(from 0\): the label \(label\) is a list with null as element 1"):
            read_labelled(list_files(uri), DATA)


def test_lone_surrogates_in_a_list_of_labels_are_an_error(tmp_path: Path) -> None:
    data = b'{"id": "1", "text": "t", "label": ["a", "\\ud800"]}'
    with pytest.raises(UserError, match="line 1: 'label' holds lone surrogates, expected Unicode"):
        read_labelled(list_files(write_file(tmp_path, "a.jsonl", data)), DATA)


def test_a_corpus_with_string_labels_and_list_labels_is_an_error(tmp_path: Path) -> None:
    """This also holds if they are in different files."""
    rows = [{"id": 1, "text": "t", "label": "a"}, {"id": 2, "text": "t", "label": "b"}]
    write_file(tmp_path, "a.jsonl", to_jsonl(rows))
    write_file(tmp_path, "b.parquet", to_parquet([{"id": "3", "text": "t", "label": ["a"]}]))
    labels = read_labelled(list_files(str(tmp_path)), DATA).labels
    assert labels == ["a", "b", ["a"]]
    with pytest.raises(UserError, match="labels: found strings and lists; expected one class per document, or a list"):
        LabelSpace.of(labels, ["train", "train", "valid"])


def test_columns_are_read_by_the_names_in_the_settings(tmp_path: Path) -> None:
    """One column may have two roles, and only the requested columns are read."""
    data = DataSettings(train="unused", id="key", text="body", label="key", split="part", group="author")
    row = {"part": "test", "author": 7, "body": "words", "key": 3, "id": "no", "": "no"}
    named_columns = {name: value for name, value in row.items() if name}
    for name, content in (
        ("a.parquet", to_parquet([named_columns])),
        ("a.csv", to_csv([row])),
        ("a.jsonl", to_jsonl([row])),
    ):
        uri = write_file(tmp_path, name, content)
        assert read_all(uri, data) == Documents(["3"], ["words"], ["3"], ["test"], ["7"])
        assert read_all(uri, data, columns=ID_AND_TEXT) == Documents(["3"], ["words"], [None], [None], [None])


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_documents_have_the_group_of_their_column_or_else_of_their_text(name: str, tmp_path: Path) -> None:
    """A number is the same group in every format; a null or empty value is no group."""
    data = DataSettings(train="unused", group="author")
    rows = [
        {"id": str(n), "text": text, "label": "ab"[n % 2], "author": author}
        for n, (text, author) in enumerate([("A b!", 1), ("c", 1), ("a B", None), ("d", None), ("@x a b", 2)])
    ]
    files = list_files(write_file(tmp_path, name, FORMATS[name](rows)))
    labelled = read_labelled(files, data)
    assert list(labelled.text_hashes) == [hash_text(row["text"]) for row in rows]
    one, two, text = hash_group("1"), hash_group("2"), hash_text("a b")
    assert list(labelled.groups) == [one, one, text, hash_text("d"), two]
    assert read_labelled(files, DATA).groups == labelled.text_hashes


@pytest.mark.parametrize("missing", ["NA", "NaN", "null", ""])
def test_what_csv_has_for_a_missing_value_is_no_group(missing: str, tmp_path: Path) -> None:
    """All documents without an author would be one group, and on one side of every division."""
    content = f"id,text,label,author\n1,a b,x,{missing}\n2,c d,y,{missing}\n3,e f,x,Nan\n".encode()
    files = list_files(write_file(tmp_path, "a.csv", content))
    labelled = read_labelled(files, DataSettings(train="unused", group="author"))
    assert list(labelled.groups) == [hash_text("a b"), hash_text("c d"), hash_group("Nan")]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_a_group_column_without_any_value_is_an_error(name: str, tmp_path: Path) -> None:
    """Only a null in every line of JSONL tells a wrong name from a column that has no values."""
    data = DataSettings(train="unused", group="author")
    rows = [{"id": str(n), "text": "t", "label": "a", "author": None} for n in range(3)]
    with pytest.raises(UserError, match=r"^data\.group: 'author' is null in all 3 documents; expected a column with"):
        read_labelled(list_files(write_file(tmp_path, name, FORMATS[name](rows))), data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl", r"a\.jsonl line 2: the group \(author\) is a list; expected one value, or null"),
        ("a.parquet", r"a\.parquet cannot be read, .*list"),
    ],
)
def test_a_group_that_is_not_one_value_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    data = DataSettings(train="unused", group="author")
    rows = [{"id": str(n), "text": "t", "label": "a", "author": author} for n, author in enumerate([None, ["y"]])]
    files = list_files(write_file(tmp_path, name, FORMATS[name](rows)))
    with pytest.raises(UserError, match=message):
        read_labelled(files, data)


def test_of_parquet_only_the_columns_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only reads of input files are counted, not those of a store."""
    rng = np.random.default_rng(0)
    rows = [{"id": n, "text": "t", "body": rng.bytes(15_000).hex()} for n in range(40)]
    uri = write_file(tmp_path, "a.parquet", to_parquet(rows))
    monkeypatch.setattr(readers, "BLOCK", 1)  # or a small file is read whole
    with count_input_reads() as reads:
        Store(str(tmp_path)).read("a.parquet")
        assert len(read_all(uri, columns=ID_AND_TEXT)) == 40
    assert 0 < reads.bytes < Path(uri).stat().st_size / 10


def test_read_labelled_returns_as_many_texts_as_requested(tmp_path: Path) -> None:
    rows = build_rows([f"text {n}" for n in range(9)])
    files = list_files(write_file(tmp_path, "a.jsonl", to_jsonl(rows)))
    for requested, returned in ((0, 0), (5, 5), (99, 9), (None, 9)):
        assert read_labelled(files, DATA, keep_texts=requested).texts == [row["text"] for row in rows[:returned]]


# Files that cannot be read

GOOD = build_rows([f"some text {n}" for n in range(400)])
PAGES = {"compression": "none", "use_dictionary": False, "write_statistics": False}


def corrupt_at(data: bytes, text: bytes) -> bytes:
    """Replace the first byte of `text` in a file by one that is invalid in UTF-8."""
    position = data.index(text)
    return data[:position] + b"\xff" + data[position + 1 :]


def drop_column(name: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} for row in GOOD]


UNREADABLE = "cannot be read, it is corrupt, truncated or not what its name says: "
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    **{
        f"{name} without {column}": (
            name,
            FORMATS[name](drop_column(column)),
            f"has no {kind}'{column}'; it has {', '.join(drop_column(column)[0])}",
        )
        for name, kind in (("a.parquet", "column "), ("a.csv", "column "), ("a.jsonl", ""))
        for column in ("id", "text", "label")
    },
    **{
        f"empty {name}": (name, gzip.compress(b"") if name.endswith("gz") else b"", UNREADABLE + "it is empty")
        for name in ("a.csv", "a.jsonl", "a.csv.gz", "a.jsonl.gz")
    },
    **{
        f"{name} cut short": (name, FORMATS[name](GOOD)[:-9], UNREADABLE + "Truncated compressed stream")
        for name in ("A.CSV.GZ", "A.JSONL.GZ", "a.jsonl.bz2", "a.jsonl.zst")
    },
    "parquet with two text columns": (
        "a.parquet",
        to_parquet(pa.Table.from_arrays([pa.array(["a"])] * 4, names=["id", "text", "text", "label"])),
        "has 2 columns 'text'; it has id, text, text, label",
    ),
    "parquet with texts of numbers": (
        "a.parquet",
        to_parquet([{"id": "1", "text": 7, "label": "a"}]),
        "column 'text' is int64, expected string",
    ),
    "parquet with ids of lists": (
        "a.parquet",
        to_parquet([{"id": [1], "text": "a", "label": "b"}]),
        UNREADABLE + "Unsupported cast",
    ),
    "parquet cut short": ("a.parquet", to_parquet(GOOD)[:-5], UNREADABLE),
    "parquet cut in the middle": ("a.parquet", to_parquet(GOOD)[:999], UNREADABLE),
    "empty parquet": ("a.parquet", b"", UNREADABLE),
    "jsonl named parquet": ("a.parquet", to_jsonl(GOOD), UNREADABLE),
    "parquet that is not UTF-8": (
        "a.parquet",
        corrupt_at(to_parquet(GOOD, **PAGES), b"some text 9"),
        UNREADABLE + "'utf-8' codec",
    ),
    "parquet with a wrong checksum": (
        "a.parquet",
        to_parquet(GOOD, **PAGES, write_page_checksum=True).replace(b"some text 9", b"come text 9"),
        UNREADABLE + "could not verify page integrity, CRC checksum verification failed",
    ),
    "parquet with corrupt pages": (
        "a.parquet",
        to_parquet(GOOD, compression="zstd").replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0"),
        UNREADABLE,
    ),
    "csv of semicolons without text": (
        "a.csv",
        to_csv(drop_column("text")).replace(b",", b";"),
        "has no column 'text'; it has id, label",
    ),
    "csv without a header": (
        "a.csv",
        b"17,hush hush hush,x\n",
        "has no column 'id' among its 3; is the first line a header?",
    ),
    "csv that is not UTF-8": (
        "a.csv",
        b'id,text,label\n1,"two\nlines",x\n2,caf\xe9,x\n',
        " line 4 is not utf-8, it holds the byte 0xe9; name the encoding in data.encoding, as cp1252 or latin-1",
    ),
    "csv with an extra value": (
        "a.csv",
        b"id,text,label\n1,hush,x,y\n",
        " line 2 has 4 values; expected 3, as in the header",
    ),
    "csv with many uneven rows": (
        "a.csv",
        b'id,text,label\n1,"a\nb",x\n2,a\n\n' + b"3,a,x\n4,hush,x,y\n" * 12,
        " line 4 has 2 values; expected 3, as in the header; more or fewer in lines 7, 9, 11, 13, 15, 17, 19, 21, 23 "
        "and 3 more, too",
    ),
    "csv with a name twice": (
        "a.csv",
        b"id,text,id,label\n1,hush,2,x\n",
        "has 2 columns of one name, the first of which is column 0 of 4; expected a header",
    ),
    "csv that ends in a quote": (
        "a.csv",
        b'id,text,label\n1,a,x\n2,"hush\n3,hush,x\n',
        " line 3 cannot be read: the file ends inside a quoted value; is a quote not closed",
    ),
    "csv cut in its last value": (
        "a.csv",
        b'"id","text","label"\n"1","a","x"\n"2","b","hus',
        " line 3 cannot be read: the file ends inside a quoted value",
    ),
    "csv with a quote that swallows rows": (
        "a.csv",
        b'id,text,label\n1,"hush,x\n2,"hush",x\n',
        " line 2 cannot be read: text follows a quoted value; is a quote not closed",
    ),
    "jsonl cut in its last line": (
        "a.jsonl",
        to_jsonl(GOOD)[:-9],
        " ends inside a line: the last one has no line end and is not JSON: ",
    ),
    "jsonl.gz cut before it was compressed": ("a.jsonl.gz", gzip.compress(to_jsonl(GOOD)[:-9]), " ends inside a line"),
    "jsonl named gz": ("a.jsonl.gz", to_jsonl(GOOD), UNREADABLE + "zlib inflate failed"),
    "jsonl that is not JSON": ("a.jsonl", b"hush\n", " line 1: the line is not JSON: Expecting value in column 1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_unreadable_training_file_is_a_user_error_that_names_it(case: str, tmp_path: Path) -> None:
    """The message is one line and holds no text of the documents."""
    name, data, expected = BAD_FILES[case]
    uri = write_file(tmp_path, name, data)
    with pytest.raises(UserError) as error:
        read_labelled(list_files(uri), DATA)
    message = error_message(error, uri)
    assert expected in message
    assert "hush" not in message


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "A.JSONL.GZ"])
def test_a_file_deleted_after_the_listing_is_a_user_error_that_names_it(name: str, store_uri: str) -> None:
    store = Store(store_uri)
    store.write(name, FORMATS[name](ROWS))
    files = list_files(f"{store.uri}/{name}")
    store.delete_many([name])
    with pytest.raises(UserError, match=f"{name}: not found"):
        read_labelled(files, DATA)


# Rows that cannot be read

MALFORMED_LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hush {", "the line is not JSON: Expecting value"),
    "cut off": (b'{"id": "1", "text": "hush', "the line is not JSON: Unterminated string"),
    "two objects": (b'{"id": "1"} {"text": "hush"}', "the line is not JSON: Extra data"),
    "list": (b'["hush"]', "the line is a JSON list, expected an object"),
    "string": (b'"hush"', "the line is a JSON str, expected an object"),
    "null": (b"null", "the line is a JSON NoneType, expected an object"),
    "NUL": (b'{"id": "1", "text": "hush\x00"}', "the line is not JSON: Invalid control character"),
    "NULs": (b"\x00\x00\x00", "the line is not JSON: "),
    "UTF-16": ('{"id": "hush"}'.encode("utf-16"), "the line is not utf-8, it holds the byte 0xff; "),
    "Latin-1": (b'{"id": "1", "text": "caf\xe9 hush"}', "the line is not utf-8, it holds the byte 0xe9; "),
    "deep nesting": (b'{"text": ' + b"[" * 100_000, "the line is not JSON: maximum recursion depth"),
    "long number": (b'{"id": ' + b"9" * 5000 + b"}", "the line is not JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("case", MALFORMED_LINES)
def test_a_malformed_line_is_a_row_with_a_reason(case: str, compressed: bool, tmp_path: Path) -> None:
    """The rows around it are not affected, and the reason does not repeat the line."""
    line, expected = MALFORMED_LINES[case]
    data = b"\n".join([b'{"id": "before", "text": "a"}', line, b'{"id": "after", "text": "b"}'])
    name = "a.jsonl.gz" if compressed else "a.jsonl"
    uri = write_file(tmp_path, name, gzip.compress(data) if compressed else data)
    documents = read_all(uri, columns=ID_AND_TEXT)
    assert documents.ids == ["before", None, "after"]
    assert documents.texts == ["a", None, "b"]
    [(row, reason)] = documents.malformed.items()
    assert (row, reason.startswith(expected), "hush" in reason) == (1, True, False)
    assert find_dead_rows(documents) == {1: ("malformed", reason)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"{}", b"[", b'{"id":1,"text":"a"}']), max_size=8), windows)
def test_any_bytes_can_be_read_as_jsonl(lines: list[bytes], window: int) -> None:
    """There are as many rows as lines that are not blank, whatever the ranges in which they are read."""
    data = b"".join(line + b"\n" for line in lines) or b"\n"
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        divide_files(patch, window)
        documents = read_all(write_file(Path(folder), "a.jsonl", data), columns=ID_AND_TEXT)
    assert len(documents) == sum(bool(line.strip()) for line in data.split(b"\n"))
    assert set(find_dead_rows(documents)) >= set(documents.malformed)


ROWS_AND_REASONS: list[tuple[Row, str | None]] = [
    ({"id": "good", "text": "fine"}, None),
    ({"text": "hush"}, "null_id"),
    ({"id": "", "text": "hush"}, "null_id"),
    ({"id": "a\ud800", "text": "hush"}, "bad_id"),
    ({"id": "t0"}, "null_text"),
    ({"id": "t1", "text": 3}, "not_text"),
    ({"id": "t2", "text": ["hush"]}, "not_text"),
    ({"id": "t3", "text": ""}, "empty_text"),
    ({"id": "t4", "text": " \n\t\u3000"}, "empty_text"),
    ({"id": "t5", "text": "hush \udfff"}, "not_text"),
    ({"id": 7, "text": "\U0001f600 \u0000 fine"}, None),
]


def test_every_row_that_cannot_be_classified_has_a_reason(tmp_path: Path) -> None:
    """All other rows are left out, and no message holds the text of a document."""
    data = to_jsonl([row for row, _ in ROWS_AND_REASONS]) + b"[hush]\n"
    documents = read_all(write_file(tmp_path, "a.jsonl", data), columns=ID_AND_TEXT)
    documents.drop_unfit_texts(DATA)
    dead = find_dead_rows(documents)
    reasons = [reason for _, reason in ROWS_AND_REASONS] + ["malformed"]
    assert len(documents) == len(reasons)
    assert {row: reason for row, (reason, _) in dead.items()} == {
        row: reason for row, reason in enumerate(reasons) if reason
    }
    assert not [message for _, message in dead.values() if "hush" in message or not message]


# Rows that cannot be trained on

INVALID_ROWS: dict[str, tuple[Row, str]] = {
    "label null": ({"label": None}, "the label (label) is missing (null, NaN or empty); label the row or leave it out"),
    "label empty": ({"label": ""}, "the label (label) is missing (null, NaN or empty)"),
    "label surrogate": ({"label": "\ud800"}, "'label' holds lone surrogates, expected Unicode"),
    "id null": ({"id": None}, "the id (id) is null; expected a unique one"),
    "id twice": ({"id": "d1"}, "the id 'd1' was seen before; expected unique ids in 'id'"),
    "id surrogate": ({"id": "x\ud800"}, "'id' holds lone surrogates"),
    "text null": ({"text": None}, "the text (text) is not text; leave the row out"),
    "text number": ({"text": 3}, "the text (text) is not text"),
    "text empty": ({"text": ""}, "the text (text) is empty; leave the row out"),
    "text blank": ({"text": " \n"}, "the text (text) is empty"),
    "text surrogate": ({"text": "hush \udc00"}, "'text' holds lone surrogates"),
    "split unknown": ({"split": "dev"}, "the split (split) is 'dev'; expected train, valid or test"),
    "split null": ({"split": None}, "the split (split) is None; expected"),
}
LABELLED = [{**row, "split": ("train", "valid", "test")[n % 3]} for n, row in enumerate(build_rows(["a", "b"] * 4))]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in INVALID_ROWS
        for name in ("a.jsonl", "a.parquet", "a.csv")
        # no Parquet string and no CSV value can hold a lone surrogate or a number
        if name == "a.jsonl" or not ("surrogate" in case or case == "text number")
    ],
)
def test_a_row_that_cannot_be_trained_on_is_an_error_that_names_file_and_row(
    case: str, name: str, tmp_path: Path
) -> None:
    """The message does not hold the text of the row."""
    change, expected = INVALID_ROWS[case]
    rows = [{**row, **change} if n == 6 else row for n, row in enumerate(LABELLED)]
    if name == "a.csv":
        expected = expected.replace("not text", "empty")
    data = FORMATS[name](rows)
    uri = write_file(tmp_path, name, data)
    with pytest.raises(UserError) as error:
        read_labelled(list_files(uri), SPLIT)
    message = error_message(error, uri)
    place = {"a.jsonl": "line 7", "a.parquet": "row 6 (from 0)", "a.csv": "line 8"}[name]
    assert message.startswith(f"{uri} {place}: ")
    assert expected in message.replace("'None'", "None").replace("''", "None")
    assert "hush" not in message


def test_the_first_row_whose_id_was_seen_is_named_before_later_mistakes(tmp_path: Path) -> None:
    """Ids are compared after all rows are read, but mistakes are named in their order."""
    rows = [{"id": id, "text": "t", "label": "a"} for id in "abcdbea"]
    uri = write_file(tmp_path, "a.parquet", to_parquet(rows, row_group_size=2))
    expected = (
        rf"^{uri} row 4 \(from 0\): the id 'b' was seen before; expected unique ids in 'id'; {uri} row "
        r"[56] \(from 0\): the "
    )
    with pytest.raises(UserError, match=expected):
        read_labelled(list_files(uri), DATA)
    uri = write_file(tmp_path, "a.parquet", to_parquet([*rows[:5], {**rows[5], "text": ""}], row_group_size=2))
    with pytest.raises(UserError, match=expected):
        read_labelled(list_files(uri), DATA)
    uri = write_file(tmp_path, "a.parquet", to_parquet([*rows[:3], {**rows[3], "text": ""}, rows[4]]))
    with pytest.raises(UserError, match=r"row 3 \(from 0\): the text"):
        read_labelled(list_files(uri), DATA)


def test_the_first_of_many_repeated_ids_is_named_by_its_file_and_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as the first row of a file, or before a file that cannot be read; it need not have the least hash."""
    monkeypatch.setattr(labelled_corpus, "hash", ord, raising=False)
    for name, ids in (("a", "abcd"), ("b", "dcba")):
        rows = [{"id": id, "text": "t", "label": "a"} for id in ids]
        write_file(tmp_path, f"{name}.parquet", to_parquet(rows))
    expected = r"b\.parquet row 0 \(from 0\): the id 'd' was seen before.*row 3 \(from 0\): the id 'a'"
    with pytest.raises(UserError, match=expected):
        read_labelled(list_files(str(tmp_path)), DATA)
    write_file(tmp_path, "c.jsonl", b"{")
    with pytest.raises(UserError, match=expected):
        read_labelled(list_files(str(tmp_path)), DATA)


def test_different_ids_of_one_hash_are_no_repeated_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_corpus, "hash", lambda id: len(id), raising=False)
    rows = [{"id": id, "text": "t", "label": "a"} for id in ("a", "bb", "b", "c", "cc")]
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(rows))
    assert list(read_labelled(list_files(uri), DATA).ids) == ["a", "bb", "b", "c", "cc"]
    uri = write_file(tmp_path, "a.parquet", to_parquet([*rows, rows[2]]))
    with pytest.raises(UserError, match=r"row 5 \(from 0\): the id 'b' was seen before"):
        read_labelled(list_files(uri), DATA)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("window", [90, 10**6])
def test_the_first_ten_bad_rows_are_named_by_their_lines(
    name: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines and values of several lines count as they do in an editor, in all ranges; the rest is counted."""
    divide_files(monkeypatch, window)
    rows = [{"id": f"d{n}", "text": "two\nlines", "label": "" if n % 2 else "x"} for n in range(30)]
    lines = to_jsonl(rows).replace(b"\n", b"\n\n") if "jsonl" in name else to_csv(rows)
    uri = write_file(tmp_path, name, gzip.compress(lines) if name.endswith("gz") else lines)
    with pytest.raises(UserError) as error:
        read_labelled(list_files(uri), DATA)
    first = 3 if "jsonl" in name else 4
    named = ", ".join(str(first + 4 * n) for n in range(9))
    assert error_message(error, uri) == (
        f"{uri} lines {named} and {first + 36}: the label (label) is missing (null, NaN or empty); label the row or "
        "leave it out; and 5 more rows"
    )


def test_rows_with_the_same_mistake_are_named_together_in_all_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [{"id": f"{name}1", "text": "t", "label": None}, {"id": f"{name}2", "text": "", "label": "x"}]
        write_file(tmp_path, f"{name}.jsonl", to_jsonl(rows))
    with pytest.raises(UserError) as error:
        read_labelled(list_files(str(tmp_path)), DATA)
    folder = f"{tmp_path}/"
    assert str(error.value).replace(folder, "") == (
        "a.jsonl line 1 and b.jsonl line 1: the label (label) is missing (null, NaN or empty); label the row or "
        "leave it out; a.jsonl line 2 and b.jsonl line 2: the text (text) is empty; leave the row out"
    )


# Delimiters and encodings

SEPARATED = 'id{0}text{0}"a;b,c"{0}label\r\n' + "".join(
    f'{n}{{0}}"one, two; three\tü"{{0}}x{{0}}y\r\n' for n in range(9)
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_decides_the_delimiter(delimiter: str, tmp_path: Path) -> None:
    """Also where its names are quoted and hold other delimiters; the setting decides in its place."""
    uri = write_file(tmp_path, "a.csv", ("\ufeff" + SEPARATED.format(delimiter)).encode())
    named = DATA.model_copy(update={"delimiter": delimiter})
    for data in (DATA, named):
        documents = read_all(uri, data)
        assert documents.ids == [str(n) for n in range(9)]
        assert documents.texts == ["one, two; three\tü"] * 9
        assert documents.labels == ["y"] * 9
    other = DATA.model_copy(update={"delimiter": "|"})
    with pytest.raises(UserError, match="has no column 'id'"):
        read_all(uri, other)


def test_a_comma_is_kept_where_it_gives_the_columns(tmp_path: Path) -> None:
    """Also if another delimiter gives more: files that were read before are read in the same way."""
    uri = write_file(tmp_path, "a.csv", b"id,text,label,a;b;c;d;e\n1,t,x,y\n")
    assert read_all(uri).labels == ["x"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_other_encodings_are_read_by_their_name(name: str, tmp_path: Path) -> None:
    rows = build_rows(["Grüße", "50 \u20ac", "caf\u00e9"])
    data = DATA.model_copy(update={"encoding": "cp1252"})
    text = (to_csv(rows) if "csv" in name else to_jsonl(rows, ensure_ascii=False)).decode().encode("cp1252")
    uri = write_file(tmp_path, name, gzip.compress(text) if name.endswith("gz") else text)
    assert read_all(uri, data).texts == ["Grüße", "50 \u20ac", "caf\u00e9"]
    with pytest.raises(UserError, match=r"line \d( is not|: the line is not) utf-8, it holds the byte 0x"):
        read_labelled(list_files(uri), DATA)


def test_read_labelled_returns_ids_labels_and_splits_in_plan_order(tmp_path: Path) -> None:
    """It reads splits only if the settings name their column."""
    write_file(tmp_path, "a.jsonl", to_jsonl(LABELLED[:5]))
    write_file(tmp_path, "b.parquet", to_parquet(LABELLED[5:]))
    files = list_files(str(tmp_path))
    labelled = read_labelled(files, SPLIT)
    assert list(labelled.ids) == [row["id"] for row in LABELLED]
    assert labelled.labels == [row["label"] for row in LABELLED]
    assert labelled.splits == [row["split"] for row in LABELLED]
    assert read_labelled(files, DATA).splits == [None] * 8


def test_a_plan_stores_uri_kind_size_and_version_of_each_file(tmp_path: Path) -> None:
    write_file(tmp_path, "a.csv", b"id,text\n")
    [file] = list_files(str(tmp_path))
    assert to_json([file]) == [{"uri": f"{tmp_path}/a.csv", "kind": "csv", "size": 8, "version": file.version}]
    assert Shard(7).name == "000007"


# Formats


class CardReader(Reader):
    """A format of the tests: cards `id: label: text`, one in a line, after one with the names of its values."""

    name, title, endings = "card", "cards", (".card",)

    def read(self, source: Any, piece: Piece, data: DataSettings, columns: Collection[Role]) -> Iterator[Documents]:
        content = formats.decompressed(source, piece.uri, data)
        lines = io.TextIOWrapper(content, encoding=formats.text_codec(data.encoding))
        names = next(lines, "").rstrip("\n").split(": ")
        for chunk in reader.in_chunks(lines, len):
            cards = [line.rstrip("\n").split(": ") for line in chunk]
            yield to_documents([dict(zip(names, card, strict=False)) for card in cards], data, columns)


def write_cards(rows: Sequence[Row]) -> bytes:
    return "".join(f"{row['id']}: {row['label']}: {row['text']}\n" for row in rows).encode("cp1252")


def test_a_format_is_added_by_a_class_and_its_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may be compressed, and its bad rows are named as those of other formats."""
    data = DataSettings(train="unused", id="number", encoding="cp1252")
    monkeypatch.setattr(reader, "_CHUNK", 2)
    header, rows = b"number: label: text\n", [*LABELLED, {"id": "last", "label": "a", "text": "café"}]
    uri = write_file(tmp_path, "a.card", header + write_cards(rows))
    with pytest.raises(UserError, match="is not Parquet, JSONL or CSV by its name"):
        list_files(uri)
    monkeypatch.setattr(readers, "READERS", (*readers.READERS, CardReader()))
    read_in_this_process(monkeypatch)
    for path in (uri, write_file(tmp_path, "a.card.gz", gzip.compress(header + write_cards(rows)))):
        documents = read_all(path, data)
        assert (documents.ids, documents.texts) == ([row["id"] for row in rows], [row["text"] for row in rows])
    uri = write_file(tmp_path, "b.card", header + write_cards([*LABELLED[:3], {"id": "x", "label": "", "text": "t"}]))
    with pytest.raises(UserError, match=r"b\.card row 3 \(from 0\): the label \(label\) is missing"):
        read_labelled(list_files(uri), data)
    uri = write_file(tmp_path, "empty.card.gz", gzip.compress(b""))
    with pytest.raises(UserError, match=r"empty\.card\.gz cannot be read.*: it is empty"):
        read_labelled(list_files(uri), data)
    write_file(tmp_path, "c.txt", b"t")
    with pytest.raises(UserError, match=r"is not Parquet, JSONL, CSV or cards by its name; expected .*\.csv or \.card"):
        list_files(str(tmp_path))


def test_no_two_formats_have_one_name() -> None:
    names = [each.name for each in readers.READERS]
    assert len(set(names)) == len(names)


def test_a_kind_that_nothing_reads_is_an_error() -> None:
    """It is not read as CSV."""
    with pytest.raises(UserError, match="is of the kind 'card', which nothing reads; expected parquet, jsonl or csv"):
        next(read_piece(Piece("a.card", "card", 0, 9), DATA))


def test_a_message_names_absent_columns_in_the_same_order_in_every_process() -> None:
    """Workers write it as the reason of a dead letter; the order of a set depends on the process."""
    data = DataSettings(train="unused", id="number", text="body", label="topic")
    found = to_documents([{}], data, ALL_COLUMNS).absent[0]
    assert found == "the row has no 'number' and no 'body' and no 'topic'; it has none"


def test_a_parquet_file_that_holds_other_rows_than_it_says_is_bad(tmp_path: Path) -> None:
    """Its footer was written for another file of the same layout, or was changed."""
    rows = [{"id": str(row), "text": "t"} for row in range(20)]
    content = to_parquet(rows, compression="none")
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = content.index(bytes([0x16, 2 * len(rows)]), footer)  # num_rows in Thrift's compact protocol
    uri = write_file(tmp_path, "a.parquet", content[: at + 1] + bytes([2 * 19]) + content[at + 2 :])
    assert pq.read_metadata(uri).num_rows == 19
    with pytest.raises(BadFileError, match="it has 20 rows by its row groups and 19 by its footer, and 20 were read"):
        list(read_piece(list_files(uri)[0].whole, DATA))
