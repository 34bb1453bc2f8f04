"""The intake of a night: every file is read once, rows are cut into parts and shards, bad files are left out whole."""

from __future__ import annotations

import errno
import gzip
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import intake, spool
from pipelines.data.files import shards
from pipelines.data.files.formats import COMPRESSIONS, MAX_BYTES, file_errors
from pipelines.data.files.input_files import list_files
from pipelines.data.files.kept_columns import schema_of
from pipelines.data.files.parquet_reader import ParquetReader, column_bytes
from pipelines.data.files.reader_process import describe_columns
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.intake import FileOutcome, IntakeReport, NightPlan, plan_intake, plan_night, take_in
from pipelines.data.spool import SPOOL, CheckedRows, PartSize, ReadyPiece, SpoolPart, read_rows
from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from spin.errors import UserError
from spin.settings import DataSettings
from tests.pipelines.data.files import test_readers
from tests.pipelines.data.files.test_readers import GOOD, Row, divide_files, to_csv, to_jsonl, to_parquet, write_file
from tests.support.input_reads import InputReads, count_input_reads
from tests.support.reading import read_in_this_process

DATA = DataSettings(train="unused")
MEGABYTE = 1 << 20
PLAIN = [("a.jsonl", to_jsonl), ("a.csv", to_csv), ("a.parquet", to_parquet)]


@dataclass
class Night:
    """What a night takes in and reads to classify."""

    bad: dict[str, str]
    tasks: list[Shard]
    plan: NightPlan
    ids: dict[tuple[int, int], Sequence[str | None]]
    """ids of every saved part, by task and part"""
    rows: list[CheckedRows] = field(default_factory=list)
    """by shard"""
    taken: InputReads = field(default_factory=InputReads)
    classified: InputReads = field(default_factory=InputReads)
    """reads of the shards, parts of the spool included"""

    @property
    def all_ids(self) -> list[str | None]:
        return list(chain.from_iterable(rows.ids for rows in self.rows))

    @property
    def reasons(self) -> dict[str, str]:
        """Why files are left out, by the name of the file."""
        whole = {file.uri: file.reason for file in self.plan.files if file.reason} | self.bad
        return {Path(uri).name: reason for uri, reason in whole.items()}


def run_night(folder: Path | str, documents: int = 10, data: DataSettings = DATA) -> Night:
    """List a folder, take its files in and read the shards, as a night does."""
    bad: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(scratch)
        files = list_files(str(folder), bad=bad, allow_empty=True)
        tasks = plan_intake(files, bad=bad)
        ids: dict[tuple[int, int], Sequence[str | None]] = {}

        def save(task: Shard, part: SpoolPart) -> str:
            ids[task.index, part.number] = part.ids
            key = f"spool/{task.name}-000001-1-{part.number}.parquet"
            assert store.create(key, part.parquet)
            return f"{store.uri}/{key}"

        with count_input_reads() as taken:
            size = PartSize.of(sum(file.size for file in files), documents)
            reports = [take_in(task, data, size, partial(save, task)) for task in tasks]
        plan = plan_night(
            [from_json(IntakeReport, to_json(report)) for report in reports],
            data,
            documents,
            describe_columns=lambda uri: describe_columns(next(file.whole for file in files if file.uri == uri), data),
        )
        night = Night(bad, tasks, from_json(NightPlan, to_json(plan)), ids, taken=taken)
        with count_input_reads() as night.classified:
            night.rows = [read_rows(shard, schema_of(plan.types)) for shard in night.plan.shards]
    check_night(night, documents)
    return night


