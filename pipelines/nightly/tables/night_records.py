"""Records of a run in `_runs/RUN/`: how it began, what it publishes, and whether it was given up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.nightly.tables.night_tables import TABLES
from pipelines.storage.delta_table import DataFile
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from spin.errors import UserError

RUNS = "_runs"
"""folder of the runs in an output"""
LEASES = "_leases"
"""folder of the leases in an output, with one lease per model"""
RUN, NIGHT, ABANDONED = "run.json", "night.json", "abandoned.json"
"""records in the folder of a run; each is created only if absent and never replaced"""
_RUN_NAME = re.compile(r"\d{4}-\d{2}-\d{2}-[A-Za-z0-9_.-]+-\d{6,}")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The beginning of a run, written before anything else of it."""

    run: str
    """name of the run"""
    date: str
    """date of the night, YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classifies"""
    token: int
    """number of the claim under which the run began"""
    begun: str
    """time of the beginning, ISO 8601 in UTC"""
    incremental: bool = False
    """whether the run leaves out the files that nights of other dates have taken"""
    shared_pass: str | None = None
    """name of the pass that it shares with runs of other models; None for a run that classifies alone"""


@dataclass(frozen=True, kw_only=True)
class NightRecord:
    """What a finished run publishes. The first driver that finishes a run writes it; every other one publishes it."""

    run: str
    """name of the run"""
    date: str
    """date of the night, YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classified"""
    token: int
    """number of the claim under which the run was finished"""
    finished: str
    """time of this record, ISO 8601 in UTC"""
    files: Mapping[str, tuple[DataFile, ...]]
    """files of the run by table, with their paths in the table's folder"""
    incremental: bool = False
    """whether the run leaves out the files that nights of other dates have taken"""


def run_name(date: str, model: str, token: int) -> str:
    """The name of the run of a date and a model that begins under a claim: of letters, digits, `_`, `-` and `.`."""
    return f"{date}-{model_slug(model)}-{token:06d}"


def model_slug(model: str) -> str:
    """The name of a model as a part of paths: of letters, digits, `_`, `-` and `.`, and for no two models the same."""
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", model)
    return slug if slug == model else f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"


def lease_model(out: Store, model: str) -> Lease:
    """The lease on the nights of a model in an output; a night, a restore and a vacuum hold it while they work."""
    return Lease(out / f"{LEASES}/{model_slug(model)}")


def is_run_name(name: str) -> bool:
    """Whether a folder of `_runs/` is that of a run."""
    return _RUN_NAME.fullmatch(name) is not None


def is_run_of(name: str, models: Collection[str]) -> bool:
    """Whether a name is that of a run of one of some models."""
    return is_run_name(name) and name[11:].rpartition("-")[0] in {model_slug(model) for model in models}


def begin_run(
    out: Store,
    *,
    date: str,
    model: str,
    model_version: str,
    token: int,
    incremental: bool = False,
    shared_pass: str | None = None,
) -> RunRecord:
    """Begin a run under a claim and return its record."""
    run = run_name(date, model, token)
    record = RunRecord(
        run=run,
        date=date,
        model=model,
        model_version=model_version,
        token=token,
        begun=now(),
        incremental=incremental,
        shared_pass=shared_pass,
    )
    out.create(f"{RUNS}/{run}/{RUN}", _to_bytes(record))
    return record


def list_run_names(out: Store) -> list[str]:
    """The names of the runs of an output, finished or not, in order of date."""
    return [name for name in out.list_names(RUNS) if is_run_name(name)]


def find_runs(out: Store, names: Sequence[str]) -> dict[str, RunRecord]:
    """The beginnings of runs by name; runs whose record is missing are left out."""
    stored = out.read_many([f"{RUNS}/{name}/{RUN}" for name in names])
    records = [from_json(RunRecord, json.loads(data)) for data in stored.values()]
    return {record.run: record for record in records}


def list_runs(out: Store) -> list[RunRecord]:
    """The runs of an output, finished or not, by date and then in the order in which they began."""
    records = find_runs(out, list_run_names(out)).values()
    return sorted(records, key=lambda record: (record.date, record.token, record.model))


def finish_run(out: Store, run: RunRecord, *, token: int, files: Mapping[str, Sequence[DataFile]]) -> NightRecord:
    """Record what a run publishes and return the record: the stored one, if another driver was first.

    `files` are the files of the run by table; `token` is the claim of the driver that finishes the run.
    """
    unknown = set(files) - set(TABLES)
    strays = [file.path for each in files.values() for file in each if not file.path.startswith(f"{run.run}/")]
    if unknown or strays:
        raise ValueError(f"{run.run} cannot publish {sorted(unknown)} {strays[:3]}")
    record = NightRecord(
        run=run.run,
        date=run.date,
        model=run.model,
        model_version=run.model_version,
        token=token,
        finished=now(),
        files={table: tuple(sorted(each, key=lambda file: file.path)) for table, each in files.items()},
        incremental=run.incremental,
    )
    if out.create(f"{RUNS}/{run.run}/{NIGHT}", _to_bytes(record)):
        return record
    stored = find_night(out, run.run)
    return record if stored is None else stored


def find_night(out: Store, run: str) -> NightRecord | None:
    """What a run publishes, None while it is not finished."""
    stored = out.read_json(f"{RUNS}/{run}/{NIGHT}")
    return None if stored is None else from_json(NightRecord, stored)


def find_nights(out: Store, runs: Sequence[str]) -> dict[str, NightRecord]:
    """What each of the runs publishes, by its name; runs that are not finished are left out."""
    stored = out.read_many([f"{RUNS}/{run}/{NIGHT}" for run in runs])
    nights = [from_json(NightRecord, json.loads(data)) for data in stored.values()]
    return {night.run: night for night in nights}


def abandon_run(out: Store, run: str) -> None:
    """Mark a run as given up: from then on it is neither resumed nor restored, so its files may be deleted."""
    out.create(f"{RUNS}/{run}/{ABANDONED}", json.dumps({"at": now()}).encode())


def revive_run(out: Store, run: str) -> None:
    """Take back that a run was given up, once it is complete."""
    out.delete(f"{RUNS}/{run}/{ABANDONED}")


def is_abandoned(out: Store, run: str) -> bool:
    """Whether a run was given up."""
    return out.exists(f"{RUNS}/{run}/{ABANDONED}")


def require_not_abandoned(out: Store, run: str) -> None:
    """Raise UserError if a run was given up."""
    if is_abandoned(out, run):
        raise UserError(f"run {run} was given up by `spin nights vacuum` or `spin forget`; start over with --restart")


def now() -> str:
    """The time of a record, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_bytes(record: RunRecord | NightRecord) -> bytes:
    return json.dumps(to_json(record)).encode()
