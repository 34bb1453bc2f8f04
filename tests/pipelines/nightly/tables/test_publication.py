"""A night is published by one commit, and only while the claim of its driver is the model's last one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.intake import FileOutcome
from pipelines.nightly.tables.night_history import (
    FileState,
    find_newest_night,
    list_nights,
    read_predictions,
    recorded_files,
)
from pipelines.nightly.tables.night_records import (
    Run,
    abandon_run,
    begin_run,
    find_night,
    finish_run,
    lease_model,
    list_runs,
    run_name,
)
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    INPUTS,
    PREDICTIONS,
    TABLES,
    TAKEN,
    NightTables,
    PublishedRun,
    check_kept_columns,
    partitions,
    read_rows,
    table_schema,
)
from pipelines.nightly.tables.publication import (
    claim_nights,
    publish_night,
    remove_replaced_rows,
    require_claim,
    restore_night,
    write_inputs,
)
from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage.delta_table import StaleSnapshotError, TableSnapshot
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.support.leases import expire_lease
from tests.support.nights import (
    DATE,
    MODEL,
    claim_model,
    list_unfinished,
    published_ids,
    run_night,
    write_file,
    write_night,
)

NEXT = "2026-03-02"
IDS = ["a1", "a2", "a3"]


def publish(tables: NightTables, night: Run, token: int, **options: Any) -> None:
    publish_night(tables, night, claim=token, **options)


def side_runs(tables: NightTables, table: str) -> set[str]:
    """The runs that have rows in a side table."""
    return {partition["run"] for partition in partitions(tables.open(table))}


def visible(tables: NightTables) -> dict[str, list[dict[str, Any]]]:
    """What a reader of each table sees."""
    return {table: tables.open(table).file_table.sort_by("path").to_pylist() for table in TABLES}


def test_the_newest_night_is_that_of_the_last_date() -> None:
    """Of the nights of several models on that date, it is the one that was committed last."""
    old, newest, other = (
        PublishedRun(date, model, f"{date}-{model}-000001", rows=1, committed=committed)
        for date, model, committed in ((DATE, "a", 9.0), (NEXT, "b", 8.0), (NEXT, "c", 7.0))
    )
    assert find_newest_night([old, newest, other]) == find_newest_night([other, newest, old]) == newest
    assert find_newest_night([old, newest, other], model="c") == other
    assert find_newest_night([old, newest, other], model="none") is None


def test_a_night_is_readable_after_its_commit(tables: NightTables) -> None:
    night = run_night(tables.out, IDS, dead=["d1"], inputs=[FileState("a.jsonl", 7, "v1")])
    assert published_ids(tables) == {(DATE, MODEL): IDS}
    [published] = list_nights(tables)
    run = f"{DATE}-{MODEL}-000001"
    assert (published.date, published.model, published.run, published.rows) == (DATE, MODEL, run, 3)
    partition = {"date": DATE, "model": MODEL, "run": night.name}
    assert read_rows(tables.open(DEAD_LETTERS), partition)["id"].to_pylist() == ["d1"]
    [row] = read_rows(tables.open(INPUTS), partition).to_pylist()
    assert (row["uri"], row["size"], row["version"], row["status"], row["reason"]) == ("a.jsonl", 7, "v1", TAKEN, None)
    assert list_unfinished(tables) == []


def test_predictions_are_read_as_records(local_tables: NightTables) -> None:
    run_night(local_tables.out, ["old"])
    run_night(local_tables.out, IDS, date=NEXT)
    rows = read_predictions(local_tables.out.uri)
    assert [row["id"] for row in rows] == IDS
    assert rows[0] == {
        "id": "a1",
        "label": "good",
        "labels": None,
        "score": 0.75,
        "scores": {"good": 0.75, "bad": 0.25},
        "depth": 3,
        "model_version": "7",
    }
    assert [row["id"] for row in read_predictions(local_tables.out.uri, 2)] == IDS[:2]
    with pytest.raises(UserError, match="no finished night"):
        read_predictions(local_tables.out.uri, model="other")


def test_a_redone_night_replaces_its_rows_in_all_tables(tables: NightTables) -> None:
    """One commit replaces the night; other dates and models stay."""
    run_night(tables.out, ["other date"], date=NEXT)
    run_night(tables.out, ["other model"], model="it's another/model")
    first = run_night(tables.out, IDS, dead=["d1"])
    second = run_night(tables.out, ["b1"], dead=["d2"])
    assert published_ids(tables) == {
        (DATE, MODEL): ["b1"],
        (NEXT, MODEL): ["other date"],
        (DATE, "it's another/model"): ["other model"],
    }
    assert first.name != second.name
    assert first.name not in side_runs(tables, DEAD_LETTERS) | side_runs(tables, INPUTS)
    assert second.name in side_runs(tables, DEAD_LETTERS) & side_runs(tables, INPUTS)
    assert len(side_runs(tables, INPUTS)) == 3


def test_an_empty_night_has_a_run_and_its_inputs(tables: NightTables) -> None:
    night = run_night(tables.out, [], inputs=[])
    [published] = list_nights(tables)
    assert (published.run, published.rows) == (night.name, 0)
    assert side_runs(tables, INPUTS) == {night.name}


def test_a_run_without_any_file_is_not_published(local_tables: NightTables) -> None:
    token = claim_model(local_tables)
    run = begin_run(local_tables.out, date=DATE, model=MODEL, model_version="7", claim=token)
    night = finish_run(local_tables.out, run, {})
    with pytest.raises(ValueError, match="no file of predictions"):
        publish(local_tables, night, token)


def test_publishing_twice_changes_nothing(tables: NightTables) -> None:
    """A driver whose answer was lost, and one that resumes a published run, are done."""
    token = claim_model(tables)
    night = write_night(tables, token, IDS, dead=["d1"])
    publish(tables, night, token)
    before = visible(tables)
    publish(tables, night, token)
    publish(tables, night, claim_model(tables))
    assert visible(tables) == before


def test_claims_only_grow_and_fence_out_earlier_ones(tables: NightTables) -> None:
    first, other = claim_model(tables), claim_model(tables, "other")
    night = write_night(tables, first, IDS)
    assert (first, other, claim_model(tables)) == (1, 1, 2)
    require_claim(tables, "other", other)
    with pytest.raises(HeldError, match=r"claim 2, this run has 1\)"):
        require_claim(tables, MODEL, first)
    before = visible(tables)
    with pytest.raises(HeldError):
        publish(tables, night, first)
    assert visible(tables) == before


def test_a_successor_publishes_the_run_of_its_predecessor(tables: NightTables) -> None:
    """The record of the run holds its files, so nothing is computed again."""
    write_night(tables, claim_model(tables), IDS, dead=["d1"])
    token = claim_model(tables)
    [run] = list_unfinished(tables)
    night = find_night(tables.out, run.name)
    assert night is not None
    publish(tables, night, token)
    assert published_ids(tables) == {(DATE, MODEL): IDS}
    assert side_runs(tables, DEAD_LETTERS) == {run.name}


def claim_and_publish(uri: str, model: str, dates: Sequence[str]) -> None:
    """Publish a night of each date, each under a claim of its own."""
    out = Store(uri)
    for date in dates:
        run_night(out, [f"{model}-{date}"], model=model, date=date)


@pytest.mark.slow
def test_models_publish_at_the_same_time(store_uri: str) -> None:
    """Three processes publish four nights each into one output; every night is there once."""
    dates = [f"2026-03-0{day}" for day in range(1, 5)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=claim_and_publish, args=(store_uri, model, dates)) for model in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    tables = NightTables(Store(store_uri))
    assert published_ids(tables) == {(date, model): [f"{model}-{date}"] for date in dates for model in "abc"}
    assert len(side_runs(tables, INPUTS)) == 12


STEPS: dict[str, tuple[type, str]] = {
    "a commit": (TableSnapshot, "_commit"),
    "opening a table": (NightTables, "find"),
    "a listing": (Store, "list_objects"),
}
"""points at which a driver that publishes may be suspended"""


def suspend_at(
    monkeypatch: pytest.MonkeyPatch, step: tuple[type, str], number: int, meanwhile: Callable[[], None]
) -> list[int]:
    """Call a function before the n-th time that a step is taken; the returned list counts the steps of this driver."""
    kind, name = step
    original, steps, waiting = getattr(kind, name), [0], [True]

    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        if waiting[0]:
            if steps[0] == number:
                waiting[0] = False
                meanwhile()
            else:
                steps[0] += 1
        return original(self, *args, **options)

    monkeypatch.setattr(kind, name, wrapper)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("resumes", [False, True], ids=["a new run", "the same run"])
@pytest.mark.parametrize("step", STEPS)
def test_a_driver_that_wakes_after_its_successor_changes_nothing(
    step: str, resumes: bool, local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is suspended before each step of publishing; meanwhile a successor claims the model and publishes.

    Whether it then ends with HeldError or finds its run published, every reader sees what the successor left, also in
    tables for which the successor has no rows.
    """
    number, suspended = 0, True
    while suspended:
        date = f"2026-{3 + number // 28:02d}-{1 + number % 28:02d}"
        token = claim_model(local_tables)
        night = write_night(local_tables, token, [f"{number}-mine"], date=date, dead=["d"])
        seen: list[dict[str, list[dict[str, Any]]]] = []

        def succeed(
            night: Run = night,
            date: str = date,
            number: int = number,
            seen: list[dict[str, list[dict[str, Any]]]] = seen,
        ) -> None:
            successor = claim_model(local_tables)
            if not resumes:
                night = write_night(local_tables, successor, [f"{number}-theirs"], date=date)
            publish(local_tables, night, successor)
            seen.append(visible(local_tables))

        with monkeypatch.context() as patch:
            suspend_at(patch, STEPS[step], number, succeed)
            try:
                publish(local_tables, night, token)
            except HeldError:
                assert seen
        suspended = bool(seen)
        if suspended:
            assert visible(local_tables) == seen[0]
            expected = "mine" if resumes else "theirs"
            assert published_ids(local_tables)[date, MODEL] == [f"{number}-{expected}"]
        number += 1
    assert number > 3, "it was suspended at several steps"


