"""Delete what no night, no unfinished run and no restorable run of an output names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import (
    ABANDONED,
    DELETION,
    RUN,
    RUNS,
    Run,
    abandon_run,
    find_nights,
    find_runs,
    is_run_name,
    list_runs,
)
from pipelines.nightly.tables.night_tables import (
    PREDICTIONS,
    TABLES,
    NightTables,
    named_keys,
    published_runs,
    was_published,
)
from pipelines.nightly.tables.passes import find_passes, is_pass_name
from pipelines.nightly.tables.publication import clean_side_tables, require_claim
from pipelines.storage.object_store import StoredObject
from pipelines.storage.retrying import retry_unavailable
from spin.errors import UserError

SHORTEST_AGE = timedelta(hours=24)
"""the least age of what is deleted: readers may be in the middle of a night that was replaced a moment ago"""


@dataclass(frozen=True)
class VacuumPlan:
    """The plan of a vacuum."""

    abandon: tuple[str, ...]
    """runs that can be neither resumed nor restored from then on"""
    delete: tuple[str, ...]
    """keys in the output"""
    bytes: int
    """size of what is deleted"""


def models_of(tables: NightTables) -> list[str]:
    """The models that have a night or a run in an output. A vacuum needs the lease and a claim of each."""
    return sorted({run.model for run in list_runs(tables.out)} | {night.model for night in list_nights(tables)})


def plan_vacuum(tables: NightTables, *, now: datetime, age: timedelta) -> VacuumPlan:
    """Plan a vacuum: it deletes files that nothing names and that have not changed for `age`.

    A run that was never published and has not changed for `age` is given up. So is one that was replaced or deleted at
    least `age` ago; until then it can be restored. Of runs that are published or can be restored, their files and
    records stay, and what they worked with is deleted. A pass stays while one of its runs may be resumed; a run changes
    when its pass does. Call it under a claim of every model. Raises UserError if `age` is too short.
    """
    if age < SHORTEST_AGE:
        raise UserError(f"vacuum: an age of {age} is too short; expected at least {SHORTEST_AGE}")
    before = (now - age).timestamp()
    in_runs = list(tables.out.list_objects(RUNS))
    objects_by_run, passes = _objects_by_run(tables, in_runs), _read_passes(tables, in_runs)
    contents = _read_contents(tables, objects_by_run)
    abandon: list[str] = []
    delete: list[StoredObject] = []
    unfinished: set[str] = set()
    for run, objects in objects_by_run.items():
        own = max(item.modified for item in objects)
        changed = max([own, *(each.changed for each in passes if run in each.runs)])
        marked = any(item.key == f"{RUNS}/{run}/{ABANDONED}" for item in objects)
        # guarded by test_a_replaced_run_can_be_restored_until_it_is_old; broken by:
        #   if run in contents.named:
        if run in contents.named or (not marked and contents.is_restorable(run, before, own)):
            wanted = contents.nights[run].keys() if run in contents.nights else set()
            old = [item for item in objects if item.modified < before]
            unused = [item for item in old if item.key not in wanted and not _is_record(item.key)]
        elif marked or run in contents.published or changed < before:
            unused = [item for item in objects if not _is_mark(item.key)]
            abandon += [] if marked else [run]
        else:
            unfinished.add(run)
            continue
        # guarded by test_a_lost_record_does_not_make_a_published_night_garbage; broken by:
        #   delete += unused
        delete += [item for item in unused if item.key not in contents.keys]
    for each in passes:
        # guarded by test_a_vacuum_keeps_the_old_objects_of_a_pass_that_can_go_on; broken by:
        #   if True:
        if unfinished.isdisjoint(each.runs):
            delete += [item for item in each.objects if item.modified < before]
    # guarded by test_files_of_killed_writes_are_deleted_when_they_are_old
    delete += [item for item in tables.out.list_temporary() if item.modified < before]
    keys = tuple(item.key for item in delete)
    return VacuumPlan(tuple(abandon), keys, sum(item.size for item in delete))


def run_vacuum(tables: NightTables, plan: VacuumPlan, claims: Mapping[str, int]) -> None:
    """Carry out a plan. `claims` holds the claim of every model in `models_of`.

    The claims are checked before runs are given up, since a driver may have gone on with one of them since the plan was
    made. Runs are given up before their files are deleted, and `clean_side_tables` checks the claims in between: a
    driver that has claimed its model by then stops the vacuum, and one that claims it later sees that the run was given
    up. Raises HeldError if a model has been claimed again.
    """
    for model, claim in claims.items():
        # guarded by test_a_vacuum_that_slept_gives_up_no_run_that_goes_on
        require_claim(tables, model, claim)
    for run in plan.abandon:
        abandon_run(tables.out, run)
    clean_side_tables(tables, claims)
    retry_unavailable(tables.out)(tables.out.delete_many, plan.delete)


@dataclass(frozen=True)
class _Pass:
    """A pass, with its objects."""

    runs: frozenset[str]
    """names of its runs, none if its record is missing"""
    objects: Sequence[StoredObject]
    """in its folder"""

    @property
    def changed(self) -> float:
        """The time of its last change, in seconds since 1970."""
        return max(item.modified for item in self.objects)


@dataclass(frozen=True)
class _Contents:
    """The files that the tables and the records of an output name."""

    published: frozenset[str]
    """runs that were published, now or at any time before"""
    named: frozenset[str]
    """runs that the predictions consist of"""
    changed: Mapping[tuple[str, str], float]
    """when the night of a date and a model was published, restored or deleted, in seconds since 1970"""
    nights: Mapping[str, Run]
    """what a published run consists of"""
    keys: frozenset[str]
    """keys in the output of the files that the predictions, and for the same runs the other tables, consist of"""

    def is_restorable(self, run: str, before: float, own: float) -> bool:
        """Whether a run that was published can be restored: unless it was replaced or deleted before a time.

        Where that is not known, the time of its own last change counts, `own`.
        """
        night = self.nights.get(run)
        return night is not None and self.changed.get((night.date, night.model), own) >= before


def _read_contents(tables: NightTables, objects_by_run: Mapping[str, Sequence[StoredObject]]) -> _Contents:
    predictions = tables.open(PREDICTIONS)
    nights = published_runs(predictions)
    published = frozenset(run for run in sorted(objects_by_run) if was_published(predictions, run))
    named = frozenset(night.run for night in nights)
    records = find_nights(tables.out, sorted(published | named))
    marks = {
        run: item.modified
        for run, objects in objects_by_run.items()
        for item in objects
        if item.key == f"{RUNS}/{run}/{DELETION}"
    }
    # by their beginnings, which stay of runs that were given up
    begun = sorted(find_runs(tables.out, sorted(marks)).values(), key=lambda run: marks[run.name])
    deleted = {(run.date, run.model): marks[run.name] for run in begun}
    return _Contents(
        published=published,
        named=named,
        changed=deleted | {(night.date, night.model): night.committed for night in nights},
        nights=records,
        keys=frozenset(named_keys(tables, predictions)),
    )


def _read_passes(tables: NightTables, in_runs: Sequence[StoredObject]) -> list[_Pass]:
    """The passes of an output, from the objects in `_runs/`."""
    objects: dict[str, list[StoredObject]] = {}
    for item in in_runs:
        name = item.key.split("/")[1]
        if is_pass_name(name):
            objects.setdefault(name, []).append(item)
    records = find_passes(tables.out, list(objects))
    runs = {name: frozenset(records[name].runs if name in records else ()) for name in objects}
    return [_Pass(runs[name], each) for name, each in objects.items()]


def _objects_by_run(tables: NightTables, in_runs: Sequence[StoredObject]) -> dict[str, list[StoredObject]]:
    """The objects of each run, in its folder and in those of the tables. Other objects are not among them."""
    objects: dict[str, list[StoredObject]] = {}
    for listed in (in_runs, *map(tables.out.list_objects, TABLES)):
        for item in listed:
            run = item.key.split("/")[1]
            if is_run_name(run):
                objects.setdefault(run, []).append(item)
    return objects


def _is_record(key: str) -> bool:
    """Whether an object lies directly in the folder of a run in `_runs/`: a record or a report."""
    return key.startswith(f"{RUNS}/") and key.count("/") == 2


def _is_mark(key: str) -> bool:
    """Whether an object must stay of a run that was given up."""
    return _is_record(key) and key.rpartition("/")[2] in (RUN, ABANDONED)
