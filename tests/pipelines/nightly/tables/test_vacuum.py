"""A vacuum deletes what nothing names, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipelines.nightly.tables.night_records import ABANDONED, Run, abandon_run, is_abandoned
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, PREDICTIONS, TABLES, NightTables, read_rows
from pipelines.nightly.tables.publication import publish_night, restore_night
from pipelines.nightly.tables.vacuum import VacuumPlan, models_of, plan_vacuum, run_vacuum
from pipelines.service_errors import HeldError
from pipelines.storage.delta_table import TableSnapshot
from pipelines.storage.object_store import Store
from spin.errors import UserError
from tests.support.fake_nights import before_call
from tests.support.nights import MODEL, claim_model, list_unfinished, published_ids, run_night, write_night

AGE = timedelta(hours=24)


def vacuum(tables: NightTables, *, later: timedelta = timedelta(), age: timedelta = AGE) -> VacuumPlan:
    """Vacuum as if the clock were `later`."""
    claims = {model: claim_model(tables, model) for model in models_of(tables)}
    plan = plan_vacuum(tables, now=datetime.now(UTC) + later, age=age)
    run_vacuum(tables, plan, claims)
    return plan


def keys_of(tables: NightTables, run: str) -> set[str]:
    return {item.key for item in tables.out.list_objects() if f"/{run}/" in item.key}


def named_keys(night: Run) -> set[str]:
    records = {f"_runs/{night.name}/run.json", f"_runs/{night.name}/night.json"}
    return records | {f"{table}/{file.path}" for table, files in night.files.items() for file in files}


def test_published_nights_keep_their_files_and_lose_what_they_worked_with(tables: NightTables) -> None:
    night = run_night(tables.out, ["a", "b"], dead=["d"])
    tables.out.write(f"_runs/{night.name}/report.json", b"{}")
    for key in (f"_runs/{night.name}/parts/000000.json", f"predictions/{night.name}/000000-000001-2.parquet"):
        tables.out.write(key, b"x")
    log = tables.out.list("predictions/_delta_log")
    assert vacuum(tables).delete == (), "nothing is old enough"
    plan = vacuum(tables, later=timedelta(hours=25))
    assert len(plan.delete) == plan.bytes == 2
    assert keys_of(tables, night.name) == named_keys(night) | {f"_runs/{night.name}/report.json"}
    assert set(log) <= set(tables.out.list("predictions/_delta_log"))
    assert published_ids(tables) == {("2026-03-01", MODEL): ["a", "b"]}


def test_files_of_killed_writes_are_deleted_when_they_are_old(local_tables: NightTables) -> None:
    """They may hold texts and ids, and no listing of objects shows them."""
    night = run_night(local_tables.out, ["a"])
    folders = (f"_runs/{night.name}", f"_runs/{night.name}/spool", f"predictions/{night.name}")
    left = {f"{folder}/.part.parquet.{'0' * 32}" for folder in folders} | {f".report.json.{'0' * 32}"}
    for key in left:
        local_tables.out.write(key, b"a text")
    assert vacuum(local_tables).delete == ()
    assert set(vacuum(local_tables, later=timedelta(hours=25)).delete) == left
    assert published_ids(local_tables) == {("2026-03-01", MODEL): ["a"]}


def test_a_vacuum_that_slept_gives_up_no_run_that_goes_on(local_tables: NightTables) -> None:
    """A driver resumes an old run between the plan of the vacuum and its first mark."""
    night = write_night(local_tables, claim_model(local_tables), ["a"])
    claims = {MODEL: claim_model(local_tables)}
    plan = plan_vacuum(local_tables, now=datetime.now(UTC) + 2 * AGE, age=AGE)
    assert plan.abandon == (night.name,)
    claim_model(local_tables)
    with pytest.raises(HeldError):
        run_vacuum(local_tables, plan, claims)
    assert not is_abandoned(local_tables.out, night.name)


def test_a_replaced_run_can_be_restored_until_it_is_old(tables: NightTables) -> None:
    """Its age counts from the moment at which it was replaced."""
    first = run_night(tables.out, ["a"], dead=["d"])
    second = run_night(tables.out, ["b"]).name
    assert vacuum(tables, later=timedelta(hours=23)).delete == ()
    restore_night(tables, first.name, claim=claim_model(tables))
    assert published_ids(tables) == {("2026-03-01", MODEL): ["a"]}
    plan = vacuum(tables, later=timedelta(hours=25))
    assert plan.abandon == (second,)
    assert keys_of(tables, second) == {f"_runs/{second}/{name}" for name in ("run.json", ABANDONED)}
    assert keys_of(tables, first.name) == named_keys(first)
    with pytest.raises(UserError, match="given up|no run"):
        restore_night(tables, second, claim=claim_model(tables))
    assert read_rows(tables.open(DEAD_LETTERS), {})["id"].to_pylist() == ["d"]


def test_an_unfinished_run_is_given_up_only_when_it_is_old(tables: NightTables) -> None:
    run_night(tables.out, ["a"])
    token = claim_model(tables)
    night = write_night(tables, token, ["b"], date="2026-03-02")
    assert vacuum(tables, later=timedelta(hours=23)) == VacuumPlan((), (), 0)
    assert keys_of(tables, night.name) == named_keys(night)
    plan = vacuum(tables, later=timedelta(hours=25))
    assert plan.abandon == (night.name,)
    assert is_abandoned(tables.out, night.name)
    assert [run.name for run in list_unfinished(tables)] == [night.name]
    with pytest.raises(UserError, match="given up"):
        publish_night(tables, night, claim=claim_model(tables))
    assert vacuum(tables, later=timedelta(hours=60)) == VacuumPlan((), (), 0)


def test_side_rows_of_a_run_that_is_given_up_go_before_its_files(
    local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = claim_model(local_tables)
    night = write_night(local_tables, token, ["b"], dead=["d"])
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.nightly.tables.publication._commit_predictions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish_night(local_tables, night, claim=token)
    assert read_rows(local_tables.open(DEAD_LETTERS), {}).num_rows == 1
    vacuum(local_tables, later=timedelta(hours=25))
    assert read_rows(local_tables.open(DEAD_LETTERS), {}).num_rows == 0


def test_files_of_unknown_runs_are_deleted_when_they_are_old(local_tables: NightTables) -> None:
    run_night(local_tables.out, ["a"])
    stray = "predictions/2026-03-09-topics-000009/000000-000009-1.parquet"
    for key in (stray, "predictions/other/x", "_runs/other/x", "notes.txt"):
        local_tables.out.write(key, b"x")
    assert vacuum(local_tables).delete == ()
    assert vacuum(local_tables, later=timedelta(hours=25)).delete == (stray,)


def test_a_lost_record_does_not_make_a_published_night_garbage(local_tables: NightTables) -> None:
    night = run_night(local_tables.out, ["a"], dead=["d"])
    local_tables.out.delete_many(local_tables.out.list(f"_runs/{night.name}"))
    assert vacuum(local_tables, later=timedelta(days=99)) == VacuumPlan((), (), 0)
    assert published_ids(local_tables) == {("2026-03-01", MODEL): ["a"]}


def test_a_driver_that_claims_its_model_meanwhile_stops_the_vacuum(local_tables: NightTables) -> None:
    """Its run may be marked as given up, which its publication then reports, but no file of it is deleted."""
    night = write_night(local_tables, claim_model(local_tables), ["b"])
    claims = {model: claim_model(local_tables, model) for model in models_of(local_tables)}
    plan = plan_vacuum(local_tables, now=datetime.now(UTC) + timedelta(hours=25), age=AGE)
    assert plan.delete
    claim_model(local_tables)
    with pytest.raises(HeldError):
        run_vacuum(local_tables, plan, claims)
    assert keys_of(local_tables, night.name) >= named_keys(night)


def test_a_claim_after_runs_were_given_up_stops_the_vacuum_before_it_deletes(
    local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = write_night(local_tables, claim_model(local_tables), ["b"])

    def abandon_and_claim(out: Store, run: str) -> None:
        abandon_run(out, run)
        claim_model(local_tables)

    monkeypatch.setattr("pipelines.nightly.tables.vacuum.abandon_run", abandon_and_claim)
    with pytest.raises(HeldError):
        vacuum(local_tables, later=timedelta(hours=25))
    assert keys_of(local_tables, night.name) >= named_keys(night)


def test_a_driver_that_wakes_after_a_vacuum_names_no_deleted_file(tables: NightTables) -> None:
    """It has opened a side table before its run was given up, and commits to it when the files are gone."""
    token = claim_model(tables)
    night = write_night(tables, token, ["a"], dead=["d"])

    def give_up() -> None:
        assert vacuum(tables, later=timedelta(hours=48)).abandon == (night.name,)

    with before_call(TableSnapshot, "replace_partition", give_up), pytest.raises(HeldError):
        publish_night(tables, night, claim=token)
    assert [tables.open(table).file_table.num_rows for table in TABLES] == [0] * len(TABLES)


def test_a_vacuum_that_was_cut_off_is_finished_by_the_next(
    local_tables: NightTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = write_night(local_tables, claim_model(local_tables), ["b"])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_many", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vacuum(local_tables, later=timedelta(hours=25))
    vacuum(local_tables)
    assert keys_of(local_tables, night.name) == {f"_runs/{night.name}/{name}" for name in ("run.json", ABANDONED)}


def test_an_age_below_a_day_is_refused(local_tables: NightTables) -> None:
    run_night(local_tables.out, ["a"])
    with pytest.raises(UserError, match="too short"):
        plan_vacuum(local_tables, now=datetime.now(UTC), age=timedelta(hours=23))
    assert published_ids(local_tables)
    assert local_tables.open(PREDICTIONS).version == 2


def test_a_model_whose_records_are_lost_is_claimed_too(local_tables: NightTables) -> None:
    """Without its lease and claim, a vacuum would work next to a night of the model."""
    night = run_night(local_tables.out, ["a"])
    local_tables.out.delete_many(local_tables.out.list(f"_runs/{night.name}"))
    assert models_of(local_tables) == [MODEL]
