"""The input files of a run or of a pass, listed once in its folder; the plan holds the digest of the list."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.input_files import InputFile
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.stage_plan import StagePlan, read_plan
from spin.errors import UserError

_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("rejected", pa.string()),  # why a file cannot be read by its name, else null
        ("runs", pa.list_(pa.string())),  # of a pass: the runs that take a file
    ]
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The input files of a run, as they were when it began."""

    files: tuple[InputFile, ...]
    """to read, in order"""
    rejected: Mapping[str, str]
    """reasons by URI of the files that cannot be read by their names"""

    def to_rows(self) -> list[Row]:
        """The files as rows of a list."""
        rejected = [{"uri": uri, "rejected": reason} for uri, reason in self.rejected.items()]
        return [*map(asdict, self.files), *rejected]

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> Listing:
        """The files whose rows `to_rows` returned."""
        files = tuple(_file_of(row) for row in rows if row["rejected"] is None)
        return cls(files, {row["uri"]: row["rejected"] for row in rows if row["rejected"] is not None})


@dataclass(frozen=True)
class FileGroup:
    """Input files of a pass that the same runs take."""

    runs: tuple[str, ...]
    files: tuple[InputFile, ...]
    """in the order of the list"""


@dataclass(frozen=True)
class ListingPlan:
    """The list of the input files in a plan."""

    listing: str
    """key of the list in the folder of the run or the pass"""
    sha256: str
    """digest of the list, in hexadecimal digits"""
    skipped: int = 0
    """files that are left out of the list, since other nights have classified them"""

    @classmethod
    def write(cls, store: Store, number: int, rows: Sequence[Row], skipped: int = 0) -> ListingPlan:
        """Write a list under a name with the number of the driver, which no other driver replaces."""
        key, data = f"files-{number:06d}.parquet", to_parquet(pa.Table.from_pylist(list(rows), schema=_SCHEMA))
        store.write(key, data)
        return cls(key, hashlib.sha256(data).hexdigest(), skipped)

    def read(self, store: Store) -> list[Row]:
        """The rows of the list. Raises UserError if it is missing or damaged."""
        data = store.read(self.listing)
        if data is None or hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{store.uri}/{self.listing} is missing or damaged; start over with --restart")
        rows: list[Row] = pq.read_table(io.BytesIO(data)).to_pylist()
        return rows


def read_run_plan(run: Store) -> StagePlan[ListingPlan]:
    """The plan of a run from its folder. Raises UserError if it is not there."""
    plan = read_plan(run, ListingPlan)
    if plan is None:
        raise UserError(f"{run.uri} has no plan, so it is unknown what the run has read")
    return plan


def read_listing(run: Store) -> Listing:
    """The files of a run from its folder. Raises UserError if they are not there."""
    return Listing.from_rows(read_run_plan(run).derived.read(run))


def to_pass_rows(listings: Mapping[str, Listing]) -> list[Row]:
    """The files that the runs of a pass read, given by run, in order of URI: as rows with the runs that take each."""
    takers: dict[InputFile, list[str]] = {}
    for run, listing in listings.items():
        for file in listing.files:
            takers.setdefault(file, []).append(run)
    ordered = sorted(takers, key=lambda file: file.uri)
    return [{**asdict(file), "runs": takers[file]} for file in ordered]


def group_by_runs(rows: Sequence[Row]) -> list[FileGroup]:
    """The files of a pass in groups that the same runs take, in the order of their first files."""
    groups: dict[tuple[str, ...], list[InputFile]] = {}
    for row in rows:
        groups.setdefault(tuple(row["runs"]), []).append(_file_of(row))
    return [FileGroup(runs, tuple(files)) for runs, files in groups.items()]


def _file_of(row: Row) -> InputFile:
    return InputFile(row["uri"], row["kind"], row["size"], row["version"])