def check_night(night: Night, documents: int) -> None:
    """Assert what holds for every night: bounded shards, whose ids are those of the parts."""
    for shard, keys, rows in zip(night.plan.shards, night.plan.parts, night.rows, strict=True):
        assert len(keys) == len(shard.pieces)
        assert shard.documents == len(rows)
        assert [piece.documents for piece in shard.pieces] == [len(night.ids[key.task, key.part]) for key in keys]
        ids = list(chain.from_iterable(night.ids[key.task, key.part] for key in keys))
        assert ids == [None if row in rows.dead else id for row, id in enumerate(rows.ids)]
        assert 0 < len(rows) <= documents
    assert [shard.index for shard in night.plan.shards] == list(range(len(night.plan.shards)))


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from 1,000 bytes on are large, and large files are read in windows of 3,000 bytes."""
    divide_files(monkeypatch, 3000)
    monkeypatch.setattr(intake, "SMALL", 1000)


def limit_bytes(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Set the most bytes of text in a shard, in place of 64 MB."""
    for module in (intake, spool):
        monkeypatch.setattr(module, "MAX_BYTES", limit)


def make_rows(count: int, prefix: str = "d", text: str = "some text") -> list[Row]:
    return [{"id": f"{prefix}{n}", "text": f"{text} {n}"} for n in range(count)]


def make_random_rows(megabytes: float, text_bytes: int = 2000) -> list[Row]:
    """Rows whose texts cannot be compressed below half of their length."""
    rng = np.random.default_rng(0)
    count = int(megabytes * MEGABYTE / text_bytes)
    return [{"id": f"id-{n:07d}", "text": rng.bytes(text_bytes // 2).hex()} for n in range(count)]


# Every row once and in order


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["jsonl", "csv", "parquet", "jsonl.gz"]), st.integers(0, 40)), max_size=6),
    st.integers(1, 30),
    st.integers(1, 20),
)
def test_every_row_of_every_format_is_taken_once(files: list[tuple[str, int]], documents: int, row_group: int) -> None:
    """Files are small or large, windows begin anywhere, and row groups are smaller or larger than shards."""
    write = {
        "jsonl": to_jsonl,
        "csv": to_csv,
        "parquet": lambda rows: to_parquet(rows, row_group_size=row_group),
        "jsonl.gz": lambda rows: gzip.compress(to_jsonl(rows)),
    }
    expected = set()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        divide_files(patch, 300)
        patch.setattr(intake, "SMALL", 700)
        for n, (ending, count) in enumerate(files):
            rows = make_rows(count + 1, f"f{n}-")
            write_file(Path(folder), f"{n:02d}.{ending}", write[ending](rows))
            expected |= {row["id"] for row in rows}
        night = run_night(folder, documents)
    assert sorted(filter(None, night.all_ids)) == sorted(expected)
    assert not night.reasons
    assert not [row for rows in night.rows for row in rows.dead]
    assert sum(file.rows for file in night.plan.files) == len(expected)


@pytest.mark.usefixtures("small_sizes")
def test_rows_of_a_large_file_stay_in_order_and_name_their_place(tmp_path: Path) -> None:
    """A dead letter is found by its file, the byte of the first line of a range, and the row after that."""
    rows = make_rows(120)
    uri = write_file(tmp_path, "a.jsonl", to_jsonl(rows))
    night = run_night(tmp_path)
    lines = Path(uri).read_bytes()
    assert night.all_ids == [row["id"] for row in rows]
    for part in night.rows:
        for id, file, first, row in zip(part.ids, part.files, part.firsts, part.rows, strict=True):
            assert file == uri
            assert json.loads(lines[first:].split(b"\n")[row])["id"] == id


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.parquet"])
@pytest.mark.usefixtures("small_sizes")
def test_rows_of_the_spool_name_their_file_and_row(name: str, tmp_path: Path) -> None:
    rows = make_rows(120)
    content = {"a.csv": to_csv(rows), "a.jsonl.gz": gzip.compress(to_jsonl(rows)), "a.parquet": to_parquet(rows)}[name]
    uri = write_file(tmp_path, name, content)
    write_file(tmp_path, "0.jsonl", to_jsonl(make_rows(3, "small")))
    night = run_night(tmp_path, 50)
    places = [
        (id, file, row)
        for part in night.rows
        for id, file, row in zip(part.ids, part.files, part.rows, strict=True)
        if file == uri
    ]
    assert places == [(f"d{n}", uri, n) for n in range(120)]
    assert not [first for part in night.rows for first in part.firsts if first]


