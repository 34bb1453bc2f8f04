"""A published night written again without the documents that are to be forgotten, as a new run that replaces the old.

`find_held` finds the rows of these documents in the files of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.nightly.night import KEPT
from pipelines.nightly.report.night_report import NightReport, find_report
from pipelines.nightly.report.run_report import render_reports
from pipelines.nightly.tables.night_records import (
    RUNS,
    Run,
    abandon_run,
    begin_run,
    find_night,
    find_runs,
    finish_run,
    revive_run,
    run_name,
)
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    PREDICTIONS,
    NightTables,
    PublishedRun,
    of_run,
)
from pipelines.nightly.tables.publication import publish_night
from pipelines.storage.delta_table import DataFile
from pipelines.storage.filesystem import store_errors
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.stage_plan import PLAN
from spin.monitor.drift import Drift

WITH_IDS = (PREDICTIONS, DEAD_LETTERS, DISAGREEMENTS)
"""tables whose rows are documents"""
_FILES_AT_ONCE = 8
"""files of a table that are read at a time"""
RunFiles = Mapping[str, Sequence[DataFile]]
"""the files of a run by table"""
HeldRows = Mapping[tuple[str, str], int]
"""number of rows of a run whose ids are forgotten, by table and path of the file; files without any are left out"""


def find_held(tables: NightTables, files: RunFiles, forgotten: ForgottenIds) -> HeldRows:
    """The rows of a run whose ids are forgotten. Raises UserError if a file of the run is missing."""
    listed = [(table, file.path) for table in WITH_IDS for file in files.get(table, ())]
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        counts = threads.map(lambda each: _count_held(tables.store(each[0]), each[1], forgotten), listed)
        return {each: count for each, count in zip(listed, counts, strict=True) if count}


def _count_held(store: Store, path: str, forgotten: ForgottenIds) -> int:
    with store_errors(f"{store.uri}/{path}"), store.open(path) as source:
        batches = pq.ParquetFile(source).iter_batches(columns=["id"])
        return sum(len(forgotten.find(batch["id"].to_pylist())) for batch in batches)


@dataclass(frozen=True)
class Rewriting:
    """A night that is written again."""

    tables: NightTables
    night: PublishedRun
    """the night, with the run that is published"""
    files: RunFiles
    """files of that run"""
    held: HeldRows
    """its rows that are left out"""
    forgotten: ForgottenIds
    """ids of these rows"""

    def publish(self, claim: int) -> Run:
        """Write the run that replaces the old one, publish it under a claim, and return its record.

        Until it is complete it counts as given up: nobody goes on with it if this process ends in between. Raises as
        `publish_night` does.
        """
        out, name = self.tables.out, run_name(self.night.date, self.night.model, claim)
        abandon_run(out, name)
        files = {table: self._write_table(table, name) for table in self.files}
        store = out / f"{RUNS}/{name}"
        _copy_plan(out / f"{RUNS}/{self.night.run}", store)
        self._write_reports(store, name, claim)
        run = finish_run(out, self._begin(claim), files)
        kept = schema_of(store.read_json(KEPT) or {})
        revive_run(out, name)
        publish_night(self.tables, run, claim=claim, kept=kept)
        return run

    def _begin(self, claim: int) -> Run:
        """The beginning of the new run, with what is known of the old one."""
        out, old = self.tables.out, self.night.run
        known = find_runs(out, [old]).get(old) or find_night(out, old)  # neither, if its folder was deleted
        return begin_run(
            out,
            date=self.night.date,
            model=self.night.model,
            model_version="" if known is None else known.model_version,
            claim=claim,
            incremental=known is not None and known.incremental,
            artifact="" if known is None else known.artifact,
        )

    def _write_table(self, table: str, run: str) -> list[DataFile]:
        """The files of a table for the new run; the predictions keep a file also where no row is left in it."""
        with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
            written = list(threads.map(lambda file: self._write_file(table, file, run), self.files[table]))
        return [file for file in written if file.rows or table == PREDICTIONS]

    def _write_file(self, table: str, file: DataFile, run: str) -> DataFile:
        """Write the remaining rows of a file of the old run as a file of the new one."""
        store, path = self.tables.store(table), f"{run}/{file.path.rpartition('/')[2]}"
        with store_errors(f"{store.uri}/{file.path}"), store.open(file.path) as source:
            rows = of_run(pq.ParquetFile(source).read(), run)
        if (table, file.path) in self.held:
            remaining = np.ones(len(rows), bool)
            remaining[self.forgotten.find(rows["id"].to_pylist())] = False
            rows = rows.filter(pa.array(remaining))
        data = to_parquet(rows)
        store.write(path, data)
        return DataFile(path, len(data), len(rows))

    def _write_reports(self, store: Store, run: str, claim: int) -> None:
        """Write the reports of the old run, if it has any, for the new one."""
        report = find_report(self.tables.out / f"{RUNS}/{self.night.run}")
        if report is None:
            return
        gone = sum(rows for (table, _), rows in self.held.items() if table == PREDICTIONS)
        report = without_documents(report, self.forgotten)
        report = replace(report, run=run, token=claim, forgotten=report.forgotten + gone)
        for name, data in render_reports(report).items():
            store.write(name, data)


def without_documents(report: NightReport, forgotten: ForgottenIds) -> NightReport:
    """A report that names no forgotten document as a cause of drift. Its figures are those of the night as it was."""
    return replace(report, drift=tuple(_without_causes(drift, forgotten) for drift in report.drift))


def _without_causes(drift: Drift, forgotten: ForgottenIds) -> Drift:
    moved = []
    for shift in drift.moved:
        gone = set(forgotten.find(shift.documents))
        moved.append(replace(shift, documents=tuple(id for at, id in enumerate(shift.documents) if at not in gone)))
    return replace(drift, moved=tuple(moved))


def _copy_plan(old: Store, new: Store) -> None:
    """Copy the plan of a run, its list of files and the types of its kept columns, as far as they are there."""
    names: Mapping[str, bytes] = old.read_many([PLAN, KEPT, *(n for n in old.list_names() if n.startswith("files-"))])
    for name, data in names.items():
        new.write(name, data)
