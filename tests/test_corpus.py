"""Files to shards to documents: every row once, in order, and what is wrong with a file or a row told by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import corpus
from pipelines.classify import triage
from pipelines.corpus import Documents
from spin.errors import UserError
from spin.settings import DataSettings

DATA = DataSettings(train="unused")
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=12)
ROWS = st.lists(TEXTS, min_size=1, max_size=40)


def write(path: Path, texts: list[str], *, group: int = 7, ending: str = "\n", last: bool = True) -> Path:
    """Rows with ids 0, 1, … in the format of the path's ending."""
    rows = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
        return path
    if name.endswith(".jsonl"):
        lines = ending.join(json.dumps(row, ensure_ascii=False) for row in rows) + (ending if last else "")
        data = lines.encode()
    else:
        sink = io.StringIO(newline="")
        writer = csv.DictWriter(sink, ["id", "text"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        data = sink.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_all(path: Path, documents: int) -> tuple[list[Any], list[Any], int]:
    """Ids and texts of all shards in plan order, and the rows of the largest shard."""
    shards = corpus.plan_shards(corpus.list_files(str(path)), documents, DATA)
    assert shards == corpus.plan_shards(corpus.list_files(str(path)), documents, DATA)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    read = [corpus.read_shard(shard, DATA) for shard in shards]
    ids = [id for part in read for id in part.ids]
    return ids, [text for part in read for text in part.texts], max(map(len, read))


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "jsonl.gz", "csv.gz"])
@settings(max_examples=25, deadline=None)
@given(texts=ROWS, documents=st.integers(1, 45), group=st.integers(1, 50))
def test_shards_hold_every_row_once_in_order(
    ending: str, texts: list[str], documents: int, group: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the texts, the row groups and the shard size; and a shard of rows is never larger than asked."""
    path = write(tmp_path_factory.mktemp("rows") / f"rows.{ending}", texts, group=group)
    ids, found, largest = read_all(path, documents)
    assert ids == [str(n) for n in range(len(texts))]
    assert found == texts
    if ending != "jsonl":
        assert largest <= documents


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_of_every_kind(ending: str, last: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["é one", "two", "three"] * 9, ending=ending, last=last)
    ids, texts, _ = read_all(path, 2)
    assert ids == [str(n) for n in range(27)]
    assert texts == ["é one", "two", "three"] * 9


def test_files_of_a_folder_a_glob_and_what_is_left_out(tmp_path: Path) -> None:
    """Files come in order of name; hidden ones and those that begin with _ are no data."""
    for name in ("b.jsonl", "a.parquet", "sub/c.csv", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.startswith(("_", ".")):
            (tmp_path / name).touch()
        else:
            write(tmp_path / name, [name])
    names = [Path(file.uri).name for file in corpus.list_files(str(tmp_path))]
    assert names == ["a.parquet", "b.jsonl", "c.csv"]
    assert [Path(file.uri).name for file in corpus.list_files(f"{tmp_path}/*.jsonl")] == ["b.jsonl"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"notes\.txt is not Parquet, JSONL or CSV by its name"):
        corpus.list_files(str(tmp_path))
    with pytest.raises(UserError, match=r"no data at .*expected a file, a folder or a glob"):
        corpus.list_files(str(tmp_path / "nothing"))


def test_ids_and_labels_of_other_types_become_text(tmp_path: Path) -> None:
    """Numbers by their digits, booleans, dictionaries; a CSV id keeps its zeros."""
    table = pa.table({"id": [1, 2], "text": pa.array(["x", "y"]).dictionary_encode(), "label": pa.array([True, False])})
    pq.write_table(table, tmp_path / "t.parquet")
    found = corpus.read_labelled(corpus.plan_shards(corpus.list_files(str(tmp_path)), 9, DATA), DATA)
    assert (found.ids, found.labels, found.shard_rows) == (["1", "2"], ["true", "false"], [2])
    (tmp_path / "c.csv").write_text("id,text,label\n001,x,007\n")
    [shard] = corpus.plan_shards(corpus.list_files(str(tmp_path / "c.csv")), 9, DATA)
    documents = corpus.read_shard(shard, DATA, labelled=True)
    assert (documents.ids, documents.labels) == (["001"], ["007"])


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "jsonl.gz"])
def test_a_damaged_file_is_named(ending: str, tmp_path: Path) -> None:
    """Truncated, empty, or not what its name says: one line with the file."""
    path = write(tmp_path / f"rows.{ending}", ["some text"] * 300)
    damaged = path.read_bytes()[: path.stat().st_size // 2] if ending != "csv" else b"id,text\n1,\xff\xfe\n"
    path.write_bytes(damaged)
    with pytest.raises(UserError) as found:
        read_all(path, 1000)
    assert str(path) in str(found.value)
    assert "cannot be read, it is corrupt" in str(found.value)
    assert "\n" not in str(found.value)


def test_flipped_bytes_in_a_row_group_are_found(tmp_path: Path) -> None:
    """The footer is whole, the data is not: reading the shard names the file."""
    path = tmp_path / "rows.parquet"
    table = pa.table({"id": [str(n) for n in range(500)], "text": ["some text here"] * 500})
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.parquet cannot be read, it is corrupt"):
        read_all(path, 1000)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_missing_column_is_named(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{ending}", ["x"])
    data = DATA.model_copy(update={"text": "body"})
    with pytest.raises(UserError, match=rf"rows\.{ending}.*body"):
        corpus.plan_shards(corpus.list_files(str(path)), 9, data)


def test_lines_that_are_no_records_are_kept_with_their_reason(tmp_path: Path) -> None:
    """Nothing a line holds stops a night: each ends as a dead letter with a reason that shows none of its text."""
    secret = "hushhush"
    lines = [
        json.dumps({"id": "ok", "text": "fine"}),
        "{not json " + secret,
        json.dumps([secret]),
        json.dumps({"id": "n", "text": 7}),
        '{"id": "s", "text": "lone \\ud800 ' + secret + '"}',
        '{"id": "\\ud800", "text": "fine"}',
        json.dumps({"id": None, "text": secret}),
        json.dumps({"id": "e", "text": "  "}),
        json.dumps({"id": "z", "text": None}),
        json.dumps({"id": "nul", "text": "a \u0000 b"}),
        json.dumps({"id": "ok", "text": secret}),
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1", "replace"))
    shards = corpus.plan_shards(corpus.list_files(str(path)), 100, DATA)
    repeats, total = corpus.find_repeats(shards, DATA)
    assert total == len(lines)
    dead = triage(corpus.read_shard(shards[0], DATA), repeats[0])
    reasons = {row: reason for row, (reason, _) in dead.items()}
    assert reasons == {
        1: "malformed",
        2: "malformed",
        3: "not_text",
        4: "not_text",
        5: "bad_id",
        6: "null_id",
        7: "empty_text",
        8: "null_text",
        10: "repeated_id",
        11: "malformed",
    }
    assert secret not in str(dead)


def test_repeats_are_found_across_shards_and_files(tmp_path: Path) -> None:
    """The first in plan order is kept, whatever shard or file the later ones stand in."""
    pq.write_table(pa.table({"id": ["a", "b", "a"], "text": ["x"] * 3}), tmp_path / "1.parquet", row_group_size=1)
    pq.write_table(pa.table({"id": ["c", "b"], "text": ["x"] * 2}), tmp_path / "2.parquet")
    shards = corpus.plan_shards(corpus.list_files(str(tmp_path)), 2, DATA)
    repeats, total = corpus.find_repeats(shards, DATA)
    assert total == 5
    assert repeats == {1: [0], 2: [1]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": None}, "the label (label) is null"),
        ({"id": None}, "the id (id) is null"),
        ({"text": ""}, "the text (text) is empty"),
        ({"id": "0"}, "the id '0' was seen before"),
        ({"split": "dev"}, "the split (split) is 'dev'; expected train, valid or test"),
    ],
)
def test_the_first_bad_label_row_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": "x", "label": "a", "split": "train"} for n in range(9)]
    rows[5] = {**rows[5], **changes}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    data = DATA.model_copy(update={"split": "split"})
    with pytest.raises(UserError) as found:
        corpus.read_labelled(corpus.plan_shards(corpus.list_files(str(tmp_path)), 99, data), data)
    assert "rows.parquet row 5: " + said in str(found.value)


def test_triage_lets_good_rows_pass() -> None:
    documents = Documents(ids=["a", "b"], texts=["x", "\x00 y"], labels=[None] * 2, splits=[None] * 2)
    assert triage(documents, ()) == {}