@pytest.mark.slow
def test_many_small_files_make_few_tasks_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work follows documents, not files; several parts of the spool make one shard."""
    for module in (shards, spool):
        monkeypatch.setattr(module, "LEAST_DOCUMENTS", 4000)
    for n in range(1200):
        write_file(tmp_path, f"{n:04d}.jsonl", to_jsonl(make_rows(5, f"{n}-")))
    night = run_night(tmp_path, 4000)
    assert len(night.tasks) == 3
    assert [len(shard.pieces) for shard in night.plan.shards] == [1, 2]
    assert len(night.all_ids) == 6000


@pytest.mark.parametrize("small", [1_000, 10_000_000], ids=["large", "small"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_few_documents_are_divided_evenly(
    name: str, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that every worker has some, and none has so few that starting it is not worth it."""
    monkeypatch.setattr(intake, "SMALL", small)
    rows = make_rows(12_000, text="x" * 300)
    content = {"a.csv": to_csv, "a.jsonl": to_jsonl, "a.parquet": lambda rows: to_parquet(rows, compression="none")}
    write_file(tmp_path, name, content[name](rows))
    night = run_night(tmp_path, 8192)
    assert night.all_ids == [row["id"] for row in rows]
    assert 28 <= len(night.rows) <= 48
    assert max(map(len, night.rows)) <= 400


@pytest.mark.parametrize(
    ("documents", "most", "expected"),
    [(10, 8192, 256), (10, 5, 5), (2_000, 8192, 256), (12_000, 8192, 375), (100_000, 1000, 1000), (10**7, 8192, 8192)],
)
def test_the_size_of_a_shard_follows_from_the_number_of_documents(documents: int, most: int, expected: int) -> None:
    assert shards.even_size(documents, most) == expected


def test_tasks_of_small_files_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_bytes(monkeypatch, 1000)
    for n in range(10):
        write_file(tmp_path, f"{n}.jsonl", to_jsonl([{"id": n, "text": "x" * 300}]))
    assert [len(task.pieces) for task in run_night(tmp_path).tasks] == [3, 3, 3, 1]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.usefixtures("small_sizes")
