"""The records of nights for observers, such as traces and lineage: what nights read and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.nightly.night import Night
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_records import Run
from pipelines.nightly.tables.night_tables import TABLES
from pipelines.storage.delta_table import DataFile
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.run_record import DataUse, RunRecord


def describe_night(night: Night) -> RunRecord:
    """The night as this process begins to work on it."""
    run = night.run
    files = run.listing.files
    read = DataUse(uri=input_of(night), kind="files", files=len(files), bytes=sum(file.size for file in files))
    model = DataUse(uri=night.name, kind="model", version=run.record.model_version)
    return RunRecord(
        run=CurrentRun(run.name, night.name),
        kind="night",
        number=night.claim,
        home=night.tables.out.uri,
        records=run.store,
        date=run.record.date,
        inputs=(read, model),
        outputs=tuple(DataUse(uri=f"{night.tables.out.uri}/{table}", kind="table") for table in TABLES),
    )


def describe_published(night: Night, report: NightReport, run: Run) -> RunRecord:
    """The night with the numbers of what it has read and written, once it is published."""
    started = describe_night(night)
    read, model = started.inputs
    read = replace(read, rows=report.counts.rows, files=report.files.taken)
    tables = zip(started.outputs, TABLES, strict=True)
    written = tuple(_add_files(use, run.files.get(table, ())) for use, table in tables)
    return replace(started, inputs=(read, model), outputs=written)


def input_of(night: Night) -> str:
    """The file, folder or glob that a night reads."""
    return str(night.run.plan.metadata["data"]["input"])


def _add_files(table: DataUse, files: Sequence[DataFile]) -> DataUse:
    """The use of a table with the numbers of what a night has written to it."""
    rows, size = sum(file.rows for file in files), sum(file.size for file in files)
    return replace(table, rows=rows, files=len(files), bytes=size)
