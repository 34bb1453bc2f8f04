"""What is reported of nights to observers, such as traces and lineage: what they read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.nightly.night import Night
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_records import Run
from pipelines.nightly.tables.night_tables import TABLES
from pipelines.storage.delta_table import DataFile
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.run_events import DataUse, RunResults, RunStart


def describe_night(night: Night) -> RunStart:
    """The night as this process begins to work on it."""
    run = night.run
    files = run.listing.files
    read = DataUse(uri=input_of(night), kind="files", files=len(files), bytes=sum(file.size for file in files))
    model = DataUse(uri=night.name, kind="model", version=run.record.model_version)
    return RunStart(
        run=CurrentRun(run.name, night.name),
        kind="night",
        number=night.claim,
        home=night.tables.out.uri,
        records=run.store,
        date=run.record.date,
        inputs=(read, model),
        outputs=tuple(DataUse(uri=_table_uri(night, table), kind="table") for table in TABLES),
    )


def describe_published(night: Night, report: NightReport, run: Run) -> RunResults:
    """What a published night has read and written."""
    start = describe_night(night)
    read = DataUse(
        uri=input_of(night),
        kind="files",
        rows=report.counts.rows,
        files=report.files.taken,
        bytes=start.inputs[0].bytes,
    )
    written = tuple(_sum_files(_table_uri(night, table), run.files, table) for table in TABLES)
    return RunResults((read, *start.inputs[1:]), written)


def input_of(night: Night) -> str:
    """The file, folder or glob that a night reads."""
    return str(night.run.plan.metadata["data"]["input"])


def _table_uri(night: Night, table: str) -> str:
    return f"{night.tables.out.uri}/{table}"


def _sum_files(uri: str, files: Mapping[str, Sequence[DataFile]], table: str) -> DataUse:
    """What a night has written to a table."""
    written = files.get(table, ())
    rows, size = sum(file.rows for file in written), sum(file.size for file in written)
    return DataUse(uri=uri, kind="table", rows=rows, files=len(written), bytes=size)