def test_shards_are_bounded_in_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts make shards of fewer documents."""
    limit_bytes(monkeypatch, 2000)
    rows = make_rows(60, text="x" * 300)
    content = {"a.csv": to_csv, "a.jsonl": to_jsonl, "a.parquet": lambda rows: to_parquet(rows, row_group_size=4)}
    write_file(tmp_path, name, content[name](rows))
    night = run_night(tmp_path, 1000)
    assert night.all_ids == [row["id"] for row in rows]
    for part in night.rows:
        assert sum(len(text or "") for text in part.texts) <= 2000


def test_an_empty_input_is_an_empty_night(tmp_path: Path) -> None:
    """Kept columns are no obstacle: a column without a value is a string."""
    night = run_night(tmp_path, data=DataSettings(train="unused", keep=["lang"]))
    assert (night.tasks, night.plan) == ([], NightPlan((), (), (), {"lang": "string"}))


def test_a_table_without_rows_is_no_bad_file(tmp_path: Path) -> None:
    write_file(tmp_path, "a.csv", b"id,text\n")
    write_file(tmp_path, "b.parquet", to_parquet(pa.table({"id": pa.array([], pa.string()), "text": pa.nulls(0)})))
    write_file(tmp_path, "c.jsonl.gz", gzip.compress(b"\r\n\n"))
    night = run_night(tmp_path)
    assert [(file.rows, file.reason) for file in night.plan.files] == [(0, None)] * 3
    assert night.plan.shards == ()


# Dead letters


def test_the_spool_holds_dead_letters_with_their_reasons(tmp_path: Path) -> None:
    """Ids of dead letters do not take part in the search for duplicates: a sound row may have the same."""
    rows: list[Row] = [
        {"id": "a", "text": ""},
        {"id": "a", "text": "sound"},
        {"id": None, "text": "t"},
        {"id": float("nan"), "text": "t"},
        {"id": "b\ud800", "text": "t"},
        {"id": "c", "text": "t\ud800"},
        {"id": "d", "text": 7},
        {"id": "e"},
    ]
    write_file(tmp_path, "a.jsonl", to_jsonl(rows) + b"{\n")
    [part] = (night := run_night(tmp_path)).rows
    assert {row: reason for row, (reason, _) in part.dead.items()} == {
        0: "empty_text",
        2: "null_id",
        3: "null_id",
        4: "bad_id",
        5: "not_text",
        6: "not_text",
        7: "null_text",
        8: "malformed",
    }
    assert part.ids == ["a", "a", None, None, "b?", "c", "d", "e", None]
    assert part.texts == ["", "sound", "t", "t", "t", "t?", None, None, None]
    assert list(night.ids.values()) == [[None, "a", *[None] * 7]]


def test_a_row_without_a_column_is_a_dead_letter_whose_message_lists_those_it_has(tmp_path: Path) -> None:
    write_file(tmp_path, "a.jsonl", to_jsonl([{"id": "1", "body": "hush"}, {"id": "2", "text": None}]))
    [part] = run_night(tmp_path).rows
    assert part.dead == {
        0: ("null_text", "the line has no 'text'; it has id, body"),
        1: ("null_text", "the text is null"),
    }


def test_a_night_reads_other_delimiters_and_encodings(tmp_path: Path) -> None:
    """The place of a dead letter is still its row, from 0; an undecodable CSV is quarantined, and its line named."""
    write_file(tmp_path, "a.csv", "id;text\r\n1;Gr\u00fc\u00dfe\r\n2;\r\n".encode("cp1252"))
    write_file(tmp_path, "b.jsonl", '{"id": "3", "text": "Gr\u00fc\u00dfe"}\n'.encode("cp1252"))
    [rows] = run_night(tmp_path, data=DATA.model_copy(update={"encoding": "cp1252"})).rows
    assert (rows.ids, rows.texts, rows.rows) == (["1", "2", "3"], ["Gr\u00fc\u00dfe", "", "Gr\u00fc\u00dfe"], [0, 1, 0])
    night = run_night(tmp_path)
    assert "a.csv line 2 is not utf-8, it holds the byte 0xfc; name the encoding in" in night.reasons["a.csv"]
    [rows] = night.rows
    assert rows.dead[0][1].startswith("the line is not utf-8, it holds the byte 0xfc; ")


def test_null_and_nan_ids_of_parquet_are_dead_letters(tmp_path: Path) -> None:
    write_file(tmp_path, "a.parquet", to_parquet(pa.table({"id": [1.0, None, float("nan"), 2.5], "text": ["t"] * 4})))
    [part] = run_night(tmp_path).rows
    assert part.ids == ["1", None, None, "2.5"]
    assert {row: reason for row, (reason, _) in part.dead.items()} == {1: "null_id", 2: "null_id"}


# Bad files are left out as a whole

BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    **{
        case: file
        for case, file in test_readers.BAD_FILES.items()
        # a night reads no labels, and a line that is not JSON is a dead letter
        if "without label" not in case and not case.startswith(("a.jsonl without", "jsonl that is not JSON"))
    },
    "csv.gz that ends in a quote": ("a.csv.gz", gzip.compress(to_csv(GOOD) + b'9,"'), "ends inside a quoted value"),
    "jsonl cut long after its beginning": ("a.jsonl", to_jsonl(make_rows(2000))[:-5], "ends inside a line"),
    "parquet with corrupt pages": (
        "a.parquet",
        to_parquet(GOOD, compression="zstd", row_group_size=100).replace(b"\x28\xb5\x2f\xfd", b"\0\0\0\0"),
        "cannot be read",
    ),
    "empty parquet": ("a.parquet", b"", "it is empty"),
}


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_none_of_the_rows_of_a_bad_file_is_taken(
    case: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files around it are, and the file is named with the reason. A part that was saved is forgotten."""
    if size == "large":
        divide_files(monkeypatch, 3000)
        monkeypatch.setattr(intake, "SMALL", 60)
        limit_bytes(monkeypatch, 4000)
    name, data, reason = BAD_FILES[case]
    write_file(tmp_path, "0.jsonl", to_jsonl(make_rows(7, "before")))
    uri = write_file(tmp_path, name, data)
    write_file(tmp_path, "z.csv", to_csv(make_rows(7, "after")))
    night = run_night(tmp_path, 5)
    assert night.reasons.keys() == {name}
    assert uri in night.reasons[name]
    assert reason in night.reasons[name]
    assert set(night.all_ids) == {f"{prefix}{n}" for prefix in ("before", "after") for n in range(7)}
    assert len(night.all_ids) == 14
    assert [file.rows for file in night.plan.files if Path(file.uri).name == name] in ([], [0])


