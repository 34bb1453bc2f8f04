"""Records of a run in `_runs/RUN/`: how it began, what it publishes, and whether it was given up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pipelines.nightly.tables.night_tables import TABLES
from pipelines.storage.delta_table import DataFile
from pipelines.storage.lease import Lease, user_name
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from spin.errors import UserError

RUNS = "_runs"
"""folder of the runs in an output"""
LEASES = "_leases"
"""folder of the leases in an output, with one lease per model"""
RUN, NIGHT, ABANDONED = "run.json", "night.json", "abandoned.json"
"""records in the folder of a run; each is created only if absent and never replaced"""
DELETION = "deleted.json"
"""record in the folder of a run whose night was deleted; its modification time says when that was last"""
FORMAT = 11
"""of the work of a run and of its plan; an unfinished run of another format is not continued"""
_RUN_NAME = re.compile(r"\d{4}-\d{2}-\d{2}-[A-Za-z0-9_.-]+-\d{6,}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of one model, with what it publishes once it is finished.

    Its beginning is written before anything else of it. The first driver that finishes a run writes it again with its
    files; every other driver publishes these.
    """

    name: str
    date: str
    """date of the night, YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classifies"""
    claim: int
    """number of the claim under which the run began"""
    begun: str
    """time of the beginning, ISO 8601 in UTC"""
    incremental: bool
    """whether the run leaves out the files that nights of other dates have taken"""
    pass_name: str
    """name of the pass in which it classifies; that of a run alone has the name of the run"""
    artifact: str = ""
    """digest of the classifier, since registries may give its version to another one; empty where it is not known"""
    finished: str | None = None
    """time at which its files were recorded, ISO 8601 in UTC; None for a beginning"""
    files: Mapping[str, tuple[DataFile, ...]] = field(default_factory=dict)
    """files of a finished run by table, with their paths in the table's folder"""
    format: int = FORMAT
    """format of the work and of the plan of the run"""

    @property
    def is_alone(self) -> bool:
        """Whether no run of another model shares its pass."""
        return self.pass_name == self.name

    def keys(self) -> set[str]:
        """The keys in the output of its files."""
        return {f"{table}/{file.path}" for table, each in self.files.items() for file in each}

    def count_rows(self, table: str) -> int:
        """The rows of a finished run in a table."""
        return sum(file.rows for file in self.files.get(table, ()))


def run_name(date: str, model: str, claim: int) -> str:
    """The name of the run of a date and a model that begins under a claim: of letters, digits, `_`, `-` and `.`."""
    return f"{date}-{model_slug(model)}-{claim:06d}"


def model_slug(model: str) -> str:
    """The name of a model as a part of paths: of letters, digits, `_`, `-` and `.`, and for no two models the same."""
    slug = re.sub(r"[^A-Za-z0-9_.-]", "_", model)
    return slug if slug == model else f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"


def lease_model(out: Store, model: str) -> Lease:
    """The lease on the nights of a model in an output; a night, a restore and a vacuum hold it while they work."""
    return Lease(out / f"{LEASES}/{model_slug(model)}")


def is_run_name(name: str) -> bool:
    """Whether a folder of `_runs/` belongs to a run."""
    return _RUN_NAME.fullmatch(name) is not None


def is_run_of(name: str, models: Collection[str]) -> bool:
    """Whether a name belongs to a run of one of some models."""
    return is_run_name(name) and name[11:].rpartition("-")[0] in {model_slug(model) for model in models}


def is_later_run(name: str, run: str) -> bool:
    """Whether a name is that of a run of the same date and model as another run, under a higher claim."""
    (night, _, claim), (own, _, earlier) = name.rpartition("-"), run.rpartition("-")
    return night == own and int(claim) > int(earlier)


def begin_run(
    out: Store,
    *,
    date: str,
    model: str,
    model_version: str,
    claim: int,
    incremental: bool = False,
    pass_name: str | None = None,
    artifact: str = "",
) -> Run:
    """Begin a run under a claim and return its record; without `pass_name` it has a pass of its own."""
    name = run_name(date, model, claim)
    run = Run(
        name=name,
        date=date,
        model=model,
        model_version=model_version,
        claim=claim,
        begun=now(),
        incremental=incremental,
        pass_name=pass_name or name,
        artifact=artifact,
    )
    out.create(f"{RUNS}/{name}/{RUN}", _to_bytes(run))
    return run


