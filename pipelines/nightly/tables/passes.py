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

from pipelines.nightly.tables.night_records import RUNS, RunRecord, find_nights, is_abandoned, now
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, was_published
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json

PASS = "pass.json"
"""record in the folder of a pass"""
_DRIVERS = "drivers"
"""folder in that of a pass, with an object per driver"""
_PASS_NAME = re.compile(r"pass-\d{4}-\d{2}-\d{2}-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class PassRecord:
    """The runs of a pass. That of several runs is written before any of them begins."""

    name: str
    """name of the pass: its folder in the output is `_runs/NAME`"""
    date: str
    """date of the night, YYYY-MM-DD"""
    runs: tuple[str, ...]
    """names of its runs, one per model, in order of model"""
    begun: str
    """time of the beginning, ISO 8601 in UTC"""


def pass_name(date: str, runs: Sequence[str]) -> str:
    """The name of the pass of some runs of a date: it names the date, and the same runs have the same pass."""
    return f"pass-{date}-{hashlib.sha256(json.dumps(sorted(runs)).encode()).hexdigest()[:12]}"


def is_pass_name(name: str) -> bool:
    """Whether a folder of `_runs/` is that of a pass."""
    return _PASS_NAME.fullmatch(name) is not None


def begin_pass(out: Store, date: str, runs: Sequence[str]) -> PassRecord:
    """Begin the pass of some runs and return its record."""
    record = PassRecord(name=pass_name(date, runs), date=date, runs=tuple(runs), begun=now())
    out.create(f"{RUNS}/{record.name}/{PASS}", json.dumps(to_json(record)).encode())
    return record


def find_pass(out: Store, run: RunRecord) -> PassRecord | None:
    """The pass of a run, None if its record is not there."""
    if run.shared_pass is None:
        return PassRecord(name=run.run, date=run.date, runs=(run.run,), begun=run.begun)
    stored = out.read_json(f"{RUNS}/{run.shared_pass}/{PASS}")
    return None if stored is None else from_json(PassRecord, stored)


def find_passes(out: Store, names: Sequence[str]) -> dict[str, PassRecord]:
    """The records of passes by name; passes whose record is missing are left out."""
    stored = out.read_many([f"{RUNS}/{name}/{PASS}" for name in names])
    records = [from_json(PassRecord, json.loads(data)) for data in stored.values()]
    return {record.name: record for record in records}


def number_driver(out: Store, name: str, tokens: Sequence[int]) -> int:
    """A number for a driver of a pass that no other one has; higher than that of every earlier one.

    It stands in the names of what the driver writes: the drivers of a pass need not have claimed the same models.
    `tokens` are those of its claims, for whoever looks.
    """
    number = max((int(key.rpartition("/")[2]) for key in out.list(f"{RUNS}/{name}/{_DRIVERS}")), default=0) + 1
    while not out.create(f"{RUNS}/{name}/{_DRIVERS}/{number:06d}", json.dumps({"tokens": list(tokens)}).encode()):
        number += 1
    return number


def open_runs(tables: NightTables, record: PassRecord) -> list[str]:
    """The runs of a pass that still need it: they are neither finished, nor published, nor given up."""
    finished, predictions = find_nights(tables.out, record.runs), tables.open(PREDICTIONS)
    waiting = [run for run in record.runs if run not in finished and not was_published(predictions, run)]
    return [run for run in waiting if not is_abandoned(tables.out, run)]