def test_a_file_that_is_bad_in_one_window_is_left_out_of_all() -> None:
    """The tasks of the other ranges have reported parts of the spool."""

    def part(uri: str) -> ReadyPiece:
        return ReadyPiece(Piece(uri, SPOOL, 0, 2, documents=2), 0, 1)

    reports = [
        IntakeReport((FileOutcome("a.parquet", 9, "v", 5),), (part("part"),), {}),
        IntakeReport((FileOutcome("a.parquet", 9, "v", 0, "why"),), (), {}),
        IntakeReport((FileOutcome("b.csv", 9, "v", 2), FileOutcome("c.csv", 9, "v", 0, "no")), (part("other"),), {}),
    ]
    plan = plan_night(reports, DATA, 10)
    assert [piece.uri for shard in plan.shards for piece in shard.pieces] == ["other"]
    assert [(file.uri, file.rows, file.reason) for file in plan.files] == [
        ("a.parquet", 0, "why"),
        ("b.csv", 2, None),
        ("c.csv", 0, "no"),
    ]


def test_a_file_that_is_replaced_or_moved_away_before_it_is_read_is_a_bad_file(tmp_path: Path) -> None:
    """The others are taken."""
    for n in range(3):
        write_file(tmp_path, f"{n}.jsonl", to_jsonl(make_rows(2, f"{n}-")))
    [task] = plan_intake(list_files(str(tmp_path)), bad={})
    write_file(tmp_path, "1.jsonl", to_jsonl(make_rows(3, "other")))
    (tmp_path / "2.jsonl").unlink()
    report = take_in(task, DATA, PartSize(10), lambda _: "part")
    assert [bool(file.reason) for file in report.files] == [False, True, True]
    assert "1.jsonl has changed since it was listed" in (report.files[1].reason or "")
    assert "2.jsonl: not found" in (report.files[2].reason or "")
    assert [ready.piece.documents for ready in report.pieces] == [2]


# Requests and bytes


@pytest.mark.slow
def test_small_files_cost_one_request_each(tmp_path: Path) -> None:
    """Every byte is read once."""
    size = 0
    for n in range(300):
        size += Path(write_file(tmp_path, f"{n:04d}.jsonl", to_jsonl(make_rows(5, f"{n}-")))).stat().st_size
        size += Path(write_file(tmp_path, f"{n:04d}.parquet", to_parquet(make_rows(5, f"p{n}-")))).stat().st_size
    night = run_night(tmp_path, 1000)
    assert (night.taken.count, night.taken.bytes) == (600, size)
    assert night.classified.count == sum(len(shard.pieces) for shard in night.plan.shards) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "groups.parquet", "group.parquet"])
