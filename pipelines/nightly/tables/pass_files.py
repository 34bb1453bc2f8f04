"""The input files of a pass: the union of what its runs read, listed once, with the runs that take each file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.input_files import InputFile
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.passes import PassRecord
from pipelines.nightly.tables.resume import FORMAT, read_listing
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.stage_plan import create_plan
from spin.errors import UserError

STAGE = "pass"
"""name of the stage in the plan"""
_FILES = pa.schema(
    [
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("runs", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class FileGroup:
    """Input files that the same runs take."""

    runs: tuple[str, ...]
    """names of the runs"""
    files: tuple[InputFile, ...]
    """in the order of the listing"""


@dataclass(frozen=True)
class PassPlan:
    """The input files of a pass, listed once."""

    listing: str
    """key of the list of files in the folder of the pass"""
    sha256: str
    """digest of the list, in hexadecimal digits"""


def plan_files(out: Store, record: PassRecord, number: int) -> list[FileGroup]:
    """The files of a pass, in groups that the same runs take: as they were planned, or planned now.

    A pass of one run reads the files that its run lists.
    The order of the groups is that of their first files. `number` is that of the driver. Raises UserError if the list
    of a run, or that of the pass, is missing or damaged.
    """
    store = out / f"{RUNS}/{record.name}"
    if len(record.runs) == 1:
        return [FileGroup(record.runs, read_listing(store).files)]
    metadata = {"format": FORMAT, "runs": list(record.runs)}
    plan = create_plan(store, STAGE, metadata, PassPlan, partial(_list_files, out, store, record, number)).derived
    data = store.read(plan.listing)
    if data is None or hashlib.sha256(data).hexdigest() != plan.sha256:
        raise UserError(f"{store.uri}/{plan.listing} is missing or damaged; start over with --restart")
    return _from_bytes(data)


def _list_files(out: Store, store: Store, record: PassRecord, number: int) -> PassPlan:
    """Write the list of files of a new pass and return what its plan says about it."""
    takers: dict[InputFile, list[str]] = {}
    for run in record.runs:
        for file in read_listing(out / f"{RUNS}/{run}").files:
            takers.setdefault(file, []).append(run)
    key, data = f"files-{number:06d}.parquet", _to_bytes(takers)
    store.write(key, data)
    return PassPlan(key, hashlib.sha256(data).hexdigest())


def _to_bytes(takers: dict[InputFile, list[str]]) -> bytes:
    """The files in order of name, each with its runs, as a Parquet file."""
    rows = [{**asdict(file), "runs": takers[file]} for file in sorted(takers, key=lambda file: file.uri)]
    return to_parquet(pa.Table.from_pylist(rows, schema=_FILES))


def _from_bytes(data: bytes) -> list[FileGroup]:
    groups: dict[tuple[str, ...], list[InputFile]] = {}
    rows: Sequence[dict[str, object]] = pq.read_table(io.BytesIO(data)).to_pylist()
    for row in rows:
        runs: tuple[str, ...] = tuple(row.pop("runs"))  # type: ignore[arg-type]
        groups.setdefault(runs, []).append(InputFile(**row))  # type: ignore[arg-type]
    return [FileGroup(runs, tuple(files)) for runs, files in groups.items()]
