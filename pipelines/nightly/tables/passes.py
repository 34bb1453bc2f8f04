"""Passes: the runs of a date that read their documents together, with their shared work in one folder.

A run belongs to the pass in which it began: one with runs of other models, or its own. What is shared lies in
`_runs/PASS/`: the spool, the shard log and the copies of the models; the pass of a single run has its folder and name.
What a run publishes, and how it ended, lies in its own `_runs/RUN/`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipelines.nightly.tables.listing import FileGroup, ListingPlan, group_by_runs, read_listing, to_pass_rows
from pipelines.nightly.tables.night_records import (
    FORMAT,
    RUNS,
    Run,
    find_nights,
    is_abandoned,
    is_later_run,
    list_run_names,
    now,
)
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, was_published
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from pipelines.storage.stage_plan import create_plan

STAGE = "pass"
"""name of the stage in the plan of a pass"""
PASS = "pass.json"
"""record in the folder of a pass"""
_DRIVERS = "drivers"
"""folder in that of a pass, with an object per driver"""
_PASS_NAME = re.compile(r"pass-\d{4}-\d{2}-\d{2}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The runs that read their documents together. The record of several is written before any of them begins."""

    name: str
    """name of the pass: its folder in the output is `_runs/NAME`"""
    runs: tuple[str, ...]
    """names of its runs, one per model, in order of model"""
    begun: str
    """time of the beginning, ISO 8601 in UTC"""


def pass_name(date: str, runs: Sequence[str]) -> str:
    """The name of the pass of some runs of a date: it names the date, and the same runs have the same pass."""
    return f"pass-{date}-{hashlib.sha256(json.dumps(sorted(runs)).encode()).hexdigest()[:12]}"


def is_pass_name(name: str) -> bool:
    """Whether a folder of `_runs/` belongs to a pass."""
    return _PASS_NAME.fullmatch(name) is not None


def begin_pass(out: Store, date: str, runs: Sequence[str]) -> Pass:
    """Begin the pass of some runs and return its record."""
    begun = Pass(name=pass_name(date, runs), runs=tuple(runs), begun=now())
    out.create(f"{RUNS}/{begun.name}/{PASS}", json.dumps(to_json(begun)).encode())
    return begun


def find_pass(out: Store, run: Run) -> Pass | None:
    """The pass of a run, None if its record is not there."""
    if run.is_alone:
        return Pass(name=run.name, runs=(run.name,), begun=run.begun)
    stored = out.read_json(f"{RUNS}/{run.pass_name}/{PASS}")
    return None if stored is None else from_json(Pass, stored)


def find_passes(out: Store, names: Sequence[str]) -> dict[str, Pass]:
    """The records of passes by name; passes whose record is missing are left out."""
    stored = out.read_many([f"{RUNS}/{name}/{PASS}" for name in names])
    passes = [from_json(Pass, json.loads(data)) for data in stored.values()]
    return {each.name: each for each in passes}


def number_driver(out: Store, name: str, claims: Sequence[int]) -> int:
    """A number for a driver of a pass that no other one has; higher than that of every earlier one.

    It stands in the names of what the driver writes: the drivers of a pass need not have claimed the same models.
    `claims` are those of its models, for whoever looks.
    """
    number = max((int(key.rpartition("/")[2]) for key in out.list(f"{RUNS}/{name}/{_DRIVERS}")), default=0) + 1
    while not out.create(f"{RUNS}/{name}/{_DRIVERS}/{number:06d}", json.dumps({"claims": list(claims)}).encode()):
        number += 1
    return number


def open_runs(tables: NightTables, runs: Sequence[str]) -> list[str]:
    """The runs of a pass that still need it: they are neither finished, nor published, nor given up, nor superseded.

    A run is superseded once a later one of its date and model was published: no command goes on with it any more.
    """
    finished, predictions = find_nights(tables.out, runs), tables.open(PREDICTIONS)
    waiting = [run for run in runs if run not in finished and not was_published(predictions, run)]
    names = list_run_names(tables.out) if waiting else []

    def is_superseded(run: str) -> bool:
        return any(is_later_run(name, run) and was_published(predictions, name) for name in names)

    return [run for run in waiting if not is_superseded(run) and not is_abandoned(tables.out, run)]


def plan_files(out: Store, shared: Pass, number: int) -> list[FileGroup]:
    """The files of a pass, in groups that the same runs take: as they were planned, or planned now.

    A pass of one run reads the files that its run lists. `number` is that of the driver. Raises UserError if the list
    of a run, or that of the pass, is missing or damaged.
    """
    store = out / f"{RUNS}/{shared.name}"
    if len(shared.runs) == 1:
        return [FileGroup(shared.runs, read_listing(store).files)]
    metadata = {"format": FORMAT, "runs": list(shared.runs)}
    plan = create_plan(store, STAGE, metadata, ListingPlan, partial(_list_files, out, store, shared, number))
    return group_by_runs(plan.derived.read(store))


def _list_files(out: Store, store: Store, shared: Pass, number: int) -> ListingPlan:
    """Write the list of files of a new pass and return what its plan says about it."""
    listings = {run: read_listing(out / f"{RUNS}/{run}") for run in shared.runs}
    return ListingPlan.write(store, number, to_pass_rows(listings))