def test_large_files_are_read_once(name: str, tmp_path: Path) -> None:
    """The number of requests follows the shards."""
    rows, write = make_random_rows(20), {"jsonl": to_jsonl, "csv": to_csv}
    if name == "a.jsonl.gz":
        content = gzip.compress(to_jsonl(rows), 1)
    elif name.endswith("parquet"):
        group = 500 if name == "groups.parquet" else len(rows)
        content = to_parquet(rows, row_group_size=group, compression="none", use_dictionary=False)
    else:
        content = write[name.partition(".")[2]](rows)
    size = Path(write_file(tmp_path, name, content)).stat().st_size
    assert size >= intake.SMALL
    night = run_night(tmp_path, 1000)
    assert night.all_ids == [row["id"] for row in rows]
    assert size / 2 < night.taken.bytes <= 1.1 * size
    assert night.classified.bytes == sum(piece.size for shard in night.plan.shards for piece in shard.pieces)
    assert night.taken.count + night.classified.count <= 8 * len(night.plan.shards)


def note_progress(reads: InputReads, read_before: list[float], part: SpoolPart) -> str:
    """Save no part, and note how many bytes were read before it."""
    read_before.append(reads.bytes)
    return f"part-{part.number}"


@pytest.mark.slow
def test_a_large_csv_is_saved_while_it_is_read(tmp_path: Path) -> None:
    """It is never held as a whole, and it is read once, from its beginning to its end."""
    size = Path(write_file(tmp_path, "a.csv", to_csv(make_random_rows(80)))).stat().st_size
    [task] = plan_intake(list_files(str(tmp_path)), bad={})
    read_before: list[float] = []
    with count_input_reads() as reads:
        take_in(task, DATA, PartSize(5000), partial(note_progress, reads, read_before))
    assert reads.bytes == size
    assert read_before[0] <= size / 2
    assert len(read_before) >= 8


@pytest.mark.slow
def test_a_large_row_group_is_streamed(tmp_path: Path) -> None:
    """Parts are saved before the whole row group has been read."""
    rows = make_random_rows(80)
    size = Path(write_file(tmp_path, "a.parquet", to_parquet(rows, compression="none", use_dictionary=False))).stat()
    [task] = plan_intake(list_files(str(tmp_path)), bad={})
    read_before: list[float] = []
    with count_input_reads() as reads:
        report = take_in(task, DATA, PartSize(5000), partial(note_progress, reads, read_before))
    assert reads.bytes <= 1.1 * size.st_size
    assert read_before[0] <= size.st_size / 2
    assert sum(ready.piece.documents for ready in report.pieces) == len(rows)
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1


