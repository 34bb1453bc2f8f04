"""Nights and their histories without a model: what is read, published, resumed and refused, with the real night job."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.data import intake
from pipelines.data.files.shards import Shard
from pipelines.nightly import classify, classify_pass, finish, night_driver
from pipelines.nightly.night_driver import NightDriver
from pipelines.nightly.nights import list_output, vacuum
from pipelines.nightly.steps import dedup
from pipelines.nightly.tables import publication, resume
from pipelines.nightly.tables.night_history import list_nights, read_predictions
from pipelines.nightly.tables.night_records import FORMAT, RUNS, abandon_run, find_night
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, INPUTS, PREDICTIONS
from pipelines.service_errors import BadRowsError, HeldError, StalledError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import to_json
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardLog, StepResult
from pipelines.workers.fault_isolation import MAX_CRASHES, IsolatedRows, isolate_failing_rows
from pipelines.workers.map_shards import ShardWork, _within_stall_limit
from spin.errors import SpinError, UserError
from spin.settings import RaySettings
from tests.pipelines.nightly.tables.test_table_readers import READERS, plain
from tests.support.broken_folders import break_listing
from tests.support.fake_nights import (
    DATE,
    LAST,
    NEXT,
    PUBLISHING,
    WAKING,
    FakeNights,
    FakeRegistry,
    FakeStep,
    before_call,
    make_rows,
    use_fake_step,
)
from tests.support.nights import list_unfinished
from tests.support.power_cut import cut_power, recording_flushes
from tests.support.repository import ROOT

MUTATING_METHODS = ("write", "create", "delete_many")


class Crash(BaseException):
    """The process ends here; what its store holds stays."""


# What a night publishes


def test_every_row_is_a_prediction_or_a_dead_letter(nights: FakeNights) -> None:
    """The report counts them; the tables hold the rows and the files, and the report neither."""
    nights.write("a.jsonl", [*make_rows("a1", "a2"), {"id": "a3", "text": None}])
    nights.write("b.csv", make_rows("b1", "b2", "b3", text="bad day"))
    nights.write("c.parquet", make_rows(*(f"c{n}" for n in range(9))))
    report = nights.run()
    assert nights.ids() == {DATE: sorted(["a1", "a2", "b1", "b2", "b3", *(f"c{n}" for n in range(9))])}
    assert [(row["id"], row["reason"]) for row in nights.dead_letters()] == [("a3", "null_text")]
    assert (report.counts.rows, report.counts.predicted, report.counts.dead) == (15, 14, 1)
    assert report.counts.labels == {"good": 11, "bad": 3}
    assert nights.inputs() == {"a.jsonl": "taken", "b.csv": "taken", "c.parquet": "taken"}
    assert (report.files.taken, report.files.skipped, report.files.quarantined) == (3, 0, 0)
    assert nights.out.read("report.json") == nights.out.read(f"_runs/{report.run}/report.json")
    assert "a.jsonl" not in str({**to_json(report), "slowest": []})
    assert [metrics["rows"] for metrics, _ in nights.registry.logged] == [15]


def test_an_empty_input_is_an_empty_night(nights: FakeNights) -> None:
    """Its status is 0, readers see it, and the next night takes what has come since."""
    nights.write("_marker", b"")
    report = nights.run()
    assert (report.counts.rows, report.files.taken, report.files.skipped, report.files.quarantined) == (0, 0, 0, 0)
    assert nights.ids() == {DATE: []}
    nights.write("a.jsonl", make_rows("a"))
    nights.run(NEXT, incremental=True)
    assert nights.ids() == {DATE: [], NEXT: ["a"]}


def test_an_input_that_does_not_exist_is_refused(local_nights: FakeNights) -> None:
    with pytest.raises(UserError, match="no data at"):
        local_nights.run()
    assert not Path(local_nights.output).exists()


@pytest.mark.parametrize("output", ["data", "data/out"])
def test_an_output_inside_its_input_is_refused(output: str, local_nights: FakeNights) -> None:
    """A night would read what another one has written."""
    local_nights.write("a.jsonl", make_rows("a"))
    with pytest.raises(UserError, match="lies within the input"):
        local_nights.run(output=f"{local_nights.store.uri}/{output}")


def test_an_output_without_hard_links_is_refused_before_a_lease_is_taken(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits would not be atomic there. Trying again does not help, so the status is 2."""
    local_nights.write("a.jsonl", make_rows("a"))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="has no hard links"):
        local_nights.run()


def test_an_output_with_files_of_another_program_is_refused_and_left_as_it_is(local_nights: FakeNights) -> None:
    """The message names what was found. A command with --restart is refused too, before a model is downloaded."""
    files = {"predictions/date=2026-05-04/part.parquet": b"PAR1", "dead_letters/a.csv": b"a", "latest": b"2026-05-04"}
    for key, content in files.items():
        local_nights.out.write(key, content)
    local_nights.write("a.jsonl", make_rows("a"))
    found = r"/predictions holds date=2026-05-04/part\.parquet and no Delta table; .* move these files away"
    for restart in (False, True):
        with pytest.raises(UserError, match=found):
            local_nights.run(restart=restart)
    assert {key: local_nights.out.read(key) for key in local_nights.out.list()} == files
    local_nights.out.delete_many(["predictions/date=2026-05-04/part.parquet"])
    with pytest.raises(UserError, match=r"out/dead_letters holds a\.csv and no Delta table"):
        local_nights.run()


@pytest.mark.slow
@pytest.mark.parametrize("record", ["run.json", "plan.json"])
def test_a_run_of_another_format_is_refused_until_it_is_begun_anew(record: str, local_nights: FakeNights) -> None:
    """The error names the run, whose records another version of spin has written."""
    leave_unfinished(local_nights)
    key = f"_runs/{DATE}-tiny-000001/{record}"
    stored = local_nights.out.read_json(key)
    (stored if record == "run.json" else stored["metadata"])["format"] = FORMAT - 1
    local_nights.out.write_json(key, stored)
    with pytest.raises(UserError, match=rf"{DATE}-tiny-000001.*format.*{FORMAT - 1}.*--restart"):
        local_nights.run()
    local_nights.run(NEXT)
    assert [each.state for each in list_output(local_nights.output)] == ["unfinished", "published"]
    local_nights.run(restart=True)
    assert local_nights.ids() == {DATE: ["a"], NEXT: ["a"]}


