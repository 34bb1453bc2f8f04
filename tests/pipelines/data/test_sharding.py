"""The corpus: every row of every format once and in order, whatever the shards; bad files and rows by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import readers as documents_module
from pipelines.data.input_files import list_files
from pipelines.data.readers import ALL_COLUMNS, ID_AND_TEXT, IDS, TEXTS, Column, Documents, Shard, read_shard
from pipelines.data.sharding import plan_shards, split_shard
from pipelines.data.training_labels import Corpus, read_labelled
from pipelines.nightly.classify_step import triage
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from pipelines.storage.request_counting import count_input_reads
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.settings import DataSettings

DATA = DataSettings(train="unused")
SPLIT = DataSettings(train="unused", split="split")

Row = dict[str, Any]


def parquet(rows: Sequence[Row] | pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def jsonl(rows: Sequence[Row], end: str = "\n", **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + end for row in rows).encode()


def comma_separated(rows: Sequence[Row], end: str = "\n", *, quoted: bool = False) -> bytes:
    sink, names = io.StringIO(), list(rows[0]) if rows else ["id", "text", "label"]
    quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(sink, names, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def rows_in_split(texts: Sequence[str]) -> list[Row]:
    return [{"id": f"d{n}", "text": text, "label": "odd" if n % 2 else "even"} for n, text in enumerate(texts)]


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def plan(uri: str, documents: int = 2, data: DataSettings = DATA) -> list[Shard]:
    return plan_shards(list_files(uri), documents, data)


def read_all(
    shards: Sequence[Shard], data: DataSettings = DATA, *, columns: Sequence[Column] = ALL_COLUMNS
) -> Documents:
    """The shards' documents, one after the other."""
    every = Documents()
    for shard in shards:
        found = read_shard(shard, data, columns=columns)
        every.malformed |= {len(every) + row: why for row, why in found.malformed.items()}
        for name in ("ids", "texts", "labels", "splits"):
            assert len(getattr(found, name)) == len(found)
            getattr(every, name).extend(getattr(found, name))
    return every


def one_line(error: pytest.ExceptionInfo[UserError], uri: str) -> str:
    """The message, which must be one line that begins with the file."""
    message = str(error.value)
    assert message.startswith(uri)
    assert "\n" not in message
    return message


# Which files


def test_a_folder_gives_its_data_files_in_order(store_uri: str) -> None:
    """Below it at any depth, by name; what is hidden, or begins with `_`, is none, be it a folder."""
    store = Store(store_uri)
    for key in ("b.csv", "a.jsonl", "sub/c.parquet", "_SUCCESS", ".part.crc", "_temporary/x.csv", ".git/y.csv"):
        store.write(f"data/{key}", b"12345")
    files = list_files(f"{store.uri}/data")
    assert [file.uri for file in files] == [f"{store.uri}/data/{key}" for key in ("a.jsonl", "b.csv", "sub/c.parquet")]
    assert [file.kind for file in files] == ["jsonl", "csv", "parquet"]
    assert {file.size for file in files} == {5}
    assert all(file.version for file in files)
    assert list_files(f"{store.uri}/data/") == files


def test_a_file_and_a_glob(store_uri: str) -> None:
    """A file is itself, even one whose name looks like a glob or is hidden; a glob takes in nothing hidden."""
    store = Store(store_uri)
    for key in ("a.csv", "b.csv", "b.jsonl", "_c.csv", ".d.csv", "x[1].csv", "deep/e.csv", "_raw/f.csv"):
        store.write(key, b"")

    def names(uri: str) -> list[str]:
        return [file.uri.removeprefix(f"{store.uri}/") for file in list_files(f"{store.uri}/{uri}")]

    assert names("a.csv") == ["a.csv"]
    assert names("_c.csv") == ["_c.csv"]
    assert names("x[1].csv") == ["x[1].csv"]
    assert names("*.csv") == ["a.csv", "b.csv", "x[1].csv"]
    assert names("b.*") == ["b.csv", "b.jsonl"]
    assert names("**/*.csv") == ["a.csv", "b.csv", "deep/e.csv", "x[1].csv"]
    assert names("_raw/*.csv") == ["_raw/f.csv"]


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    target = put(tmp_path, "blobs/1234", b"12345")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").symlink_to(target)
    [file] = list_files(str(tmp_path / "data"))
    assert (file.uri, file.size) == (str(tmp_path / "data" / "a.csv"), 5)


def test_a_changed_file_has_another_version(store_uri: str) -> None:
    """So that a plan of the old file is not taken for one of the new."""
    store = Store(store_uri)
    store.write("a.csv", b"id,text\n1,a\n")
    [before], [again] = list_files(f"{store.uri}/a.csv"), list_files(f"{store.uri}/a.csv")
    store.write("a.csv", b"id,text\n1,b\n")
    if store.local:
        os.utime(store.path("a.csv"), (1, 1))
    [after] = list_files(f"{store.uri}/a.csv")
    assert before == again
    assert (before.size, before.version != after.version) == (after.size, True)


