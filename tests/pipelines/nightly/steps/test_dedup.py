"""Duplicate ids, found with hash partitions in the store and compared with a plain loop over all rows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import intake
from pipelines.data.files.input_files import list_files
from pipelines.data.files.kept_columns import schema_of
from pipelines.data.files.shards import Piece, Shard
from pipelines.data.intake import NightPlan, PartKey, plan_intake, plan_night
from pipelines.data.spool import SPOOL, PartSize, read_rows
from pipelines.nightly.steps import dedup
from pipelines.nightly.steps.dedup import DuplicateStep, IdDigests, collect_duplicates, plan_partitions
from pipelines.nightly.steps.intake_step import IDS, IntakeStep
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, CommittedFile, ShardCounts, ShardLog, ShardOutcome
from pipelines.workers.map_shards import commit_shard
from spin.errors import UserError
from spin.settings import DataSettings

DATA = DataSettings(train="nowhere")
ROWS = st.lists(
    st.tuples(
        st.sampled_from([1, "1", "a", "b", "c", "\ud800", "\ufffd", None, ""]), st.sampled_from(["t", "t", " ", None])
    ),
    max_size=12,
)


def find_duplicates(folder: Path | str, run: Store, *, documents: int, partitions: int) -> list[tuple[Any, bool, bool]]:
    """Take a folder in and look for duplicates, as workers do; id, soundness and duplicate of all rows in order."""
    bad: dict[str, str] = {}
    tasks = plan_intake(list_files(str(folder)), bad=bad)
    step = IntakeStep(run, DATA, PartSize(documents), 1)
    taken_in = [commit_shard(step, task, ShardLog(run / "intake")) for task in tasks]
    plan = plan_night([outcome.counts.report for outcome in taken_in], DATA, documents)
    search = DuplicateStep(run / "intake", [outcome.file_key(IDS) for outcome in taken_in], plan, partitions)
    work = plan_partitions(partitions * dedup.PARTITION)
    outcomes = [commit_shard(search, partition, ShardLog(run / "repeats")) for partition in work]
    duplicates = collect_duplicates(run, outcomes, len(plan.shards), 1)
    found = []
    for shard in plan.shards:
        rows, repeated = read_rows(shard, schema_of({})), duplicates.of(shard)
        assert repeated == sorted(set(repeated))
        found += [(id, row not in rows.dead, row in repeated) for row, id in enumerate(rows.ids)]
    return found


def write_rows(folder: Path, name: str, rows: list[tuple[Any, Any]]) -> None:
    """Write rows of id and text; without any a blank line, since a file without a byte is a bad file."""
    records = [{"id": id, "text": text} for id, text in rows]
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records) or "\n")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 12), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 10**6]))
def test_the_first_sound_row_with_an_id_is_no_duplicate(
    rows: list[tuple[Any, Any]], cut: int, documents: int, partitions: int, small: int
) -> None:
    """The rows may be in several shards and files. Rows that are dead for another reason do not count."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "SMALL", small)
        data = Path(folder) / "data"
        data.mkdir()
        write_rows(data, "a.jsonl", rows[:cut])
        write_rows(data, "b.jsonl", rows[cut:])
        found = find_duplicates(data, Store(f"{folder}/run"), documents=documents, partitions=partitions)
    seen: set[str] = set()
    for id, sound, repeated in found:
        if sound:
            assert repeated == (id in seen)
            seen.add(id)
    assert len(found) == len(rows)


def test_texts_of_large_parquet_files_decide_which_row_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row without a text does not count, in whichever shard it is."""
    monkeypatch.setattr(intake, "SMALL", 1)
    ids = ["x", "y", "x", "z", "x", "y", "z"]
    texts = [None, "t", " ", "t", "t", "t", None]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"id": ids, "text": texts}), tmp_path / "data" / "a.parquet", row_group_size=2)
    found = find_duplicates(tmp_path / "data", Store(str(tmp_path / "run")), documents=2, partitions=3)
    assert [(id, repeated) for id, sound, repeated in found if sound] == [
        ("y", False),
        ("z", False),
        ("x", False),
        ("y", True),
    ]


def test_duplicate_ids_are_found_across_shards_in_any_store(store_uri: str, tmp_path: Path) -> None:
    """The store is a folder, then a real S3 server. An unreadable file contributes no ids."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data", "b.jsonl", [(f"d{n % 700}", "t") for n in range(1000)])
    (tmp_path / "data" / "a.csv").write_text('id,text\nd1,t\nd2,"t')
    found = find_duplicates(tmp_path / "data", Store(store_uri), documents=300, partitions=5)
    assert [row for row, (_, _, repeated) in enumerate(found) if repeated] == list(range(700, 1000))


@pytest.mark.parametrize(("documents", "count"), [(0, 1), (1, 1), (10, 1), (11, 2), (95, 10), (10**6, 1024)])
def test_a_partition_holds_a_bounded_number_of_documents(
    documents: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are as few partitions as that allows, and one if there are no documents."""
    monkeypatch.setattr(dedup, "PARTITION", 10)
    assert [shard.index for shard in plan_partitions(documents)] == list(range(count))


def test_ids_of_parts_that_are_in_no_shard_are_not_compared() -> None:
    """They are of a file that is left out, so none of their rows is predicted in place of another."""
    piece = Piece("part", SPOOL, 0, 1, documents=1)
    plan = NightPlan((Shard(0, (piece,)),), ((PartKey(0, 1),),), (), {})
    digests = IdDigests()
    digests.add(0, ["x"])
    digests.add(1, ["x"])
    assert dedup._Places.of(plan, 1).locate(0, digests._all())["shard"].tolist() == [0]


def test_repeated_ids_of_a_file_that_is_left_out_are_not_counted() -> None:
    digests = IdDigests()
    digests.add(0, ["x", "y"])
    digests.add(1, ["x", "x"])
    digests.keep_parts({0})
    assert digests.count_repeated() == 0


def test_a_lost_list_of_duplicates_ends_the_run(tmp_path: Path) -> None:
    """Without it, rows with the same id would be predicted."""
    counts, files = ShardCounts(rows=2), {"parts/000000-000001-1.parquet": CommittedFile(9, "0")}
    outcome = ShardOutcome(counts, files, tries=1, seconds=1, ended=1)
    with pytest.raises(UserError, match=r"000000-000001-1\.parquet is missing.*--restart"):
        collect_duplicates(Store(str(tmp_path)), [outcome], 1, 1)


def test_a_task_that_is_done_twice_writes_its_parts_under_two_names(tmp_path: Path) -> None:
    """Both may be under way at once, and each reports the content of its own parts."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data", "a.jsonl", [("x", "t")])
    [task] = plan_intake(list_files(str(tmp_path / "data")), bad={})
    run = Store(str(tmp_path / "run"))
    step = IntakeStep(run, DATA, PartSize(10), 1)
    reports = [step(task, Attempt(run, "attempt")).counts.report for _ in range(2)]
    assert len({ready.piece.uri for report in reports for ready in report.pieces}) == 2