@pytest.mark.slow
def test_small_parquet_files_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """Their texts may be much longer than the file."""
    rows = pa.table({"id": [str(row) for row in range(60_000)], "text": ["word " * 400] * 60_000})
    pq.write_table(rows, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    [task] = plan_intake(list_files(str(tmp_path)), bad={})
    before = pa.total_allocated_bytes()
    held: list[int] = []
    take_in(task, DATA, PartSize(5000), lambda part: held.append(pa.total_allocated_bytes() - before) or "uri")
    assert len(held) == 12
    assert max(held) < 50_000_000


@pytest.mark.slow
def test_kept_columns_count_for_the_size_of_a_part(tmp_path: Path) -> None:
    write_file(tmp_path, "a.csv", to_csv([{"id": str(row), "text": "t", "body": "x" * 200_000} for row in range(700)]))
    [task] = plan_intake(list_files(str(tmp_path)), bad={})
    report = take_in(task, DataSettings(train="unused", keep=["body"]), PartSize(5000), lambda part: "uri")
    assert len(report.pieces) == 3
    assert sum(ready.piece.documents for ready in report.pieces) == 700
    assert all(ready.bytes <= MAX_BYTES for ready in report.pieces)


def test_a_text_column_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    """Its bytes count."""
    pq.write_table(
        pa.table({"id": ["1"], "a.text": ["x" * 1000], "a": [1], "a_": ["y" * 5000]}), tmp_path / "a.parquet"
    )
    with pq.ParquetFile(tmp_path / "a.parquet") as parquet:
        assert 1000 < column_bytes(parquet, ["a.text"], 0) < 4000


def test_a_file_that_may_not_be_read_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_this_process(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    write_file(tmp_path, "a.parquet", to_parquet(make_rows(3)))
    write_file(tmp_path, "b.jsonl", to_jsonl(make_rows(3)))
    monkeypatch.setattr(ParquetReader, "read", refuse)
    assert "give read permission" in run_night(tmp_path).reasons["a.parquet"]


def test_no_text_and_no_long_line_is_in_the_reason_of_a_csv_without_a_header(tmp_path: Path) -> None:
    write_file(tmp_path, "a.csv", f'17,"My card number is 4111","{"x" * 5000}"\n'.encode())
    write_file(tmp_path, "b.csv", b"secret,secret\n")
    write_file(tmp_path, f"{'c' * 200}.parquet", b"PAR1" * 1000)
    reasons = run_night(tmp_path).reasons
    assert "has no column 'id' among its 3; is the first line a header?" in reasons["a.csv"]
    assert not any("4111" in reason or "secret" in reason.replace("a.csv", "") for reason in reasons.values())
    assert max(map(len, reasons.values())) < 600


def test_a_kept_column_of_two_types_is_refused_before_anything_is_classified(tmp_path: Path) -> None:
    """Whether both files are in one task or not."""
    data = DataSettings(train="unused", keep=["n"])
    write_file(tmp_path, "a.parquet", to_parquet([{"id": "1", "text": "t", "n": 1}]))
    write_file(tmp_path, "b.csv", to_csv([{"id": "2", "text": "t", "n": 1}]))
    with pytest.raises(UserError, match=r"the kept column 'n' is string, elsewhere it is int64; expected one type"):
        run_night(tmp_path, data=data)
    reports = [IntakeReport((), (), {"n": kind}) for kind in ("int64", "string")]
    with pytest.raises(UserError, match=r"the kept column 'n' is string, elsewhere it is int64"):
        plan_night(reports, data, 10)
    declared = run_night(tmp_path, data=DataSettings(train="unused", keep={"n": "int32"}))
    assert pa.concat_tables(part.kept for part in declared.rows).to_pydict() == {"n": [1, 1]}
    assert declared.plan.types == {"n": "int32"}


def test_fields_of_structs_may_hold_nulls_alone_but_have_no_two_types(tmp_path: Path) -> None:
    """Whatever Arrow would make of them; the files share a part of the spool."""
    data = DataSettings(train="unused", keep=["n"])
    values = [{"a": None, "b": [None]}, {"a": 1, "b": ["x"]}]
    for row, name in enumerate(("a.parquet", "b.parquet")):
        write_file(tmp_path, name, to_parquet([{"id": name, "text": "t", "n": values[row]}]))
    night = run_night(tmp_path, data=data)
    assert night.plan.types == {"n": 'struct<"a": int64, "b": list<string>>'}
    assert [part.kept.to_pydict() for part in night.rows] == [{"n": values}]
    for n, kind in (({"a": 0.5, "b": ["x"]}, "float64"), ({"a": "1", "b": ["x"]}, "string")):
        write_file(tmp_path, "c.parquet", to_parquet([{"id": "3", "text": "t", "n": n}]))
        with pytest.raises(UserError, match=f"the kept column 'n' is struct<\"a\": {kind}, .*elsewhere it is struct"):
            run_night(tmp_path, data=data)


def test_a_lost_part_of_the_spool_ends_the_run_and_is_no_bad_file(tmp_path: Path) -> None:
    shard = Shard(0, (Piece(str(tmp_path / "part"), SPOOL, 0, 1, documents=1, size=9),))
    with pytest.raises(UserError, match="part is missing, so the run cannot go on; start over with --restart"):
        read_rows(shard, schema_of({}))


def test_kept_columns_of_a_file_that_is_left_out_have_no_type(tmp_path: Path) -> None:
    """Some of its rows were read before it turned out to be bad."""
    rows = [{"id": n, "text": "t", "n": "one"} for n in range(1500)]
    write_file(tmp_path, "a.jsonl", to_jsonl(rows)[:-5])
    write_file(tmp_path, "b.parquet", to_parquet([{"id": "b", "text": "t", "n": 1}]))
    assert run_night(tmp_path, data=DataSettings(train="unused", keep=["n"])).plan.types == {"n": "int64"}


@pytest.mark.parametrize(("name", "convert"), PLAIN)
def test_a_row_of_more_than_the_limit_makes_a_bad_file(
    name: str, convert: Callable[[Sequence[Row]], bytes], tmp_path: Path
) -> None:
    """Such a file usually has no line ends, and is not read into memory as a whole."""
    rows = [*make_rows(2), {"id": "long", "text": "x" * 20_000_000}]
    write_file(tmp_path, name, convert(rows))
    write_file(tmp_path, "good.jsonl", to_jsonl(make_rows(1, "good")))
    night = run_night(tmp_path, data=DATA.model_copy(update={"max_row_bytes": 17_000_000}))
    assert "of more than 17,000,000 bytes (data.max_row_bytes)" in night.reasons[name]
    assert night.all_ids == ["good0"]


@pytest.mark.parametrize(("name", "convert"), PLAIN)
def test_a_text_that_is_too_long_is_a_dead_letter(
    name: str, convert: Callable[[Sequence[Row]], bytes], tmp_path: Path
) -> None:
    """It is not spooled. Bytes count, not characters."""
    rows = [{"id": "fits", "text": "ä" * 500}, {"id": "long", "text": "ä" * 501}, {"id": "ascii", "text": "x" * 1000}]
    write_file(tmp_path, name, convert(rows))
    [read] = run_night(tmp_path, data=DATA.model_copy(update={"max_text_bytes": 1000})).rows
    message = "the text has 1,002 bytes, expected at most 1,000 (data.max_text_bytes)"
    assert read.dead == {1: ("too_long", message)}
    assert (read.ids, read.texts[1]) == (["fits", "long", "ascii"], None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.csv.gz", "a.jsonl.bz2"])
@pytest.mark.parametrize(("limit", "value"), [("max_decoded_ratio", 1), ("max_decoded_bytes", 70_000_000)])
def test_a_file_that_holds_too_much_is_not_decoded_to_its_end(
    name: str, limit: str, value: int, tmp_path: Path
) -> None:
    """It may be small itself: of equal rows, a few kilobytes hold gigabytes."""
    convert = to_csv if "csv" in name else to_jsonl
    rows = convert([{"id": str(row), "text": "x" * 1000} for row in range(100_000)])
    with pa.CompressedOutputStream(str(tmp_path / name), COMPRESSIONS[name[name.rindex(".") :]]) as file:
        file.write(rows)
    [task] = plan_intake(list_files(str(tmp_path)))
    [file] = take_in(task, DATA.model_copy(update={limit: value}), PartSize(10), lambda _: "part").files
    most = value if limit == "max_decoded_bytes" else 2**26 + file.size
    assert f"and holds more than {most:,}, which data.{limit} allows" in (file.reason or "")


def test_an_error_of_the_disk_is_no_bad_file() -> None:
    """It may be gone the next time."""
    with pytest.raises(UnavailableError), file_errors("a.parquet"):
        raise OSError(errno.EIO, "Input/output error")


def test_saved_parts_of_a_compressed_file_are_forgotten_if_it_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may hold much text, of which parts are saved before its last line is read."""
    limit_bytes(monkeypatch, 40_000)
    write_file(tmp_path, "0.jsonl", to_jsonl(make_rows(2, "before")))
    write_file(tmp_path, "a.jsonl.gz", gzip.compress(to_jsonl(make_rows(1500))[:-5]))
    night = run_night(tmp_path, 5)
    assert len(night.tasks) == 1
    assert night.all_ids == ["before0", "before1"]