@pytest.mark.parametrize("uri", ["none", "none/*.csv", "empty"])
def test_no_data(uri: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^no data at .*expected a file, a folder or a glob"):
        list_files(f"{tmp_path}/{uri}")


@pytest.mark.parametrize("name", ["a.txt", "a.parquet.gz", "a", "a.csv.zip"])
def test_an_unknown_ending(name: str, tmp_path: Path) -> None:
    """One such file among others is enough."""
    put(tmp_path, "good.csv", b"")
    uri = put(tmp_path, name, b"")
    with pytest.raises(UserError) as error:
        list_files(str(tmp_path))
    assert one_line(error, uri) == f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv"


def test_a_glob_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\*\*\.csv is no glob"):
        list_files(f"{tmp_path}/**.csv")


# Every row once and in order

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=25)
sizes = st.integers(1, 30)
ends = st.sampled_from(["\n", "\r\n"])


def check_covers(name: str, data: bytes, rows: Sequence[Row], documents: int) -> list[Shard]:
    """The shards of a file, the same each time they are planned, after a look that they hold its rows in order."""
    with tempfile.TemporaryDirectory() as folder:
        uri = put(Path(folder), name, data)
        shards = plan(uri, documents)
        assert shards == plan(uri, documents)
        assert [shard.index for shard in shards] == list(range(len(shards)))
        assert all(one.stop == next.start for one, next in pairwise(shards))
        found = read_all(shards)
        assert not found.malformed
        assert found.ids == [row["id"] for row in rows]
        assert found.texts == [row["text"] for row in rows]
        assert found.labels == [row["label"] for row in rows]
        assert found.splits == [None] * len(rows)
        plain = read_all(shards, columns=ID_AND_TEXT)
        assert (plain.ids, plain.texts, plain.labels) == (found.ids, found.texts, [None] * len(rows))
        for size in (1, 2, documents):
            parts = [part for shard in shards for part in split_shard(shard, size)]
            assert read_all(parts).ids == found.ids
            assert all(part.documents <= size for part in parts)
    return shards


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), sizes)
def test_parquet_of_any_row_groups(groups: list[int], documents: int) -> None:
    """Small groups go together, large ones are cut; no shard is larger than was asked for, few are needed."""
    rows = rows_in_split([f"text {n}" for n in range(sum(groups))])
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in ("id", "text", "label")})
    sink, first = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, table.schema) as writer:
        for size in groups:
            writer.write_table(table.slice(first, size), row_group_size=max(1, size))
            first += size
    shards = check_covers("a.parquet", sink.getvalue().to_pybytes(), rows, documents)
    shares = [shard.stop - shard.start for shard in shards]
    assert all(0 < share <= documents for share in shares)
    assert all(one + next > documents for one, next in pairwise(shares)) or max(groups) > documents


@settings(max_examples=60, deadline=None)
@given(texts, sizes, ends, st.booleans(), st.booleans(), st.lists(st.integers(0, 24), max_size=3), st.booleans())
def test_jsonl_of_any_lines(
    of: list[str], documents: int, end: str, trailing: bool, ascii: bool, blanks: list[int], packed: bool
) -> None:
    """With and without a last line end, CRLF, blank lines, escapes and raw Unicode, its odd line ends among it."""
    rows = rows_in_split(of)
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    for at in blanks:
        lines.insert(min(at, len(lines)), "  " if at % 2 else "")
    data = end.join(lines).encode() + (end.encode() if trailing else b"")
    shards = check_covers(
        "a.jsonl.gz" if packed else "a.jsonl", gzip.compress(data) if packed else data, rows, documents
    )
    if packed:
        assert all(shard.stop - shard.start <= documents for shard in shards)
    elif shards:
        assert (shards[0].start, shards[-1].stop) == (0, len(data))
        assert all(data[shard.stop - 1 : shard.stop] == b"\n" for shard in shards[:-1])


@settings(max_examples=60, deadline=None)
@given(texts, sizes, ends, st.booleans())
def test_csv_of_any_values(of: list[str], documents: int, end: str, packed: bool) -> None:
    """Quoted commas, quotes and line ends within values."""
    data = comma_separated(rows_in_split(of), end, quoted=True)
    name = "a.csv.gz" if packed else "a.csv"
    shards = check_covers(name, gzip.compress(data) if packed else data, rows_in_split(of), documents)
    assert all(shard.stop - shard.start == documents for shard in shards[:-1])


