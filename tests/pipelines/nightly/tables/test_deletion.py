"""Nights are deleted in one commit, can be restored, and keep their input files taken."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest

from pipelines.nightly import nights
from pipelines.nightly.forget.forget_nights import forget_in_output
from pipelines.nightly.nights import list_output
from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.report.run_report import PAGE
from pipelines.nightly.tables import deletion, publication
from pipelines.nightly.tables.deletion import delete_nights, models_before
from pipelines.nightly.tables.night_history import FileState, recorded_files
from pipelines.nightly.tables.night_records import Run, begin_run, is_abandoned, lease_model
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, INPUTS, PREDICTIONS, NightTables, partitions, read_rows
from pipelines.nightly.tables.publication import claim_nights, restore_night
from pipelines.nightly.tables.resume import find_unfinished
from pipelines.nightly.tables.vacuum import models_of, plan_vacuum, run_vacuum
from pipelines.service_errors import HeldError
from spin.errors import UserError
from tests.support.fake_nights import before_call
from tests.support.leases import expire_lease
from tests.support.nights import MODEL, claim_model, published_ids, run_night

FIRST, SECOND, THIRD, FOURTH = "2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"
OTHER = "another"
FILES = {day: FileState(f"{day}.jsonl", 7, "v1") for day in (FIRST, SECOND, THIRD)}


def fill(tables: NightTables) -> dict[str, Run]:
    """Nights of three dates, each of a file of its own; return their runs by date."""
    return {
        day: run_night(tables.out, [f"id-{day}"], date=day, dead=[f"dead-{day}"], inputs=[FILES[day]]) for day in FILES
    }


def delete(tables: NightTables, before: str, *, forget_files: bool = False) -> list[str]:
    """Delete nights without a lease; returns the names of their runs."""
    models = models_before(tables, before, forget_files=forget_files)
    claims = {model: claim_model(tables, model) for model in models}
    deleted = delete_nights(tables, before, claims=claims, leases=[], forget_files=forget_files)
    return [night.run for night in deleted.nights]


def taken(tables: NightTables, date: str = FOURTH) -> set[str]:
    """The dates of the files that an incremental night of a date leaves out."""
    found = recorded_files(tables, model=MODEL, date=date, files=list(FILES.values()))
    return {file.uri.removesuffix(".jsonl") for file in found}


def vacuum(tables: NightTables, hours: float) -> None:
    """Vacuum so many hours later."""
    claims = {model: claim_model(tables, model) for model in models_of(tables)}
    now = datetime.now(UTC) + timedelta(hours=hours)
    run_vacuum(tables, plan_vacuum(tables, now=now, age=timedelta(hours=24)), claims)


def make_old(tables: NightTables) -> None:
    """Let all files of runs be two days old."""
    then = datetime.now(UTC).timestamp() - 48 * 3600
    for item in tables.out.list_objects():
        os.utime(tables.out.path(item.key), (then, then))


@pytest.mark.slow
def test_nights_before_a_date_are_deleted_in_one_commit_and_restored(tables: NightTables) -> None:
    runs = fill(tables)
    other = run_night(tables.out, ["x"], model=OTHER, date=FIRST)
    expected = published_ids(tables)
    assert delete(tables, FIRST) == []
    version = tables.open(PREDICTIONS).version
    assert delete(tables, THIRD) == [other.name, runs[FIRST].name, runs[SECOND].name]
    assert published_ids(tables) == {(THIRD, MODEL): [f"id-{THIRD}"]}
    assert read_rows(tables.open(DEAD_LETTERS), {})["id"].to_pylist() == [f"dead-{THIRD}"]
    assert tables.open(PREDICTIONS).version == version + 2 + 1, "a claim of each model, and one commit"
    for run in (other, runs[FIRST], runs[SECOND]):
        restore_night(tables, run.name, claim=claim_model(tables, run.model))
    assert published_ids(tables) == expected
    assert read_rows(tables.open(DEAD_LETTERS), {}).num_rows == 3


@pytest.mark.slow
def test_files_of_deleted_nights_stay_taken(local_tables: NightTables) -> None:
    """Until they are freed, in the same command or in a later one, or another night of their date replaces them."""
    runs = fill(local_tables)
    delete(local_tables, SECOND)
    assert taken(local_tables) == {FIRST, SECOND, THIRD}
    assert taken(local_tables, FIRST) == {SECOND, THIRD}, "a night of the same date may take them again"
    vacuum(local_tables, hours=25)
    assert taken(local_tables) == {FIRST, SECOND, THIRD}, "also once the run can no longer be restored"
    delete(local_tables, THIRD, forget_files=True)
    assert taken(local_tables) == {THIRD}
    assert {each["run"] for each in partitions(local_tables.open(INPUTS))} == {runs[THIRD].name}
    assert delete(local_tables, THIRD, forget_files=True) == []
    restore_night(local_tables, runs[SECOND].name, claim=claim_model(local_tables))
    assert taken(local_tables) == {SECOND, THIRD}


@pytest.mark.slow
def test_files_of_a_run_that_was_replaced_before_the_deletion_are_free(local_tables: NightTables) -> None:
    """Also if restoring another run of the date ends between its commits, or before it removes what it replaces."""
    runs = [
        run_night(local_tables.out, ["a"], date=FIRST, inputs=[FILES[day] for day in days]) for days in ([FIRST], FILES)
    ]
    delete(local_tables, SECOND)
    assert taken(local_tables) == set(FILES)
    with before_call(publication, "remove_replaced_rows", lose_lease):
        restore_night(local_tables, runs[0].name, claim=claim_model(local_tables))
    delete(local_tables, SECOND)
    assert taken(local_tables) == {FIRST}
    with before_call(publication, "_commit_predictions", crash), pytest.raises(SystemError):
        restore_night(local_tables, runs[1].name, claim=claim_model(local_tables))
    assert taken(local_tables) == {FIRST}


@pytest.mark.slow
def test_a_replaced_run_of_a_deleted_night_is_given_up_in_time(local_tables: NightTables) -> None:
    """Also if the run that had replaced it was given up before."""
    replaced = run_night(local_tables.out, ["a"], date=FIRST)
    run_night(local_tables.out, ["a", "b"], date=FIRST)
    make_old(local_tables)
    delete(local_tables, SECOND)
    forget_in_output(local_tables.out.uri, ["b"])
    vacuum(local_tables, hours=23)
    assert not is_abandoned(local_tables.out, replaced.name)
    vacuum(local_tables, hours=25)
    assert is_abandoned(local_tables.out, replaced.name)


def lose_lease() -> None:
    raise HeldError("another command has taken over")


def crash() -> None:
    raise SystemError("the process ends here")


def test_an_unfinished_night_is_named_beside_a_night_of_a_similar_name(local_tables: NightTables) -> None:
    begin_run(local_tables.out, date=FIRST, model=MODEL, model_version="7", claim=claim_model(local_tables))
    run_night(local_tables.out, ["a"], model=f"other-{MODEL}", date=FIRST)
    assert [run.date for run in find_unfinished(local_tables, MODEL, SECOND)] == [FIRST]


@pytest.mark.slow
def test_a_night_in_the_place_of_a_deleted_one_frees_its_files(local_tables: NightTables) -> None:
    fill(local_tables)
    delete(local_tables, SECOND)
    run_night(local_tables.out, ["new"], date=FIRST)
    assert taken(local_tables) == {SECOND, THIRD}
    delete(local_tables, SECOND)
    assert taken(local_tables) == {SECOND, THIRD}


def test_a_deletion_that_was_overtaken_changes_nothing(local_tables: NightTables) -> None:
    """Another command has taken over the lease, and has not claimed the model yet."""
    fill(local_tables)
    expected = published_ids(local_tables)
    with lease_model(local_tables.out, MODEL) as stale:
        claims = {MODEL: claim_nights(local_tables, MODEL, stale)}
        expire_lease(stale.store)
        with lease_model(local_tables.out, MODEL), pytest.raises(HeldError):
            delete_nights(local_tables, THIRD, claims=claims, leases=[stale], forget_files=False)
    assert published_ids(local_tables) == expected


def test_a_deletion_that_slept_changes_nothing(local_tables: NightTables) -> None:
    """Another command claims the model before the commit."""
    fill(local_tables)
    expected = published_ids(local_tables)
    with before_call(deletion, "_commit_deletion", lambda: claim_model(local_tables)), pytest.raises(HeldError):
        delete(local_tables, THIRD)
    assert published_ids(local_tables) == expected


@pytest.mark.slow
def test_a_deleted_night_can_be_restored_until_a_vacuum_finds_it_old(local_tables: NightTables) -> None:
    """What counts is the time of the deletion."""
    runs = fill(local_tables)
    make_old(local_tables)
    delete(local_tables, THIRD)
    vacuum(local_tables, hours=23)
    restore_night(local_tables, runs[FIRST].name, claim=claim_model(local_tables))
    vacuum(local_tables, hours=25)
    assert is_abandoned(local_tables.out, runs[SECOND].name)
    assert published_ids(local_tables) == {(day, MODEL): [f"id-{day}"] for day in (FIRST, THIRD)}
    with pytest.raises(UserError, match="has no run"):
        restore_night(local_tables, runs[SECOND].name, claim=claim_model(local_tables))


@pytest.mark.slow
def test_forgotten_documents_of_a_deleted_night_are_removed(local_tables: NightTables) -> None:
    runs = fill(local_tables)
    delete(local_tables, SECOND)
    done = forget_in_output(local_tables.out.uri, [f"id-{FIRST}"])
    assert done.given_up == (runs[FIRST].name,)
    assert local_tables.out.list(f"{PREDICTIONS}/{runs[FIRST].name}") == []
    assert taken(local_tables) == {FIRST, SECOND, THIRD}


@pytest.mark.slow
def test_an_operator_sees_and_restores_deleted_nights(local_tables: NightTables) -> None:
    """A run that was begun for a deleted date and not finished is not named as unfinished."""
    runs, output = fill(local_tables), local_tables.out.uri
    for report in (REPORT, PAGE):
        local_tables.out.write(f"_runs/{runs[FIRST].name}/{report}", b"of the night")
        local_tables.out.write(report, b"of a newer night")
    assert [night.run for night in nights.delete(output, before=FOURTH, dry_run=True).nights] == sorted(
        run.name for run in runs.values()
    )
    assert len(published_ids(local_tables)) == 3
    nights.delete(output, before=FOURTH)
    assert [run.state for run in list_output(output)] == ["deleted"] * 3
    assert not any(map(local_tables.out.exists, (REPORT, PAGE))), "they name a night that is not there"
    assert find_unfinished(local_tables, MODEL, FOURTH) == []
    assert nights.restore(output, date=FIRST).name == runs[FIRST].name
    assert {local_tables.out.read(report) for report in (REPORT, PAGE)} == {b"of the night"}
    assert [run.state for run in list_output(output)] == ["published", "deleted", "deleted"]
    with pytest.raises(UserError, match="--before 2999-01-01 is in the future"):
        nights.delete(output, before="2999-01-01")