def test_published_runs_of_another_format_are_listed_and_vacuumed(local_nights: FakeNights) -> None:
    """The format is that of a run's work, which is over. A record that cannot be read at all is named."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run()
    for key in (f"_runs/{DATE}-tiny-000001/{record}.json" for record in ("run", "night")):
        local_nights.out.write_json(key, {**local_nights.out.read_json(key), "format": FORMAT - 1})
    assert [each.state for each in list_output(local_nights.output)] == ["published"]
    assert vacuum(local_nights.output, older_than=timedelta(days=1)).abandon == ()
    local_nights.out.write(f"_runs/{DATE}-tiny-000001/run.json", b"{}")
    with pytest.raises(UserError, match=r"000001/run\.json is no record of a run .* damaged"):
        list_output(local_nights.output)


def test_names_from_outside_are_taken_literally(nights: FakeNights) -> None:
    """Characters that mean something in a URI, and a marker object where leases are, stop no night."""
    for number, name in enumerate(("a&pass=1.jsonl", "sound.jsonl::x.jsonl", "100%.jsonl", "a b#c.jsonl")):
        nights.write(name, make_rows(f"id{number}"))
    nights.out.write("_leases/tiny/_lease/marker", b"")
    nights.run()
    assert nights.ids() == {DATE: ["id0", "id1", "id2", "id3"]}


def test_a_file_whose_name_says_nothing_or_is_not_unicode_is_quarantined(local_nights: FakeNights) -> None:
    """No table can hold a name that is not Unicode; its bytes are shown as escapes."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.write("notes.txt", b"")
    Path(os.fsdecode(os.fsencode(local_nights.source) + b"/\xff.jsonl")).write_bytes(b'{"id": "b", "text": "good"}\n')
    report = local_nights.run()
    unknown, undecodable = sorted((file.reason for file in report.quarantined), key=lambda reason: "UTF-8" in reason)
    assert unknown.endswith("notes.txt is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    assert undecodable.endswith("\\udcff.jsonl has a name that is not UTF-8; rename it")
    bad = dict.fromkeys(("notes.txt", "\\udcff.jsonl"), "quarantined")
    assert local_nights.inputs() == {"a.jsonl": "taken", **bad}


def test_kept_columns_are_in_predictions_and_dead_letters(nights: FakeNights) -> None:
    """Their values come from Parquet, JSONL and CSV, in the declared type; a file may lack one."""
    for name in ("a.parquet", "b.jsonl", "c.csv"):
        nights.write(name, [{"id": name, "text": "good", "lang": "de", "priority": 7}])
    nights.write("d.jsonl", [{"id": "d", "text": None, "lang": "fr"}])
    nights.run(data={"keep": {"lang": None, "priority": "int64"}})
    assert sorted((row["id"], row["lang"], row["priority"]) for row in nights.predictions()) == [
        ("a.parquet", "de", 7),
        ("b.jsonl", "de", 7),
        ("c.csv", "de", 7),
    ]
    assert [(row["id"], row["lang"], row["priority"]) for row in nights.dead_letters()] == [("d", "fr", None)]
    nights.run(NEXT)  # without the columns: those of the table stay
    assert {row["lang"] for row in nights.predictions(NEXT)} == {None}


def test_a_kept_column_keeps_its_type(local_nights: FakeNights) -> None:
    """Another type is refused before anything is classified."""
    local_nights.write("a.parquet", [{"id": "a", "text": "good", "priority": 7}])
    local_nights.run(data={"keep": ["priority"]})
    local_nights.write("a.parquet", [{"id": "a", "text": "good", "priority": "high"}])
    FakeStep.computed.clear()
    with pytest.raises(UserError, match="priority"):
        local_nights.run(NEXT, data={"keep": ["priority"]})
    assert FakeStep.computed == []


@pytest.mark.parametrize("reader", READERS)
def test_other_programs_read_what_a_night_has_written(reader: str, local_nights: FakeNights) -> None:
    """Predictions with kept columns, dead letters and input files."""
    local_nights.write("a.jsonl", [{"id": "a", "text": "good", "lang": "de"}, {"id": "b", "text": " ", "lang": "fr"}])
    report = local_nights.run(data={"keep": ["lang"]})
    names = ("id", "label", "labels", "score", "scores", "depth", "model_version", "lang", "model")
    read = READERS[reader]
    [row] = read(f"{local_nights.out.uri}/predictions")
    assert [plain(row[name]) for name in names] == ["a", "good", None, 0.5, {"good": 0.5}, 3, "1", "de", "tiny"]
    [letter] = read(f"{local_nights.out.uri}/dead_letters")
    assert [letter[name] for name in ("id", "reason", "first", "row", "text", "lang", "run")] == [
        *("b", "empty_text", 0, 1, None, "fr"),
        report.run,
    ]
    [file] = read(f"{local_nights.out.uri}/inputs")
    assert (file["uri"], file["rows"], file["status"]) == (f"{local_nights.source}/a.jsonl", 2, "taken")


# Duplicate ids


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_of_rows_with_an_id_the_first_sound_one_is_predicted(
    name: str, large: bool, local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead row before it does not count."""
    if large:
        monkeypatch.setattr(intake, "SMALL", 1)
    filler = make_rows(*(f"f{n}" for n in range(8)))
    local_nights.write(name, [*make_rows("x", text=" "), *filler, *make_rows("x", text="bad"), *make_rows("x", "y")])
    local_nights.write("b.jsonl", make_rows("x", "y", "z"))
    local_nights.run()
    labels = {row["id"]: row["label"] for row in local_nights.predictions()}
    assert labels == {**{row["id"]: "good" for row in filler}, "x": "bad", "y": "good", "z": "good"}
    assert Counter((row["id"], row["reason"]) for row in local_nights.dead_letters()) == {
        ("x", "empty_text"): 1,
        ("x", "repeated_id"): 2,
        ("y", "repeated_id"): 1,
    }


def test_the_ids_of_a_file_that_cannot_be_read_do_not_count(local_nights: FakeNights) -> None:
    """Its rows are not predicted, so a row of another file with the id is."""
    local_nights.write("a.jsonl", b'{"id": "x", "text": "good"}\n{"id": "y", "te')
    local_nights.write("b.jsonl", make_rows("x"))
    local_nights.run()
    assert local_nights.ids() == {DATE: ["x"]}
    assert local_nights.inputs() == {"a.jsonl": "quarantined", "b.jsonl": "taken"}


def test_a_column_that_is_no_id_ends_the_night_before_it_computes(local_nights: FakeNights) -> None:
    """All rows but one per value would be dead letters: status 4, in one line."""
    local_nights.write("a.jsonl", [{"id": n % 3, "text": "good"} for n in range(60)])
    with pytest.raises(BadRowsError, match=r"57 of 60 rows cannot be classified \(57 repeated_id\)"):
        local_nights.run(documents=100, limits={"max_dead_fraction": 0.5})
    assert FakeStep.computed == []


def test_trusted_ids_are_not_compared(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("x", "x"))
    local_nights.run(data={"ids": "trusted"})
    assert local_nights.ids() == {DATE: ["x", "x"]}


@pytest.mark.parametrize("partition", [1, 3, 1000])
def test_duplicates_are_found_in_any_number_of_partitions(
    partition: int, local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "PARTITION", partition)
    local_nights.write("a.jsonl", make_rows(*(f"id{n % 7}" for n in range(20))))
    local_nights.run()
    assert local_nights.ids() == {DATE: [f"id{n}" for n in range(7)]}
    assert len(local_nights.dead_letters()) == 13


# Files that cannot be read


def test_more_unreadable_files_than_allowed_end_a_night(local_nights: FakeNights) -> None:
    """The status is 4 and readers see nothing; with a higher limit the next command publishes."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.write("b.parquet", b"PAR1")
    with pytest.raises(BadRowsError, match=r"1 of 2 files cannot be classified.*b\.parquet") as error:
        local_nights.run(limits={"max_bad_files": 0.1})
    assert error.value.status == 4
    assert list_nights(local_nights.tables) == []
    report = local_nights.run()
    assert [file.uri.rpartition("/")[2] for file in report.quarantined] == ["b.parquet"]
    assert local_nights.ids() == {DATE: ["a"]}


def test_a_file_that_was_mended_is_read_by_a_new_run(local_nights: FakeNights) -> None:
    """A run goes on with what it has read, so the error names --restart."""
    local_nights.write("a.jsonl", [*make_rows("a"), {"id": "b", "text": None}, {"id": "c", "text": " "}])
    found = r"1 null_text, 1 empty_text.*mend them and start over with --restart"
    with pytest.raises(BadRowsError, match=found):
        local_nights.run(limits={"max_dead_fraction": 0.1})
    assert list_nights(local_nights.tables) == []
    local_nights.write("a.jsonl", make_rows("a", "b"))
    local_nights.run(limits={"max_dead_fraction": 0.1}, restart=True)
    assert local_nights.ids() == {DATE: ["a", "b"]}


def test_a_night_outside_its_limits_names_the_first_rows_that_cannot_be_classified(local_nights: FakeNights) -> None:
    """By the lines of the file, blank ones counted, and by the reason."""
    rows = [*make_rows("a"), *({"id": f"b{n}", "text": None} for n in range(12)), {"id": "a", "text": "again"}]
    local_nights.write("a.jsonl", "\n\n".join(map(json.dumps, rows)).encode())
    local_nights.write("b.parquet", [*make_rows("c"), {"id": "d", "text": None}])
    with pytest.raises(BadRowsError) as error:
        local_nights.run(limits={"max_dead_fraction": 0.1})
    lines = ", ".join(str(2 * n + 1) for n in range(1, 10))
    assert f"allows: {local_nights.source}/a.jsonl lines {lines} and 21 (null_text); mend" in str(error.value)
    local_nights.write("a.jsonl", make_rows("a", "b", "b"))
    with pytest.raises(BadRowsError) as error:
        local_nights.run(limits={"max_dead_fraction": 0.3}, restart=True)
    assert f"/a.jsonl line 3 (repeated_id); {local_nights.source}/b.parquet row 1 (from 0) (null_text); mend" in str(
        error.value
    )


@pytest.mark.slow
def test_an_old_bad_file_does_not_block_small_incremental_nights(local_nights: FakeNights) -> None:
    """The limit is a share of the files of the run without those that an earlier night has quarantined."""
    for number in range(12):
        local_nights.write(f"{number}.jsonl", make_rows(f"a{number}"))
    local_nights.write("bad.parquet", b"PAR1")
    local_nights.run(limits={"max_bad_files": 0.1})
    local_nights.write("new.jsonl", make_rows("new"))
    report = local_nights.run(NEXT, incremental=True, limits={"max_bad_files": 0.1})
    assert (report.files.taken, report.files.skipped, report.files.quarantined) == (1, 12, 1)
    assert local_nights.ids()[NEXT] == ["new"]
    local_nights.write("cut.parquet", b"PAR1")
    with pytest.raises(BadRowsError, match=r"1 of 1 file cannot be classified.*cut\.parquet"):
        local_nights.run(LAST, incremental=True, limits={"max_bad_files": 0.1})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store_uri", "change", "stage"),
    [
        *(("folder", change, stage) for change in ("moved", "replaced") for stage in ("intake", "classify")),
        ("folder", "replaced by as many bytes", "intake"),
        pytest.param("s3", "replaced", "intake", marks=pytest.mark.s3),
    ],
    indirect=["store_uri"],
)
def test_a_file_that_changes_during_a_night_is_quarantined_alone(
    change: str, stage: str, nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other files are published, and the next night takes what is there then.

    A file that has been taken in before it changes is classified as it was.
    """
    monkeypatch.setattr(intake, "SMALL", 400)
    nights.write("a.jsonl", make_rows("a"))
    nights.write("b.jsonl", make_rows(*(f"b{n}" for n in range(20))))

    new = {
        "moved": [],
        "replaced": [f"new{n}" for n in range(30)],
        "replaced by as many bytes": [f"c{n}" for n in range(20)],
    }[change]

    def change_file() -> None:
        nights.store.delete_many(["data/b.jsonl"])
        if new:
            nights.write("b.jsonl", make_rows(*new))

    with before_call(classify_pass, "take_in" if stage == "intake" else "_share_models", change_file):
        report = nights.run()
    taken = stage == "classify"
    assert report.files.quarantined == 1 - taken
    assert nights.ids() == {DATE: ["a", *(sorted(f"b{n}" for n in range(20)) if taken else [])]}
    assert nights.inputs() == {"a.jsonl": "taken", "b.jsonl": "taken" if taken else "quarantined"}
    nights.run(NEXT, incremental=True)
    assert nights.ids()[NEXT] == sorted(new)


@pytest.mark.slow
def test_a_listing_that_fails_for_a_moment_is_tried_again(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    settings = local_nights.settings(4, None, None)
    patient = settings.model_copy(update={"ray": settings.ray.model_copy(update={"retry_seconds": 60})})
    break_listing(monkeypatch, Path(local_nights.source), errno.ESTALE, times=1)
    classify.run_classify(patient, local_nights.registry, local_nights.source, local_nights.output, night=DATE)  # type: ignore[arg-type]
    assert local_nights.ids() == {DATE: ["a"]}


def test_outages_while_files_are_read_quarantine_none(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends with status 5 each time, and the next command takes the file."""
    local_nights.write("a.jsonl", make_rows("a"))

    def fail(*_: Any, **__: Any) -> Any:
        raise UnavailableError("the store does not answer")

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(intake, "read_pieces", fail)
            with pytest.raises(UnavailableError):
                local_nights.run()
    local_nights.run()
    assert local_nights.inputs() == {"a.jsonl": "taken"}
    assert local_nights.ids() == {DATE: ["a"]}


# Which files a night takes


@pytest.mark.slow
def test_an_incremental_night_takes_what_no_other_date_holds(nights: FakeNights) -> None:
    """A file that changes or was quarantined is new. Without the flag, a night takes all of its input."""
    nights.write("a.jsonl", make_rows("a"))
    nights.write("b.jsonl", make_rows("b"))
    nights.write("c.parquet", b"PAR1")
    nights.run()
    nights.write("b.jsonl", make_rows("b", "b2"))
    nights.write("c.parquet", make_rows("c"))
    report = nights.run(NEXT, incremental=True)
    assert (report.files.taken, report.files.skipped) == (2, 1)
    assert nights.ids() == {DATE: ["a", "b"], NEXT: ["b", "b2", "c"]}
    nights.run(LAST)
    assert nights.ids()[LAST] == ["a", "b", "b2", "c"]


def test_an_input_that_is_named_through_a_link_is_taken_once(local_nights: FakeNights, tmp_path: Path) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(incremental=True)
    (tmp_path / "link").symlink_to(f"{local_nights.store.uri}/data")
    report = local_nights.run(NEXT, incremental=True, source=str(tmp_path / "link"))
    assert (report.files.taken, report.files.skipped) == (0, 1)


@pytest.mark.slow
def test_a_failed_night_that_is_resumed_after_its_successor_takes_no_file_twice(local_nights: FakeNights) -> None:
    leave_unfinished(local_nights, incremental=True)
    local_nights.write("b.jsonl", make_rows("b"))
    local_nights.run(NEXT, incremental=True)
    local_nights.run(DATE, incremental=True)
    assert local_nights.ids() == {DATE: [], NEXT: ["a", "b"]}


@pytest.mark.slow
def test_a_night_that_is_done_again_after_its_successor_keeps_its_files(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(incremental=True)
    local_nights.write("b.jsonl", make_rows("b"))
    local_nights.run(NEXT, incremental=True)
    local_nights.write("c.jsonl", make_rows("c"))
    local_nights.run(DATE, incremental=True, restart=True)
    assert local_nights.ids() == {DATE: ["a", "c"], NEXT: ["b"]}
    local_nights.run(LAST, incremental=True)
    assert local_nights.ids() == {DATE: ["a", "c"], NEXT: ["b"], LAST: []}


@pytest.mark.slow
def test_a_missed_date_that_is_made_up_for_takes_what_is_left(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(NEXT, incremental=True)
    local_nights.write("b.jsonl", make_rows("b"))
    local_nights.run(DATE, incremental=True)
    local_nights.run(LAST, incremental=True)
    assert local_nights.ids() == {DATE: ["b"], NEXT: ["a"], LAST: []}


@pytest.mark.slow
def test_nights_of_several_inputs_and_models_share_an_output(local_nights: FakeNights) -> None:
    """What another input or another model has taken makes no difference."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.write("b.jsonl", make_rows("b"), folder="elsewhere")
    local_nights.run(incremental=True)
    local_nights.run(NEXT, incremental=True, source=f"{local_nights.store.uri}/elsewhere")
    local_nights.run(LAST, incremental=True)
    local_nights.run(NEXT, incremental=True, registry=FakeRegistry("other/model"))
    assert local_nights.ids() == {DATE: ["a"], NEXT: ["b"], LAST: []}
    assert local_nights.ids("other/model") == {NEXT: ["a"]}


def test_a_night_that_ends_while_the_next_one_lists_is_seen(local_nights: FakeNights) -> None:
    """Which files are new is asked after the claim, not when they are listed."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(classify, "lease_model", lambda: local_nights.run(incremental=True)):
        local_nights.run(NEXT, incremental=True)
    assert local_nights.ids() == {DATE: ["a"], NEXT: []}


def test_a_night_in_the_future_is_refused(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    with pytest.raises(UserError, match="is in the future"):
        local_nights.run("2999-01-01")


# Resuming and starting over


def fail() -> None:
    """Fail as a store that does not answer."""
    raise UnavailableError("the store does not answer")


def leave_unfinished(nights: FakeNights, **options: Any) -> None:
    """Write a file, and let the night fail when all that is left to do is to publish it."""
    nights.write("a.jsonl", make_rows("a"))
    with before_call(night_driver, "publish_night", fail), pytest.raises(UnavailableError):
        nights.run(**options)


def fail_from(number: int) -> Callable[[], None]:
    """A function that fails from its call of this number on."""
    calls = count(1)

    def fail_then() -> None:
        if next(calls) >= number:
            fail()

    return fail_then


@contextmanager
def crash_at(number: int, *, after: bool) -> Iterator[list[str]]:
    """Raise Crash at the store's mutation of this number, before or after it is made; yields the list of mutations."""
    mutations: list[str] = []

    def crashing(name: str) -> Callable[..., Any]:
        method = getattr(Store, name)

        def mutate(store: Store, *args: Any) -> Any:
            mutations.append(f"{name} {args[0]}" if name != "delete_many" else name)
            if len(mutations) > number or (len(mutations) == number and not after):
                raise Crash  # a dead process runs no `finally` block
            result = method(store, *args)
            if len(mutations) == number:
                raise Crash
            return result

        return mutate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lease, "_renew", lambda _: None)  # heartbeats are not steps of the night
        patch.setattr(Lease, "__exit__", lambda *_: None)
        for name in MUTATING_METHODS:
            patch.setattr(Store, name, crashing(name))
        yield mutations


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_step_loses_nothing(after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun completes the night and computes at most one shard again: the one in progress."""
    use_fake_step(monkeypatch)
    for number in count(1):
        nights = FakeNights(str(tmp_path / str(number)))
        nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(6)), "a0"))
        FakeStep.computed.clear()
        with crash_at(number, after=after) as mutations, suppress(Crash):
            nights.run()
        nights.expire_lease()
        nights.run()
        assert nights.ids() == {DATE: [f"a{n}" for n in range(6)]}, mutations[-1]
        assert [row["reason"] for row in nights.dead_letters()] == ["repeated_id"], mutations[-1]
        assert len(FakeStep.computed) <= 2 + 1, mutations[-1]
        if len(mutations) < number:
            break
    assert number > 20


@contextmanager
def mount_small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of one megabyte on a folder, which only root can do."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    result = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if result is None or result.returncode:
        message = f"no disk can be mounted here: {result.stderr.strip() if result else 'there is no `mount` command'}"
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path) -> None:
    """Write until no further byte fits."""
    with (folder / ".ballast").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "step"),
    [
        (classify, "choose_runs"),
        (classify_pass, "take_in"),
        (classify_pass, "_share_models"),
        (finish, "write_records"),
        (NightDriver, "_publish"),
    ],
)
def test_a_full_disk_ends_a_night_with_status_5_and_it_resumes(
    module: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers see nothing of it, and with more space a rerun completes the night."""
    use_fake_step(monkeypatch)
    nights, disk = FakeNights(str(tmp_path)), tmp_path / "out"
    nights.write("a.jsonl", make_rows("a", "b"))
    disk.mkdir()
    with mount_small_disk(disk):
        with (
            before_call(module, step, lambda: fill_disk(disk)),
            pytest.raises(UnavailableError, match=r"is full .*run it again to resume") as error,
        ):
            nights.run()
        assert error.value.status == 5
        assert list_nights(nights.tables) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        nights.expire_lease()
        nights.run()
        assert nights.ids() == {DATE: ["a", "b"]}


@pytest.mark.slow
def test_a_resumed_run_computes_only_what_is_missing(local_nights: FakeNights) -> None:
    """It keeps to the files of its plan; the next night takes the others."""
    local_nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(12))))
    with (
        before_call(FakeStep, "_find_dead", fail_from(3), once=False),
        pytest.raises(UnavailableError),
    ):
        local_nights.run()
    local_nights.write("b.jsonl", make_rows("b"))
    FakeStep.computed.clear()
    local_nights.run()
    assert FakeStep.computed == ["000002"]
    assert local_nights.ids() == {DATE: sorted(f"a{n}" for n in range(12))}
    local_nights.run(NEXT, incremental=True)
    assert local_nights.ids()[NEXT] == ["b"]


def test_a_folder_has_one_name(local_nights: FakeNights) -> None:
    """A run goes on whether the input is named with a slash at its end or without."""
    leave_unfinished(local_nights, source=f"{local_nights.source}/")
    FakeStep.computed.clear()
    local_nights.run()
    assert FakeStep.computed == []
    assert local_nights.ids() == {DATE: ["a"]}


def test_a_run_with_other_settings_is_refused_without_restart(local_nights: FakeNights) -> None:
    """The error names the difference, also of a night that is published."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run()
    local_nights.registry.champion = "2"
    with pytest.raises(UserError, match=r'model\.version is "2", was "1".*--restart'):
        local_nights.run()
    with pytest.raises(UserError, match="incremental is true, was false"):
        local_nights.run(model="models:/tiny/1", incremental=True)
    assert {row["model_version"] for row in local_nights.predictions()} == {"1"}
    local_nights.run(restart=True)
    assert {row["model_version"] for row in local_nights.predictions()} == {"2"}


@pytest.mark.parametrize("change", ["version", "incremental"])
def test_a_run_that_was_begun_and_not_planned_does_not_go_on_as_another(change: str, local_nights: FakeNights) -> None:
    """A column of its predictions and its record name the version and the options with which it was begun."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(resume, "create_plan", fail), pytest.raises(UnavailableError):
        local_nights.run()
    if change == "version":
        local_nights.registry.champion = "2"
    report = local_nights.run(incremental=change == "incremental")
    assert report.run == f"{DATE}-tiny-000002"
    assert {row["model_version"] for row in local_nights.predictions()} == {local_nights.registry.champion}
    [night] = [find_night(local_nights.out, each.run) for each in list_nights(local_nights.tables)]
    assert night is not None
    assert night.incremental == (change == "incremental")


def test_a_declared_type_other_than_that_of_the_table_is_refused_before_a_run_begins(local_nights: FakeNights) -> None:
    """So the published night is still the last one, and the command that made it has nothing to do."""
    local_nights.write("a.jsonl", [{"id": "a", "text": "good", "lang": "de"}])
    before = local_nights.run(data={"keep": ["lang"]})
    with pytest.raises(UserError, match="'lang' is int64 in data.keep, but string in the table of the output"):
        local_nights.run(data={"keep": {"lang": "int64"}}, restart=True)
    assert local_nights.run(data={"keep": ["lang"]}) == before


def test_a_command_whose_night_is_published_says_that_nothing_was_computed(
    local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    first = local_nights.run()
    assert caplog.messages == []
    assert local_nights.run() == first
    assert FakeStep.computed == ["000000"]
    [line] = caplog.messages
    assert f"the night of {DATE} is published (run {first.run}), so nothing was computed; --restart" in line


def test_files_that_come_after_their_night_was_published_are_named(
    local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an incremental night, those that another one has taken are not among them."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(incremental=True)
    local_nights.write("b.jsonl", make_rows("b"))
    local_nights.run(NEXT, incremental=True)
    local_nights.write("c.jsonl", make_rows("c"))
    local_nights.write("d.jsonl", make_rows("d"))
    local_nights.run(incremental=True)
    late = f"2 files of the input came later, such as {local_nights.source}/c.jsonl; --restart begins a new run"
    assert late in caplog.messages[-1]


@pytest.mark.slow
def test_a_restart_computes_everything_anew(local_nights: FakeNights) -> None:
    """Settings and files are the same. Late files are taken, and the old night is visible until the commit."""
    local_nights.write("a.jsonl", make_rows("a"))
    first = local_nights.run()
    local_nights.write("b.jsonl", make_rows("b"))
    local_nights.run()
    assert local_nights.ids() == {DATE: ["a"]}
    seen: list[dict[str, list[str]]] = []
    with before_call(publication, "_commit_predictions", lambda: seen.append(local_nights.ids())):
        second = local_nights.run(restart=True)
    assert seen == [{DATE: ["a"]}]
    assert FakeStep.computed == ["000000", "000000"]
    assert local_nights.ids() == {DATE: ["a", "b"]}
    assert first.run < second.run


def test_a_restart_deletes_the_texts_of_the_run_that_it_follows(local_nights: FakeNights) -> None:
    """Nobody goes on with that run, which was not finished, once the new one is published."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(night_driver, "finish_night", fail), pytest.raises(UnavailableError):
        local_nights.run()
    assert [key for key in local_nights.out.list(RUNS) if "/spool/" in key]
    local_nights.run(restart=True)
    assert not [key for key in local_nights.out.list(RUNS) if "/spool/" in key]
    assert local_nights.ids() == {DATE: ["a"]}


def test_a_restart_that_fails_leaves_the_old_night_and_is_resumed(local_nights: FakeNights) -> None:
    """The next command without a flag goes on with the new run."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run()
    local_nights.write("b.jsonl", make_rows("b"))
    with before_call(night_driver, "publish_night", fail), pytest.raises(UnavailableError):
        local_nights.run(restart=True)
    assert local_nights.ids() == {DATE: ["a"]}
    assert len(list_unfinished(local_nights.tables)) == 1
    local_nights.run()
    assert local_nights.ids() == {DATE: ["a", "b"]}
    assert list_unfinished(local_nights.tables) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "replaced"])
def test_a_published_night_that_has_lost_a_file_is_not_reported_as_done(damage: str, local_nights: FakeNights) -> None:
    """The error names the file and --restart, which puts the night right."""
    local_nights.write("a.jsonl", make_rows("a"))
    report = local_nights.run()
    [key] = local_nights.out.list(f"predictions/{report.run}")
    local_nights.out.delete_many([key])
    if damage == "replaced":
        local_nights.out.write(key, b"another file")
    with pytest.raises(UserError, match=rf"{key} (is missing|has 12 bytes).*--restart"):
        local_nights.run()
    local_nights.run(restart=True)
    assert local_nights.ids() == {DATE: ["a"]}


@pytest.mark.slow
@pytest.mark.parametrize("incremental", [False, True])
def test_a_rerun_after_midnight_names_the_unfinished_night(
    incremental: bool, local_nights: FakeNights, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line tells how to resume it; a night with a date of its own, or after the resumption, says nothing."""
    leave_unfinished(local_nights, incremental=incremental)
    local_nights.run(NEXT)
    assert caplog.messages == []
    local_nights.run(None)
    [line] = caplog.messages
    assert f"run {DATE}-tiny-000001 is unfinished" in line
    assert line.endswith(f"--date {DATE}{' --incremental' if incremental else ''}")
    caplog.clear()
    local_nights.run(DATE, incremental=incremental, restart=incremental)
    local_nights.run(None, restart=True)
    assert caplog.messages == []


def test_a_run_that_was_given_up_is_not_named_after_midnight(
    local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    """It can no longer be resumed."""
    leave_unfinished(local_nights)
    abandon_run(local_nights.out, f"{DATE}-tiny-000001")
    local_nights.run(None)
    assert caplog.messages == []


def test_a_run_whose_list_of_files_was_changed_is_not_resumed(local_nights: FakeNights) -> None:
    """Its documents might be those of other files."""
    leave_unfinished(local_nights)
    [key] = [key for key in local_nights.out.list(f"_runs/{DATE}-tiny-000001") if "/files-" in key]
    local_nights.out.write(key, to_parquet(pa.table({})))
    with pytest.raises(UserError, match=f"{key} is missing or damaged; start over with --restart"):
        local_nights.run()


def test_a_run_that_has_lost_its_plan_is_not_resumed(local_nights: FakeNights) -> None:
    """What is left of it may be of other files or settings, so a new run begins."""
    leave_unfinished(local_nights)
    local_nights.out.delete_many([f"_runs/{DATE}-tiny-000001/plan.json"])
    assert local_nights.run().run == f"{DATE}-tiny-000002"


def test_a_published_night_that_has_lost_its_plan_is_done_again_only_on_request(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    report = local_nights.run()
    local_nights.out.delete_many([f"_runs/{report.run}/plan.json"])
    with pytest.raises(UserError, match="holds no plan.*classify it again with --restart"):
        local_nights.run()
    assert [night.run for night in list_nights(local_nights.tables)] == [report.run]


@pytest.mark.parametrize(
    ("target", "step", "message"),
    [
        (finish, "show_newest_report", "the night is published, but its reports could not be written"),
        (night_driver, "delete_work", "worked with could not be deleted; a vacuum does it"),
    ],
)
def test_a_night_is_published_though_the_store_is_away_for_what_follows(
    target: Any, step: str, message: str, local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    """Reports and what is deleted are not part of the night."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(target, step, fail):
        local_nights.run()
    assert local_nights.ids() == {DATE: ["a"]}
    assert message in caplog.text


def test_a_report_of_another_version_is_no_night_to_compare_with(local_nights: FakeNights) -> None:
    """The night is published without a comparison."""
    local_nights.write("a.jsonl", make_rows("a"))
    report = local_nights.run(DATE)
    local_nights.out.write_json(f"_runs/{report.run}/report.json", {"date": DATE})
    assert local_nights.run(NEXT).before is None


@pytest.mark.slow
def test_a_night_is_compared_with_the_one_before_it_of_the_same_model(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))
    assert local_nights.run(DATE).before is None
    assert local_nights.run(NEXT, registry=FakeRegistry("other")).before is None
    earlier = local_nights.run(LAST).before
    assert earlier is not None
    assert (earlier.date, earlier.counts.rows) == (DATE, 1)
    assert local_nights.run("2026-02-27").before is None, "the night that is made up for has only later ones"


def test_the_report_at_the_top_is_that_of_the_newest_night(local_nights: FakeNights) -> None:
    """A date that is made up for later does not replace it."""
    local_nights.write("a.jsonl", make_rows("a"))
    local_nights.run(NEXT)
    local_nights.run(DATE)
    assert local_nights.out.read_json("report.json")["date"] == NEXT
    assert NEXT.encode() in (local_nights.out.read("report.html") or b"")


@pytest.mark.slow
def test_a_power_cut_after_a_night_loses_nothing(local_nights: FakeNights) -> None:
    """Also where the tables have checkpoints. What was not flushed is empty then."""
    local_nights.write("a.jsonl", make_rows("a"))
    with recording_flushes() as flushed:
        for day in range(1, 8):
            local_nights.run(f"2026-03-{day:02d}")
    assert any("checkpoint.parquet" in key for key in local_nights.out.list(PREDICTIONS))
    assert cut_power(Path(local_nights.output), flushed) == []
    local_nights.run("2026-03-08")
    assert sorted(local_nights.ids()) == [f"2026-03-{day:02d}" for day in range(1, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("left", [b"", b"PAR1 a page that was written back", bytes(4096), None])
def test_a_power_cut_during_a_checkpoint_keeps_the_output_in_use(
    left: bytes | None, local_nights: FakeNights, caplog: pytest.LogCaptureFixture
) -> None:
    """The commits are there; a damaged checkpoint is deleted with a line in the log, and a hint at none."""
    local_nights.write("a.jsonl", make_rows("a"))
    for day in range(1, 8):
        local_nights.run(f"2026-03-{day:02d}")
    checkpoints = list(Path(local_nights.output).rglob("*.checkpoint.parquet"))
    assert checkpoints
    for checkpoint in checkpoints:
        checkpoint.unlink() if left is None else checkpoint.write_bytes(left)
    local_nights.run("2026-03-08")
    assert sorted(local_nights.ids()) == [f"2026-03-{day:02d}" for day in range(1, 9)]
    assert "deleting checkpoints that a power cut has left" in caplog.text


# Drivers that overtake each other


@pytest.mark.slow
@pytest.mark.parametrize("restart", [False, True], ids=["resume", "restart"])
@pytest.mark.parametrize(
    ("store_uri", "waking"),
    [
        *(("folder", waking) for waking in WAKING),
        *(pytest.param("s3", waking, marks=pytest.mark.s3) for waking in PUBLISHING),
    ],
    indirect=["store_uri"],
)
def test_a_driver_that_wakes_after_another_has_published_changes_nothing(
    waking: str, restart: bool, nights: FakeNights
) -> None:
    """It is suspended at any step, its lease expires, and another driver does the night. It leaves with status 3.

    If it was to publish the very run that the other one has published, it finds that done. On S3 it is suspended before
    its commits, which are what protects the tables.
    """
    nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(9)), "a0"))
    state: list[Any] = []

    def overtake() -> None:
        nights.expire_lease()
        nights.run(restart=restart)
        state.append(describe_tables(nights))

    with before_call(*WAKING[waking], overtake):
        if waking == "before it claims" or (waking in PUBLISHING and not restart):
            with suppress(HeldError):
                nights.run()
        else:
            with pytest.raises(HeldError) as error:
                nights.run()
            assert error.value.status == 3
    assert nights.ids() == {DATE: [f"a{n}" for n in range(9)]}
    assert [describe_tables(nights)] == state
    nights.expire_lease()
    nights.run()
    assert [describe_tables(nights)] == state


def describe_tables(nights: FakeNights) -> Any:
    """What readers see of an output: the files of all tables with their content, and the reports."""
    files = {
        table: [(file, nights.tables.store(table).read(file.path)) for file in nights.tables.open(table).files({})]
        for table in (PREDICTIONS, DEAD_LETTERS, INPUTS)
    }
    return files, nights.out.read("report.json")


@pytest.mark.slow
def test_a_driver_that_wakes_after_its_date_was_restarted_twice_changes_nothing(local_nights: FakeNights) -> None:
    local_nights.write("a.jsonl", make_rows("a"))

    def overtake() -> None:
        for _ in range(2):
            local_nights.expire_lease()
            local_nights.run(restart=True)
        local_nights.write("b.jsonl", make_rows("b"))
        local_nights.expire_lease()
        local_nights.run(NEXT, incremental=True)

    with before_call(FakeStep, "_find_dead", overtake), pytest.raises(HeldError):
        local_nights.run()
    assert local_nights.ids() == {DATE: ["a"], NEXT: ["b"]}


WAITING_DRIVER = """
import sys
import pytest
from pipelines.nightly import classify
from pipelines.service_errors import HeldError
from pipelines.storage.lease import Lease
from tests.support.fake_nights import FakeNights, FakeStep, before_call, use_fake_step

def wait():
    print("waiting", flush=True)
    sys.stdin.readline()

with pytest.MonkeyPatch.context() as patch, before_call(FakeStep, "_find_dead", wait):
    use_fake_step(patch)
    lease_model = classify.lease_model
    patch.setattr(classify, "lease_model", lambda out, model: Lease(lease_model(out, model).store, ttl=2))
    try:
        FakeNights(sys.argv[1]).run()
    except HeldError as error:
        print(error, flush=True)
        sys.exit(error.status)
"""


@pytest.mark.slow
def test_a_driver_that_is_stopped_for_longer_than_its_lease_publishes_nothing(nights: FakeNights) -> None:
    """As long as it runs, another one is refused, and the error names it. Then it is stopped, and wakes afterwards."""
    nights.write("a.jsonl", make_rows("a", "b"))
    first = subprocess.Popen(
        [sys.executable, "-c", WAITING_DRIVER, nights.store.uri],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "waiting\n"
        with pytest.raises(HeldError, match=f"process {first.pid}"):
            nights.run()
        first.send_signal(signal.SIGSTOP)
        nights.run()
        state = describe_tables(nights)
        first.send_signal(signal.SIGCONT)
        output, _ = first.communicate("on\n", timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 3
    assert "is held by" in output
    assert describe_tables(nights) == state
    assert nights.ids() == {DATE: ["a", "b"]}


@pytest.mark.slow
def test_two_models_work_in_an_output_at_the_same_time(local_nights: FakeNights) -> None:
    """Each has its own lease and claim."""
    local_nights.write("a.jsonl", make_rows("a"))
    with before_call(FakeStep, "_find_dead", lambda: local_nights.run(registry=FakeRegistry("other"))):
        local_nights.run()
    assert local_nights.ids() == local_nights.ids("other") == {DATE: ["a"]}


def test_a_second_driver_is_refused_while_the_first_works(local_nights: FakeNights) -> None:
    """The error names the first one."""
    local_nights.write("a.jsonl", make_rows("a"))
    refused: list[str] = []

    def start_another() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "_outlive", lambda lease, number: lease._refuse(number))
            with pytest.raises(HeldError) as error:
                local_nights.run()
            refused.append(str(error.value))

    with before_call(FakeStep, "_find_dead", start_another):
        local_nights.run()
    assert f"process {os.getpid()}" in refused[0]
    assert local_nights.ids() == {DATE: ["a"]}


@pytest.mark.slow
def test_a_reader_sees_all_of_a_night_or_none(nights: FakeNights) -> None:
    """A reader that polls while a night is done again gets all rows of one run."""
    stop, readings = threading.Event(), []
    nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(10))))
    nights.run()

    def poll() -> None:
        while not stop.is_set():
            rows = read_predictions(nights.output)
            readings.append((len(rows), {row["model_version"] for row in rows}))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for version in ("2", "3"):
            nights.registry.champion = version
            nights.run(restart=True)
    finally:
        stop.set()
        reader.join()
    assert {count for count, _ in readings} == {10}
    assert max(len(versions) for _, versions in readings) == 1