FORMATS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "a.parquet": lambda rows: parquet(rows, row_group_size=4),
    "a.jsonl": jsonl,
    "a.ndjson": jsonl,
    "A.JSONL.GZ": lambda rows: gzip.compress(jsonl(rows)),
    "a.jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "a.jsonl.zst": lambda rows: zstd(jsonl(rows)),
    "two.jsonl.gz": lambda rows: gzip.compress(jsonl(rows[:4])) + gzip.compress(jsonl(rows[4:])),
    "a.csv": comma_separated,
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + comma_separated(rows),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "A.CSV.GZ": lambda rows: gzip.compress(comma_separated(rows)),
    "a.csv.zst": lambda rows: zstd(comma_separated(rows)),
}
ROWS = rows_in_split(
    ["a fine day", "une journée", "日\n本", 'said "no", twice', "\u2028", "six", "seven", "eight", "nine", "ten"]
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_from_every_store(name: str, store_uri: str) -> None:
    """Files and rows in order over the shards of two files; ranges and streams come whole from S3 too."""
    store = Store(store_uri)
    store.write(f"data/{name}", FORMATS[name](ROWS))
    store.write("data/zz.jsonl", jsonl([{"id": "last", "text": "end", "label": "odd"}]))
    shards = plan(f"{store.uri}/data", 3)
    found = read_all(shards)
    assert found.ids == [*(row["id"] for row in ROWS), "last"]
    assert found.texts == [*(row["text"] for row in ROWS), "end"]
    assert found.labels == [*(row["label"] for row in ROWS), "odd"]
    assert not found.malformed
    assert len(shards) >= 4


def test_files_without_rows(store_uri: str) -> None:
    """No shards, and no error."""
    store = Store(store_uri)
    store.write("a.jsonl", b"")
    store.write("b.jsonl.gz", gzip.compress(b""))
    store.write("c.csv", b"id,text,label\n")
    store.write("d.parquet", parquet(pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())})))
    assert plan(store.uri) == []