def test_a_command_that_was_overtaken_makes_no_claim(local_tables: NightTables) -> None:
    """It was cut off from the store between its lease and its claim, for longer than the lease lasts."""
    with lease_model(local_tables.out, MODEL) as stale:
        expire_lease(stale.store)
        with lease_model(local_tables.out, MODEL) as successor:
            claim = claim_nights(local_tables, MODEL, successor)
            with pytest.raises(HeldError):
                claim_nights(local_tables, MODEL, stale)
    require_claim(local_tables, MODEL, claim)


def test_a_commit_of_another_model_is_no_reason_to_stop(
    local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of the claim and the commit another model publishes: the commit is tried again."""
    token = claim_model(local_tables)
    night = write_night(local_tables, token, IDS)
    with monkeypatch.context() as patch:
        suspend_at(patch, STEPS["a commit"], 1, lambda: void(run_night(local_tables.out, ["x"], model="other")))
        publish(local_tables, night, token)
    assert published_ids(local_tables) == {(DATE, MODEL): IDS, (DATE, "other"): ["x"]}


def void(_: object) -> None:
    """Return nothing."""


def test_a_table_that_others_commit_to_all_the_time_is_unavailable(
    local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = NightTables(Store(local_tables.out.uri, retry_seconds=0.3))
    token = claim_model(hurried)
    night = write_night(hurried, token, IDS)

    def refuse(*_: object, **__: object) -> int:
        raise StaleSnapshotError("refused")

    monkeypatch.setattr(TableSnapshot, "_commit", refuse)
    with pytest.raises(UnavailableError):
        publish(hurried, night, token)
    with pytest.raises(UnavailableError):
        claim_model(hurried, MODEL)


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize("table", [PREDICTIONS, DEAD_LETTERS, INPUTS])
def test_a_run_that_lost_a_file_is_not_published(damage: str, table: str, local_tables: NightTables) -> None:
    """No table names it, and the message names the file and what to do."""
    token = claim_model(local_tables)
    night = write_night(local_tables, token, IDS, dead=["d"])
    store, path = local_tables.store(table), night.files[table][-1].path
    before = visible(local_tables)
    if damage == "missing":
        store.delete_many([path])
    else:
        store.write(path, (store.read(path) or b"")[:-1])
    with pytest.raises(UserError, match=f"{path}.*--restart"):
        publish(local_tables, night, token)
    assert visible(local_tables) == before


def test_the_first_record_of_a_run_wins(local_tables: NightTables) -> None:
    token = claim_model(local_tables)
    night = write_night(local_tables, token, IDS)
    [run] = list_runs(local_tables.out)
    other = write_file(local_tables, PREDICTIONS, run, "000009-000002-1.parquet", [])
    assert finish_run(local_tables.out, run, {PREDICTIONS: [other]}) == night
    with pytest.raises(ValueError, match="cannot publish"):
        finish_run(local_tables.out, run, {PREDICTIONS: [night.files[INPUTS][0]], "x": []})


def test_a_run_that_was_given_up_is_not_published(local_tables: NightTables) -> None:
    token = claim_model(local_tables)
    night = write_night(local_tables, token, IDS)
    abandon_run(local_tables.out, night.name)
    with pytest.raises(UserError, match="given up"):
        publish(local_tables, night, token)


def test_a_night_is_restored_with_all_its_rows(tables: NightTables) -> None:
    files = [FileState("a.jsonl", 7, "v1")]
    first = run_night(tables.out, IDS, dead=["d1"], inputs=files)
    run_night(tables.out, ["b1"], dead=["d2"])
    other = run_night(tables.out, ["c1"], date=NEXT)
    restore_night(tables, first.name, claim=claim_model(tables))
    assert published_ids(tables) == {(DATE, MODEL): IDS, (NEXT, MODEL): ["c1"]}
    assert side_runs(tables, DEAD_LETTERS) == {first.name}
    assert side_runs(tables, INPUTS) == {first.name, other.name}
    assert recorded_files(tables, model=MODEL, date=NEXT, files=files) == set(files)


def test_what_was_never_published_is_not_restored(local_tables: NightTables) -> None:
    token = claim_model(local_tables)
    night = write_night(local_tables, token, IDS)
    for run in (night.name, "2026-03-01-none-000009"):
        with pytest.raises(UserError, match="no run"):
            restore_night(local_tables, run, claim=token)
    assert published_ids(local_tables) == {}


def test_a_night_that_lost_a_file_is_not_restored(local_tables: NightTables) -> None:
    first = run_night(local_tables.out, IDS)
    run_night(local_tables.out, ["b1"])
    local_tables.store(PREDICTIONS).delete_many([first.files[PREDICTIONS][0].path])
    with pytest.raises(UserError, match="is missing"):
        restore_night(local_tables, first.name, claim=claim_model(local_tables))
    assert published_ids(local_tables) == {(DATE, MODEL): ["b1"]}


@pytest.mark.slow
def test_an_incremental_night_is_not_restored_next_to_a_night_that_has_taken_its_files(
    local_tables: NightTables,
) -> None:
    """Its rows would be in two nights. A night of all of the input may share files with others, and is restored."""
    files = [FileState("a.jsonl", 7, "v1"), FileState("b.jsonl", 7, "v1")]
    first = run_night(local_tables.out, IDS, inputs=files, incremental=True)
    run_night(local_tables.out, ["b1"], incremental=True)
    second = run_night(local_tables.out, ["c1"], date=NEXT, inputs=files[:1], incremental=True)
    with pytest.raises(UserError, match=r"have taken 1 of its 2 files, such as a\.jsonl"):
        restore_night(local_tables, first.name, claim=claim_model(local_tables))
    assert published_ids(local_tables) == {(DATE, MODEL): ["b1"], (NEXT, MODEL): ["c1"]}
    whole = run_night(local_tables.out, ["d1"], date=NEXT, inputs=files)
    restore_night(local_tables, second.name, claim=claim_model(local_tables))
    restore_night(local_tables, whole.name, claim=claim_model(local_tables))
    run_night(local_tables.out, ["e1"], date=NEXT, incremental=True)
    restore_night(local_tables, first.name, claim=claim_model(local_tables))
    assert published_ids(local_tables) == {(DATE, MODEL): IDS, (NEXT, MODEL): ["e1"]}


def test_rows_of_unfinished_runs_come_back_when_they_are_published(local_tables: NightTables) -> None:
    """A later night removes the side rows of a run that died before its commit; its resume puts them back."""
    died = claim_model(local_tables)
    unfinished = write_night(local_tables, died, IDS, dead=["d1"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.nightly.tables.publication._commit_predictions", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(local_tables, unfinished, died)
    assert side_runs(local_tables, DEAD_LETTERS) == {unfinished.name}
    run_night(local_tables.out, ["x"], date=NEXT)
    assert side_runs(local_tables, DEAD_LETTERS) == set()
    publish(local_tables, unfinished, claim_model(local_tables))
    assert side_runs(local_tables, DEAD_LETTERS) == {unfinished.name}
    assert side_runs(local_tables, DISAGREEMENTS) == set()


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_rows_are_removed_only_under_the_last_claim(local_tables: NightTables) -> None:
    """A successor has committed its side rows, but not yet its night: its predecessor leaves them alone."""
    old = claim_model(local_tables)
    new = claim_model(local_tables)
    night = write_night(local_tables, new, IDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.nightly.tables.publication._commit_predictions", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(local_tables, night, new)
    with pytest.raises(HeldError):
        remove_replaced_rows(local_tables, MODEL, old)
    assert side_runs(local_tables, INPUTS) == {night.name}


@pytest.mark.slow
def test_files_count_as_taken_by_published_nights_of_other_dates(tables: NightTables) -> None:
    """Not by this date, another model, a replaced or an unfinished run; a quarantined or changed file is new."""
    files = {
        name: FileState(f"{name}.jsonl", 10, "v1") for name in ("first", "replaced", "same", "model", "unfinished")
    }
    quarantined, changed = FileState("bad.jsonl", 10, "v1"), FileState("first.jsonl", 10, "v2")
    run_night(tables.out, ["0"], date="2026-02-27", inputs=[files["replaced"]])
    run_night(tables.out, ["0"], date="2026-02-27", inputs=[])
    run_night(tables.out, ["1"], date="2026-02-28", inputs=[files["first"]])
    run_night(tables.out, ["2"], date=NEXT, inputs=[files["same"]])
    run_night(tables.out, ["3"], date="2026-02-28", model="other", inputs=[files["model"]])
    token = claim_model(tables)
    run = begin_run(tables.out, date="2026-02-26", model=MODEL, model_version="7", claim=token)
    file = FileOutcome(quarantined.uri, 10, "v1", 0, "no JSON")
    empty = write_file(tables, PREDICTIONS, run, f"000000-{token:06d}-1.parquet", [])
    record = {PREDICTIONS: [empty], INPUTS: [write_inputs(tables, run, token, [file])]}
    publish(tables, finish_run(tables.out, run, record), token)
    write_night(tables, claim_model(tables), ["4"], date="2026-02-25", inputs=[files["unfinished"]])
    asked = [*files.values(), quarantined, changed]
    assert recorded_files(tables, model=MODEL, date=NEXT, files=asked) == {files["first"]}
    assert recorded_files(tables, model="new", date=NEXT, files=asked) == set()
    assert recorded_files(tables, model=MODEL, date=DATE, files=asked) == {files["first"], files["same"]}


def test_missing_input_rows_do_not_pass_as_nothing_taken(local_tables: NightTables) -> None:
    night = run_night(local_tables.out, IDS, inputs=[FileState("a", 1, "v")])
    local_tables.open(INPUTS).remove_partitions([{"date": DATE, "model": MODEL, "run": night.name}])
    with pytest.raises(UserError, match=f"restore --run {night.name}"):
        recorded_files(local_tables, model=MODEL, date=NEXT, files=[FileState("a", 1, "v")])
    restore_night(local_tables, night.name, claim=claim_model(local_tables))
    assert recorded_files(local_tables, model=MODEL, date=NEXT, files=[FileState("a", 1, "v")])


def test_a_lost_file_of_input_rows_is_named_with_the_night_to_do_again(local_tables: NightTables) -> None:
    """That night can be done again, since its own rows are not asked for."""
    files = [FileState("a", 1, "v")]
    night = run_night(local_tables.out, IDS, inputs=files)
    local_tables.store(INPUTS).delete_many([night.files[INPUTS][0].path])
    with pytest.raises(UserError, match=f"run {night.name} has taken.*--date {DATE} --incremental --restart"):
        recorded_files(local_tables, model=MODEL, date=NEXT, files=files)
    assert recorded_files(local_tables, model=MODEL, date=DATE, files=files) == set()


def test_kept_columns_of_all_nights_are_read_together(tables: NightTables) -> None:
    """The schema is the union; a night without a column has nulls there, and no night makes the table narrower."""
    lang = pa.schema({"lang": pa.string()})
    priority = pa.schema({"priority": pa.int64(), "Tags": pa.list_(pa.string())})
    run_night(tables.out, ["a"], kept=lang, columns={"lang": "de"}, dead=["d"])
    run_night(tables.out, ["b"], date=NEXT, kept=priority, columns={"priority": 3, "Tags": ["x"]})
    run_night(tables.out, ["c"], date="2026-03-03")
    rows = read_rows(tables.open(PREDICTIONS), {})
    assert {row["id"]: (row["lang"], row["priority"], row["Tags"]) for row in rows.to_pylist()} == {
        "a": ("de", None, None),
        "b": (None, 3, ["x"]),
        "c": (None, None, None),
    }
    assert "lang" in tables.open(DEAD_LETTERS).schema.names


@pytest.mark.parametrize(
    "kept", [{"lang": pa.int64()}, {"Lang": pa.string()}, {"tags": pa.list_(pa.int32())}], ids=["type", "case", "list"]
)
def test_a_kept_column_keeps_its_type(kept: dict[str, pa.DataType], local_tables: NightTables) -> None:
    """The conflict is found while planning, and again in the commit, in case another model committed in between."""
    before = pa.schema({"lang": pa.string(), "tags": pa.list_(pa.int64())})
    run_night(local_tables.out, ["a"], kept=before)
    check_kept_columns(local_tables, before)
    with pytest.raises(UserError, match="a column keeps its type"):
        check_kept_columns(local_tables, pa.schema(kept))
    token = claim_model(local_tables)
    night = write_night(local_tables, token, ["b"], kept=pa.schema(kept))
    with pytest.raises(UserError, match="a column keeps its type"):
        publish(local_tables, night, token, kept=pa.schema(kept))
    assert published_ids(local_tables) == {(DATE, MODEL): ["a"]}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_types_with_which_it_was_made(table: str, local_tables: NightTables) -> None:
    """So the columns of a night are compared with them as they are."""
    kinds = ["string", "bool", "int8", "int64", "float32", "float64", "date", "timestamp", "decimal(10,2)"]
    kinds += ["list<string>", 'struct<"a": string, "b": list<struct<"c": int16>>>']
    kept = schema_of({f"k{number}": kind for number, kind in enumerate(kinds)})
    run_night(local_tables.out, ["a"], kept=kept, dead=["d"])
    stored = local_tables.open(table).schema
    assert {field.name: field.type for field in stored} == {f.name: f.type for f in table_schema(table, kept)}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("topics", "2026-03-01-topics-000012"),
        ("a.b-c_d", "2026-03-01-a.b-c_d-000012"),
        ("it's ü", "2026-03-01-it_s__-bf4cab-000012"),
    ],
)
def test_names_of_runs_need_no_escape(model: str, name: str) -> None:
    assert run_name(DATE, model, 12) == name


def test_models_whose_names_differ_in_escaped_characters_have_other_runs() -> None:
    assert run_name(DATE, "a b", 1) != run_name(DATE, "a/b", 1) != run_name(DATE, "a_b", 1)