def list_run_names(out: Store) -> list[str]:
    """The names of the runs of an output, finished or not, in order of date."""
    return [name for name in out.list_names(RUNS) if is_run_name(name)]


def find_runs(out: Store, names: Sequence[str]) -> dict[str, Run]:
    """The beginnings of runs by name; runs whose record is missing are left out."""
    return _read_records(out, names, RUN)


def list_runs(out: Store) -> list[Run]:
    """The beginnings of all runs of an output, by date and then in the order in which they began."""
    runs = find_runs(out, list_run_names(out)).values()
    return sorted(runs, key=lambda run: (run.date, run.claim, run.model))


def finish_run(out: Store, run: Run, files: Mapping[str, Sequence[DataFile]]) -> Run:
    """Record which files a run publishes, by table, and return it with them: as stored, if another driver was first."""
    unknown = set(files) - set(TABLES)
    strays = [file.path for each in files.values() for file in each if not file.path.startswith(f"{run.name}/")]
    if unknown or strays:
        raise ValueError(f"{run.name} cannot publish {sorted(unknown)} {strays[:3]}")
    by_path = {table: tuple(sorted(each, key=lambda file: file.path)) for table, each in files.items()}
    finished = replace(run, finished=now(), files=by_path)
    # guarded by test_the_first_record_of_a_run_wins; broken by:
    #   if out.write(f"{RUNS}/{run.name}/{NIGHT}", _to_bytes(finished)) is None:
    if out.create(f"{RUNS}/{run.name}/{NIGHT}", _to_bytes(finished)):
        return finished
    return find_night(out, run.name) or finished


def find_night(out: Store, run: str) -> Run | None:
    """A run with what it publishes, None while it is not finished."""
    key = f"{RUNS}/{run}/{NIGHT}"
    data = out.read(key)
    return None if data is None else _from_bytes(out, key, data)


def find_nights(out: Store, runs: Sequence[str]) -> dict[str, Run]:
    """Runs with what they publish, by name; those that are not finished are left out."""
    return _read_records(out, runs, NIGHT)


def abandon_run(out: Store, run: str) -> None:
    """Mark a run as given up: from then on it is neither resumed nor restored, so its files may be deleted."""
    out.create(f"{RUNS}/{run}/{ABANDONED}", json.dumps({"at": now()}).encode())


def mark_deleted(out: Store, runs: Sequence[str]) -> None:
    """Note that the nights of runs are being deleted now. Whether they were is in the table of the predictions."""
    for run in runs:
        out.write_json(f"{RUNS}/{run}/{DELETION}", {"at": now(), "by": user_name()})


def revive_run(out: Store, run: str) -> None:
    """Take back that a run was given up, once it is complete."""
    out.delete_many([f"{RUNS}/{run}/{ABANDONED}"])


def is_abandoned(out: Store, run: str) -> bool:
    """Whether a run was given up."""
    return out.exists(f"{RUNS}/{run}/{ABANDONED}")


def now() -> str:
    """The time of a record, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_records(out: Store, names: Sequence[str], record: str) -> dict[str, Run]:
    """The records of runs that are there, by name. Raises UserError for one that cannot be read."""
    stored = out.read_many([f"{RUNS}/{name}/{record}" for name in names])
    return {key.split("/")[1]: _from_bytes(out, key, data) for key, data in stored.items()}


def _from_bytes(out: Store, key: str, data: bytes) -> Run:
    try:
        return from_json(Run, json.loads(data))
    except ValueError as error:
        raise UserError(
            f"{out.uri}/{key} is no record of a run that this version of spin can read: it is damaged, or another "
            "version has written it. Use that version, or restore the file"
        ) from error


def _to_bytes(run: Run) -> bytes:
    return json.dumps(to_json(run)).encode()