# Counting and blame


def test_a_night_whose_counts_do_not_add_up_is_not_published(
    local_nights: FakeNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that loses a row makes the run fail before anything is recorded."""

    class RowLosingStep(FakeStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[Any]:
            result = super().__call__(shard, attempt)
            [(run, counts)] = result.counts.models.items()
            less = replace(counts, predicted=counts.predicted - 1)
            return replace(result, counts=replace(result.counts, models={run: less}))

    monkeypatch.setattr(classify_pass, "ClassifyStep", RowLosingStep)
    local_nights.write("a.jsonl", make_rows("a", "b"))
    with pytest.raises(SpinError, match="2 rows were planned, 2 read, 1 predicted or dead; nothing is published"):
        local_nights.run()
    assert list_nights(local_nights.tables) == []


def test_crashes_of_the_machine_are_not_blamed_on_a_document(tmp_path: Path) -> None:
    """A shard of one document crashes as often as a machine may, and once more, now seen to be at this document.

    One crash could be the machine's too: the document is computed, not a dead letter.
    """

    def crash(rows: list[int]) -> None:
        raise Crash

    shard_log = ShardLog(Store(str(tmp_path)))
    for _ in range(MAX_CRASHES):
        with pytest.raises(Crash), shard_log.attempt("000000"):
            raise Crash
    with pytest.raises(Crash), shard_log.attempt("000000") as attempt:
        isolate_failing_rows([0], crash, attempt)
    with shard_log.attempt("000000") as attempt:
        assert attempt.crashes == MAX_CRASHES + 1
        assert isolate_failing_rows([0], lambda rows: rows, attempt) == IsolatedRows([([0], [0])], {})


@pytest.mark.slow
def test_a_stalled_run_fails_and_names_the_shards_in_progress(tmp_path: Path) -> None:
    """Finished shards are returned before the stall limit passes."""
    store, settings = Store(str(tmp_path)), RaySettings(stall_seconds=0.5)
    work = ShardWork(FakeStep, (), ShardCounts, store, settings, stage="trial", claim=1)
    shard_log, never = work.open_log(), threading.Event()
    shard_log.commit("000000", StepResult({}, ShardCounts(rows=1)), tries=1, seconds=1.0, ended=0.0)
    for name in ("000000", "000001"):
        with shard_log.attempt(name):
            pass

    def answers() -> Iterator[str]:
        yield "000000"
        never.wait()

    limited = _within_stall_limit(answers(), work)
    assert next(limited) == "000000"
    try:
        with pytest.raises(StalledError, match=r"trial: no shard .* 0\.5 s .*begun and not ended: 000001 in"):
            next(limited)
    finally:
        never.set()