@pytest.mark.s3
def test_a_packed_file_is_streamed_in_few_requests(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking asks for a little at a time, the store is asked for much."""
    from s3fs import S3FileSystem

    store, asked, call = Store(f"{s3_server}/streamed-{os.getpid()}"), [], S3FileSystem._call_s3
    rows = [{"id": n, "text": os.urandom(50).hex()} for n in range(5000)]
    store.write("a.jsonl.gz", gzip.compress(jsonl(rows)))
    [shard] = plan(f"{store.uri}/a.jsonl.gz", 5000)

    async def counted(self: Any, method: str, *args: Any, **options: Any) -> Any:
        asked.append(method)
        return await call(self, method, *args, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    assert len(read_shard(shard, DATA)) == 5000
    assert len(asked) <= 4


def test_lines_longer_than_what_is_looked_at(tmp_path: Path) -> None:
    """The end of a line is found however far it is, one document a shard."""
    rows = rows_in_split(["x" * length for length in (200_000, 3, 140_000, 65_536, 1)])
    shards = plan(put(tmp_path, "a.jsonl", jsonl(rows)), 1)
    assert read_all(shards).texts == [row["text"] for row in rows]
    assert len(shards) >= 3


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_long_document(name: str, tmp_path: Path) -> None:
    """Megabytes in one value."""
    rows = rows_in_split(["word, " * 500_000, "short"])
    shards = plan(put(tmp_path, name, FORMATS.get(name, lambda rows: gzip.compress(jsonl(rows)))(rows)))
    assert read_all(shards).texts == [row["text"] for row in rows]


@pytest.mark.parametrize("documents", [1, 3, 7, 100])
@pytest.mark.parametrize("name", ["a.csv", "A.CSV.GZ", "A.JSONL.GZ"])
def test_files_longer_than_a_block(name: str, documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and quoted line ends that lie across the blocks of a stream."""
    monkeypatch.setattr(documents_module, "_BLOCK", 100)
    rows = rows_in_split([f"line\n{n}\n" * (n % 6) + "end" for n in range(60)])
    check_covers(name, FORMATS[name](rows), rows, documents)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_carriage_return_within_a_line(packed: bool, tmp_path: Path) -> None:
    """White space of JSON, no line end."""
    data = b'{"id": "a",\r"text": "x"}\r\n{"id": "b",\r\r "text": "y"}'
    name = "a.jsonl.gz" if packed else "a.jsonl"
    found = read_all(plan(put(tmp_path, name, gzip.compress(data) if packed else data), 1), columns=ID_AND_TEXT)
    assert (found.ids, found.texts, found.malformed) == (["a", "b"], ["x", "y"], {})


# Ids and labels as text

COLUMNS: dict[str, tuple[Any, list[str | None]]] = {
    "ints": ([1, 20, None], ["1", "20", None]),
    "bools": ([True, False, None], ["true", "false", None]),
    "strings": (["001", "", None], ["001", None, None]),
    "dictionary": (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
    "dictionary of ints": (pa.array([7, 8, None]).dictionary_encode(), ["7", "8", None]),
    "large strings": (pa.array(["a", "é", None], pa.large_string()), ["a", "é", None]),
    "string views": (pa.array(["a", "é", None], pa.string_view()), ["a", "é", None]),
    "bytes": ([b"a", b"b", None], ["a", "b", None]),
    "nulls": (pa.nulls(3), [None, None, None]),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_ids_and_labels_of_parquet(case: str, tmp_path: Path) -> None:
    """Numbers by their digits, empty ones as none."""
    column, expected = COLUMNS[case]
    table = pa.table({"id": column, "text": ["a", "b", "c"], "label": column})
    found = read_all(plan(put(tmp_path, "a.parquet", parquet(table))))
    assert found.ids == found.labels == expected


@pytest.mark.parametrize("case", ["dictionary", "large strings", "string views", "nulls"])
def test_texts_of_parquet(case: str, tmp_path: Path) -> None:
    column, expected = COLUMNS[case]
    table = pa.table({"id": ["1", "2", "3"], "text": column})
    assert read_all(plan(put(tmp_path, "a.parquet", parquet(table))), columns=ID_AND_TEXT).texts == expected


def test_ids_and_labels_of_jsonl(tmp_path: Path) -> None:
    """As in Parquet; what no id can be is none, but a label can be a list."""
    given = [1, 1.5, True, "001", "é", "\ud800", "", None, {"a": 1}, float("nan"), [1]]
    expected = ["1", "1.5", "true", "001", "é", "\ud800", None, None, None, None, None]
    found = read_all(plan(put(tmp_path, "a.jsonl", jsonl([{"id": v, "text": "t", "label": v} for v in given]))))
    assert found.ids == expected
    assert found.labels == [*expected[:-1], ["1"]]


def test_ids_and_labels_of_csv(tmp_path: Path) -> None:
    """Text stays text: leading zeros, words that other readers take for null, numbers or truth."""
    given = ["001", "1.50", "NA", "null", "NaN", "true", " x ", "2026-01-01", ""]
    data = comma_separated([{"other": n, "text": v, "id": v, "label": v} for n, v in enumerate(given)])
    found = read_all(plan(put(tmp_path, "a.csv", data)))
    assert found.ids == found.labels == [*given[:-1], None]
    assert found.texts == given


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


@pytest.mark.parametrize("case", LIST_COLUMNS)
def test_lists_of_labels_of_parquet(case: str, tmp_path: Path) -> None:
    """Of any type of list and of element, over row groups and shards that cut them; numbers by their digits."""
    lists, kind = LIST_COLUMNS[case]
    ids, texts = [f"d{n}" for n in range(7)], [f"text {n}" for n in range(7)]
    table = pa.table({"id": ids, "text": texts, "label": pa.array(lists, kind)})
    shards = plan(put(tmp_path, "a.parquet", parquet(table, row_group_size=4)), 3)
    expected = [[name.decode() if isinstance(name, bytes) else str(name) for name in label] for label in lists]
    assert len(shards) == 3
    assert read_all(shards).labels == read_labelled(shards, DATA).labels == expected
    assert not read_all(shards).malformed


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_lists_of_labels_of_jsonl(packed: bool, tmp_path: Path) -> None:
    """Names by the rule of single ones; an empty list is a label."""
    given: list[Any] = [["b", "a"], [], [1, 1.5, True, "001"], ["é"]]
    data = jsonl([{"id": n, "text": "t", "label": label} for n, label in enumerate(given)])
    name = "a.jsonl.gz" if packed else "a.jsonl"
    shards = plan(put(tmp_path, name, gzip.compress(data) if packed else data), 2)
    expected = [["b", "a"], [], ["1", "1.5", "true", "001"], ["é"]]
    assert read_all(shards).labels == read_labelled(shards, DATA).labels == expected


def test_labels_of_csv_are_strings(tmp_path: Path) -> None:
    """What looks like a list is a name like any other."""
    found = read_labelled(plan(put(tmp_path, "a.csv", b'id,text,label\n1,t,"[""a""]"\n2,t,[]\n')), DATA)
    assert found.labels == ['["a"]', "[]"]


LIST_MISTAKES: dict[str, tuple[list[Any], str]] = {
    "null": ([["a"], None], "the label (label) is null; label the row or leave it out"),
    "null inside": (
        [["a"], ["b", None]],
        "a list with null as element 1; expected only names, mend the row or leave it",
    ),
    "empty inside": ([["a"], ["", "b"]], "a list with an empty string as element 0; expected only names"),
    "list inside": ([[["hush"]]], "the label (label) is a list with a list as element 0; expected only names"),
    "NaN inside": ([["a"], [float("nan")]], "a list with NaN as element 0; expected only names"),
    "object inside": ([[{"hush": "a"}]], "a list with a dict as element 0; expected only names"),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("case", LIST_MISTAKES)
def test_a_list_of_labels_that_holds_no_name_is_named(case: str, name: str, tmp_path: Path) -> None:
    """By file and row, the second here or later, without what it holds; the row is malformed and has no label."""
    wrong, said = LIST_MISTAKES[case]
    if case == "NaN inside" and name != "a.jsonl":
        pytest.skip("no Parquet list holds strings and numbers")
    labels = [[], *wrong, []]
    rows = [{"id": f"d{n}", "text": "t", "label": label} for n, label in enumerate(labels)]
    uri = put(tmp_path, name, FORMATS[name](rows))
    shards = plan(uri, 100)
    with pytest.raises(UserError) as error:
        read_labelled(shards, DATA)
    message = one_line(error, uri)
    assert message.startswith(f"{uri} row {len(wrong)}: the label (label) is ")
    assert said in message
    assert "hush" not in message
    found = read_all(shards)
    assert [label is None for label in found.labels] == [row == len(wrong) for row in range(len(labels))]
    assert list(found.malformed) == ([] if case == "null" else [len(wrong)])


def test_a_malformed_list_is_counted_over_row_groups(tmp_path: Path) -> None:
    """And over shards that begin within one; without labels, as a night reads it, the row is a good one."""
    labels = [["a"], [], ["b"], ["a"], ["b"], ["a", None]]
    table = pa.table({"id": list("abcdef"), "text": ["t"] * 6, "label": labels})
    uri = put(tmp_path, "a.parquet", parquet(table, row_group_size=2))
    for documents in (1, 4, 100):
        assert list(read_all(plan(uri, documents)).malformed) == [5]
        assert read_all(plan(uri, documents), columns=ID_AND_TEXT).malformed == {}
        with pytest.raises(UserError, match=r"row 5: the label \(label\) is a list with null as element 1"):
            read_labelled(plan(uri, documents), DATA)


def test_lone_surrogates_in_a_list_are_refused(tmp_path: Path) -> None:
    data = b'{"id": "1", "text": "t", "label": ["a", "\\ud800"]}'
    with pytest.raises(UserError, match="row 0: 'label' holds lone surrogates, expected Unicode"):
        read_labelled(plan(put(tmp_path, "a.jsonl", data)), DATA)


def test_strings_and_lists_in_one_corpus_are_refused(tmp_path: Path) -> None:
    """In one file or two."""
    put(tmp_path, "a.jsonl", jsonl([{"id": 1, "text": "t", "label": "a"}, {"id": 2, "text": "t", "label": "b"}]))
    put(tmp_path, "b.parquet", parquet([{"id": "3", "text": "t", "label": ["a"]}]))
    found = read_labelled(plan(str(tmp_path)), DATA)
    assert found.labels == ["a", "b", ["a"]]
    with pytest.raises(UserError, match="labels: found strings and lists; expected one class a document, or a list"):
        LabelSpace.of(found.labels, ["train", "train", "valid"])


def test_columns_by_other_names(tmp_path: Path) -> None:
    """The settings name the columns; one may serve twice, the split is read where it is named."""
    data = DataSettings(train="unused", id="key", text="body", label="key", split="part")
    row = {"part": "test", "body": "words", "key": 3, "id": "no", "": "no"}
    table = {name: value for name, value in row.items() if name}
    for name, written in (
        ("a.parquet", parquet([table])),
        ("a.csv", comma_separated([row])),
        ("a.jsonl", jsonl([row])),
    ):
        [shard] = plan(put(tmp_path, name, written), data=data)
        assert read_shard(shard, data, columns=ALL_COLUMNS) == Documents(["3"], ["words"], ["3"], ["test"])
        assert read_shard(shard, data) == Documents(["3"], ["words"], [None], [None])
        assert read_shard(shard, data, columns=IDS) == Documents(["3"], [None], [None], [None])
        assert read_shard(shard, data, columns=TEXTS) == Documents([None], ["words"], [None], [None])


def test_one_column_of_parquet_is_read_without_the_others(tmp_path: Path) -> None:
    """Bytes are counted: the ids of a file cost little where its texts are long; a store's reads do not count."""
    draw = np.random.default_rng(0)
    texts = [draw.bytes(15_000).hex() for _ in range(40)]  # not compressible below half their length
    uri = put(tmp_path, "a.parquet", parquet(rows_in_split(texts)))
    size = Path(uri).stat().st_size
    [shard] = plan(uri, 100)

    def bytes_read(columns: Sequence[Column]) -> float:
        with count_input_reads() as traffic:
            Store(str(tmp_path)).read("a.parquet")
            assert len(read_shard(shard, DATA, columns=columns)) == 40
        return traffic.read

    ids, texts_alone, both = (bytes_read(columns) for columns in (IDS, TEXTS, ID_AND_TEXT))
    assert ids < size / 10
    assert texts_alone > size / 2
    assert max(ids, texts_alone) < both < 1.2 * size


def test_a_corpus_is_read_once_for_its_texts(tmp_path: Path) -> None:
    """They are read at first use and kept: a second use reads nothing."""
    rows = rows_in_split([f"text {n}" for n in range(30)])
    uri = put(tmp_path, "a.jsonl", jsonl(rows))
    corpus = Corpus(tuple(plan(uri, 7)), DATA)
    with count_input_reads() as traffic:
        assert corpus.texts == [row["text"] for row in rows]
        once = traffic.read
        assert once == Path(uri).stat().st_size
        assert corpus.texts[-1] == "text 29"
        assert traffic.read == once


def test_the_first_texts_are_kept_on_request(tmp_path: Path) -> None:
    rows = rows_in_split([f"text {n}" for n in range(9)])
    shards = plan(put(tmp_path, "a.jsonl", jsonl(rows)), 4)
    for count, kept in ((0, 0), (5, 5), (99, 9), (None, 9)):
        assert read_labelled(shards, DATA, keep_texts=count).texts == [row["text"] for row in rows[:kept]]


# Files that cannot be read

GOOD = rows_in_split([f"some text {n}" for n in range(400)])
PAGES = {"compression": "none", "use_dictionary": False, "write_statistics": False}


def flipped(data: bytes, at: bytes) -> bytes:
    """The first byte of a piece of the file, changed to one that no UTF-8 text has."""
    place = data.index(at)
    return data[:place] + b"\xff" + data[place + 1 :]


def without(name: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} for row in GOOD]


CANNOT = "cannot be read, it is corrupt, truncated or not what its name says: "
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "parquet without text": ("a.parquet", parquet(without("text")), "has no column 'text'; it has id, label"),
    "parquet without id": ("a.parquet", parquet(without("id")), "has no column 'id'; it has text, label"),
    "parquet without label": ("a.parquet", parquet(without("label")), "has no column 'label'; it has id, text"),
    "parquet with two": (
        "a.parquet",
        parquet(pa.Table.from_arrays([pa.array(["a"])] * 4, names=["id", "text", "text", "label"])),
        "has 2 columns 'text'; it has id, text, text, label",
    ),
    "parquet of numbers": ("a.parquet", parquet([{"id": "1", "text": 7}]), "column 'text' is int64, expected string"),
    "parquet of lists": ("a.parquet", parquet([{"id": [1], "text": "a", "label": "b"}]), CANNOT + "Unsupported cast"),
    "parquet cut short": ("a.parquet", parquet(GOOD)[:-5], CANNOT),
    "parquet cut in two": ("a.parquet", parquet(GOOD)[:999], CANNOT),
    "parquet of nothing": ("a.parquet", b"", CANNOT),
    "parquet of text": ("a.parquet", jsonl(GOOD), CANNOT),
    "parquet not UTF-8": ("a.parquet", flipped(parquet(GOOD, **PAGES), b"some text 9"), CANNOT + "'utf-8' codec"),
    "parquet of wrong sums": (
        "a.parquet",
        parquet(GOOD, **PAGES, write_page_checksum=True).replace(b"some text 9", b"come text 9"),
        CANNOT + "could not verify page integrity, CRC checksum verification failed",
    ),
    "parquet flipped": (
        "a.parquet",
        parquet(GOOD, compression="zstd").replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0"),
        CANNOT,
    ),
    "csv without text": (
        "a.csv",
        comma_separated(without("text")),
        ": Column 'text' in include_columns does not exist",
    ),
    "csv without label": ("a.csv", comma_separated(without("label")), "expected a header with id, text, label"),
    "csv of nothing": ("a.csv", b"", CANNOT + "Empty CSV file"),
    "csv not UTF-8": (
        "a.csv",
        b"id,text,label\n1,caf\xe9,x\n",
        CANNOT + "In CSV column #1: Row #2: CSV conversion error",
    ),
    "csv of ragged rows": ("a.csv", b"id,text,label\n1,hush,x,y\n", CANNOT + "CSV parse error: Row #2: Expected 3 col"),
    "csv.gz cut short": ("a.csv.gz", gzip.compress(comma_separated(GOOD))[:-9], CANNOT + "Truncated compressed stream"),
    "jsonl.gz cut short": ("a.jsonl.gz", gzip.compress(jsonl(GOOD))[:-9], CANNOT + "Truncated compressed stream"),
    "jsonl.gz of text": ("a.jsonl.gz", jsonl(GOOD), CANNOT + "zlib inflate failed"),
    "jsonl.bz2 cut short": ("a.jsonl.bz2", bz2.compress(jsonl(GOOD))[:-9], CANNOT + "Truncated compressed stream"),
    "jsonl.zst cut short": ("a.jsonl.zst", zstd(jsonl(GOOD))[:-9], CANNOT + "Truncated compressed stream"),
    "jsonl without text": ("a.jsonl", jsonl(without("text")), " row 0: the text (text) is not text"),
    "jsonl without id": ("a.jsonl", jsonl(without("id")), " row 0: the id (id) is null"),
    "jsonl without label": ("a.jsonl", jsonl(without("label")), " row 0: the label (label) is null"),
    "jsonl of nonsense": ("a.jsonl", b"hush\n", " row 0: the line is not JSON: Expecting value"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    """Status 2 in one line, without a word of the documents."""
    name, data, said = BAD_FILES[case]
    uri = put(tmp_path, name, data)
    with pytest.raises(UserError) as error:
        read_labelled(plan(uri, 100), DATA)
    message = one_line(error, uri)
    assert said in message
    assert "hush" not in message


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "A.JSONL.GZ"])
def test_a_file_that_went_away_is_named(name: str, store_uri: str) -> None:
    """After it was planned."""
    store = Store(store_uri)
    store.write(name, FORMATS[name](ROWS))
    shards = plan(f"{store.uri}/{name}")
    store.delete(name)
    with pytest.raises(UserError, match=f"{name}: not found"):
        read_shard(shards[0], DATA)


# Rows that cannot be read

LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hush {", "the line is not JSON: Expecting value"),
    "half": (b'{"id": "1", "text": "hush', "the line is not JSON: Unterminated string"),
    "two": (b'{"id": "1"} {"text": "hush"}', "the line is not JSON: Extra data"),
    "list": (b'["hush"]', "the line is a JSON list, expected an object"),
    "string": (b'"hush"', "the line is a JSON str, expected an object"),
    "null": (b"null", "the line is a JSON NoneType, expected an object"),
    "NUL": (b'{"id": "1", "text": "hush\x00"}', "the line is not JSON: Invalid control character"),
    "NULs": (b"\x00\x00\x00", "the line is not JSON: "),
    "UTF-16": ('{"id": "hush"}'.encode("utf-16"), "the line is not JSON: "),
    "Latin-1": (b'{"id": "1", "text": "caf\xe9 hush"}', "the line is not JSON: 'utf-8' codec can't decode byte 0xe9"),
    "deep": (b'{"text": ' + b"[" * 100_000, "the line is not JSON: maximum recursion depth"),
    "long number": (b'{"id": ' + b"9" * 5000 + b"}", "the line is not JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("case", LINES)
def test_a_line_that_is_no_record_is_kept_with_the_reason(case: str, packed: bool, tmp_path: Path) -> None:
    """It is a row of its shard like the ones around it; its text is not in the reason."""
    line, said = LINES[case]
    data = b"\n".join([b'{"id": "before", "text": "a"}', line, b'{"id": "after", "text": "b"}'])
    name = "a.jsonl.gz" if packed else "a.jsonl"
    for documents in (1, 5):
        found = read_all(
            plan(put(tmp_path, name, gzip.compress(data) if packed else data), documents), columns=ID_AND_TEXT
        )
        assert found.ids == ["before", None, "after"]
        assert found.texts == ["a", None, "b"]
        [(row, reason)] = found.malformed.items()
        assert (row, reason.startswith(said), "hush" in reason) == (1, True, False)
        assert triage(found, ()) == {1: ("malformed", reason)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"{}", b"[", b'{"id":1,"text":"a"}']), max_size=8), sizes)
def test_no_bytes_of_jsonl_make_it_fail(pieces: list[bytes], documents: int) -> None:
    """Any bytes are rows, as many as there are lines that are not blank, however they are divided."""
    data = b"\n".join(pieces)
    with tempfile.TemporaryDirectory() as folder:
        found = read_all(plan(put(Path(folder), "a.jsonl", data), documents), columns=ID_AND_TEXT)
    assert len(found) == sum(bool(line.strip()) for line in data.split(b"\n"))
    assert set(triage(found, ())) >= set(found.malformed)


KINDS: list[tuple[Row, str | None]] = [
    ({"id": "good", "text": "fine"}, None),
    ({"text": "hush"}, "null_id"),
    ({"id": "", "text": "hush"}, "null_id"),
    ({"id": "a\ud800", "text": "hush"}, "bad_id"),
    ({"id": "good", "text": "hush"}, "repeated_id"),
    ({"id": "t0"}, "null_text"),
    ({"id": "t1", "text": 3}, "not_text"),
    ({"id": "t2", "text": ["hush"]}, "not_text"),
    ({"id": "t3", "text": ""}, "empty_text"),
    ({"id": "t4", "text": " \n\t\u3000"}, "empty_text"),
    ({"id": "t5", "text": "hush \udfff"}, "not_text"),
    ({"id": 7, "text": "\U0001f600 \u0000 fine"}, None),
]


def test_each_row_that_cannot_be_classified_has_its_reason(tmp_path: Path) -> None:
    """From a file to the dead letters; the good ones are no part of them, the words of the bad ones neither."""
    data = jsonl([row for row, _ in KINDS]) + b"[hush]\n"
    [shard] = plan(put(tmp_path, "a.jsonl", data), 100)
    documents = read_shard(shard, DATA)
    dead = triage(documents, [row for row, (_, reason) in enumerate(KINDS) if reason == "repeated_id"])
    reasons = [reason for _, reason in KINDS] + ["malformed"]
    assert len(documents) == len(reasons)
    assert {row: reason for row, (reason, _) in dead.items()} == {n: why for n, why in enumerate(reasons) if why}
    assert not [message for _, message in dead.values() if "hush" in message or not message]


# What cannot be trained on

MISTAKES: dict[str, tuple[Row, str]] = {
    "label null": ({"label": None}, "the label (label) is null; label the row or leave it out"),
    "label empty": ({"label": ""}, "the label (label) is null"),
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
LABELLED = [{**row, "split": ("train", "valid", "test")[n % 3]} for n, row in enumerate(rows_in_split(["a", "b"] * 4))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
@pytest.mark.parametrize("case", MISTAKES)
def test_a_row_that_cannot_be_trained_on_is_named(case: str, name: str, tmp_path: Path) -> None:
    """By file and row, as soon as it is met, without its text."""
    change, said = MISTAKES[case]
    rows = [{**row, **change} if n == 6 else row for n, row in enumerate(LABELLED)]
    if "surrogate" in case or case == "text number":
        if name != "a.jsonl":
            pytest.skip("no Parquet string and no CSV holds it")
    elif name == "a.csv":
        said = said.replace("not text", "empty")
    data = FORMATS[name](rows)
    uri = put(tmp_path, name, data)
    shards = plan(uri, 4, SPLIT)
    with pytest.raises(UserError) as error:
        read_labelled(shards, SPLIT)
    message = one_line(error, uri)
    row, shard = 6, next(s for s in shards if read_shard(s, SPLIT, columns=ALL_COLUMNS).ids[-1:] == ["d7"])
    if shard.by_bytes:
        row -= data[: shard.start].count(b"\n")
        assert message.startswith(f"{uri} row {row} after byte {shard.start}: ")
    else:
        assert message.startswith(f"{uri} row {row}: ")
    assert said in message.replace("'None'", "None").replace("''", "None")
    assert "hush" not in message


def test_labels_of_good_rows(tmp_path: Path) -> None:
    """In plan order over files, with how many rows each shard has."""
    put(tmp_path, "a.jsonl", jsonl(LABELLED[:5]))
    put(tmp_path, "b.parquet", parquet(LABELLED[5:]))
    shards = plan(str(tmp_path), 100, SPLIT)
    found = read_labelled(shards, SPLIT)
    assert found.ids == [row["id"] for row in LABELLED]
    assert found.labels == [row["label"] for row in LABELLED]
    assert found.splits == [row["split"] for row in LABELLED]
    assert found.shard_rows == [5, 3]
    assert read_labelled(shards, DATA).splits == [None] * 8


def test_a_plan_says_what_it_was_made_of(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", b"id,text\n")
    [file] = list_files(str(tmp_path))
    assert to_json([file]) == [{"uri": f"{tmp_path}/a.csv", "kind": "csv", "size": 8, "version": file.version}]
    assert Shard(7, "a", "csv", 0, 1).name == "000007"


def test_documents_of_a_range_of_bytes_are_about_counted(tmp_path: Path) -> None:
    """Alike lines exactly, in files of any size; rows of other files are what they are."""
    for name, count in (("a", 100), ("b", 7), ("c", 1)):
        rows = [{"id": f"{name}{n:04d}", "text": "a fine day"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(rows))
    (tmp_path / "d.parquet").write_bytes(parquet(rows))
    shards = plan_shards(list_files(str(tmp_path)), 30, DATA)
    found = [(Path(shard.uri).stem, shard.documents) for shard in shards]
    assert found == [*[("a", 30)] * 3, ("a", 10), ("b", 7), ("c", 1), ("d", 1)]
    assert [len(read_shard(shard, DATA)) for shard in shards] == [documents for _, documents in found]
