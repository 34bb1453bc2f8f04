"""Finish a night: check what was classified, write its records, publish it and show its reports."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.intake import NightPlan
from pipelines.data.spool import FORGOTTEN
from pipelines.nightly.report.night_report import (
    LISTED_FILES,
    REPORT,
    EarlierNight,
    FileCounts,
    NightReport,
    QuarantinedFile,
    create_report,
    find_earlier_night,
    find_report,
    measure_throughput,
    slowest_shards,
    total_counts,
)
from pipelines.nightly.report.quality_check import NightQuality
from pipelines.nightly.report.run_report import render_reports
from pipelines.nightly.report.throughput import busy_seconds
from pipelines.nightly.review.checked_labels import list_scores
from pipelines.nightly.steps.classify_job import ENDINGS, SAMPLE
from pipelines.nightly.steps.classify_step import work_digest
from pipelines.nightly.steps.run_records import ClassifyCounts
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS, NightRecord, find_night, finish_run
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    INPUTS,
    PREDICTIONS,
    QUARANTINED,
    TAKEN,
    NightTables,
)
from pipelines.nightly.tables.publication import (
    InputRow,
    publish_night,
    published_files,
    require_complete,
    write_empty_predictions,
    write_inputs,
)
from pipelines.nightly.tables.resume import ChosenRun
from pipelines.service_errors import BadRowsError, UnavailableError
from pipelines.storage.delta_table import DataFile
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardOutcome
from spin.errors import SpinError
from spin.monitor.agreement import ShadowAgreement
from spin.monitor.drift import Drift
from spin.pages.number_format import counted
from spin.settings import ClassifySettings, Settings

_log = logging.getLogger(__name__)
KEPT = "kept.json"
"""record of the kept columns of a run with their types"""
_WORK = ("spool/", "model/", "shadow/", "attempts/")
"""folders of a run that nobody needs once it is published; the spool holds the texts of the input"""
_SCORED = 30
"""nights with checked labels in a report"""
Outcomes = Sequence[ShardOutcome[ClassifyCounts]]


@dataclass(frozen=True)
class Driver:
    """What a command holds while it works on a night."""

    settings: Settings
    """settings of the night, with an engine"""
    tables: NightTables
    """tables of the output"""
    lease: Lease
    """lease on the nights of the model"""
    token: int
    """number of its claim"""
    run: ChosenRun
    """the run"""


@dataclass(frozen=True)
class ClassifiedNight:
    """A run all of whose shards are classified."""

    plan: NightPlan
    """its shards and files"""
    rejected: Mapping[str, str]
    """reasons by URI of the files that the intake did not read"""
    outcomes: Outcomes
    """by shard"""

    @cached_property
    def quarantined(self) -> Mapping[str, str]:
        """The reason for each file that could not be read, by URI, in order of URI."""
        unreadable = {file.uri: file.reason for file in self.plan.files if file.reason is not None}
        return dict(sorted({**self.rejected, **unreadable}.items()))

    def input_rows(self, run: ChosenRun) -> list[InputRow]:
        """A row per input file that the run was to read."""
        listed = {file.uri: file for file in run.listing.files}
        rows = [
            InputRow(file.uri, file.size, file.version, file.rows, TAKEN)
            if file.reason is None
            else InputRow(file.uri, file.size, file.version, 0, QUARANTINED, file.reason)
            for file in self.plan.files
        ]
        for uri, reason in self.rejected.items():
            size, version = (listed[uri].size, listed[uri].version) if uri in listed else (0, "")
            rows.append(InputRow(uri, size, version, 0, QUARANTINED, reason))
        return rows


def reconcile(night: ClassifiedNight) -> None:
    """Raise SpinError unless every row of every planned shard is predicted or a dead letter, once."""
    shards, outcomes = night.plan.shards, night.outcomes
    if len(shards) != len(outcomes):
        raise SpinError(f"classify: {len(shards)} shards were planned, {len(outcomes)} are committed; run it again")
    for shard, outcome in zip(shards, outcomes, strict=True):
        counts = outcome.counts
        accounted = counts.predicted + counts.dead
        if not accounted == counts.rows == shard.documents or counts.work != work_digest(shard):
            raise SpinError(
                f"classify: shard {shard.name} ({counts.uri}): {shard.documents} rows were planned, "
                f"{counts.rows} read, {accounted} predicted or dead; nothing is published. Start over with --restart"
            )


def check_files(allowed: ClassifySettings, quarantined: Mapping[str, str], total: int) -> None:
    """Raise BadRowsError if more of the listed files than the settings allow could not be read."""
    if len(quarantined) > allowed.max_bad_files * total:
        raise BadRowsError(
            f"{len(quarantined):,} of {counted(total, 'file')} cannot be classified, more than classify.max_bad_files "
            f"{allowed.max_bad_files} allows: {next(iter(quarantined.values()))}; mend them and start over with "
            "--restart, or raise it and run again"
        )


def check_rows(
    allowed: ClassifySettings, reasons: Mapping[str, int], rows: int, name_rows: Callable[[], str] = lambda: ""
) -> None:
    """Raise BadRowsError if more rows than the settings allow are dead letters; `reasons` counts these by reason.

    Forgotten documents are left out on purpose, so they do not count. `name_rows` names the first rows for the message.
    """
    reasons = {reason: count for reason, count in reasons.items() if reason != FORGOTTEN}
    dead = sum(reasons.values())
    if dead > allowed.max_dead_fraction * rows:
        listed = ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common(4))
        named = name_rows()
        places = f": {named}" if named else ""
        raise BadRowsError(
            f"{dead:,} of {counted(rows, 'row')} cannot be classified ({listed}), more than classify.max_dead_fraction "
            f"{allowed.max_dead_fraction} allows{places}; mend them and start over with --restart, or raise it and run "
            "again"
        )


def find_finished(driver: Driver) -> tuple[NightReport, NightRecord | None] | None:
    """The report of a run that is finished, and what it publishes; None if there is work left.

    What a run publishes is None if it is published already. Raises UserError if a file of a published run is missing.
    """
    run, tables = driver.run, driver.tables
    report = find_report(run.store)
    if report is None:
        return None
    if run.published:
        record = run.record
        files = published_files(tables, date=record.date, model=record.model, run=record.run)
        require_complete(tables, record.run, files)
        return report, None
    night = find_night(tables.out, run.record.run)
    return None if night is None else (report, night)


def finish_night(driver: Driver, night: ClassifiedNight, report: NightReport) -> tuple[NightReport, NightRecord]:
    """Write the records of a classified run: its report, its input files, and the files that it publishes.

    Each is created only if there is none, and returned as it is stored.
    """
    tables, record, token = driver.tables, driver.run.record, driver.token
    kept = kept_schema_of(driver)
    driver.lease.check()
    report = create_report(driver.run.store, report)
    files: dict[str, list[DataFile]] = {}
    for table, file in _data_files(night.outcomes):
        files.setdefault(table, []).append(file)
    if PREDICTIONS not in files:
        files[PREDICTIONS] = [write_empty_predictions(tables, record, token, kept)]
    files[INPUTS] = [write_inputs(tables, record, token, night.input_rows(driver.run))]
    return report, finish_run(tables.out, record, token=token, files=files)


def publish(driver: Driver, night: NightRecord) -> None:
    """Publish a finished run. Raises HeldError if another driver has taken over."""
    driver.lease.check()
    publish_night(driver.tables, night, token=driver.token, kept=kept_schema_of(driver))


def show_reports(driver: Driver, report: NightReport) -> Mapping[str, bytes]:
    """Write the reports of a published night and return them by name; nothing depends on them.

    They are in the folder of the run, and at the top of the output if no later night is there.
    """
    reports = render_reports(report)
    out, run = driver.tables.out, driver.run
    try:
        newest = find_newest_night(list_nights(driver.tables))
        for name, data in reports.items():
            if name != REPORT:
                run.store.write(name, data)
            if newest is not None and newest.run == run.record.run:
                out.write(name, data)
    except UnavailableError:
        _log.warning("%s: the night is published, but its reports could not be written", out.uri)
        _log.debug("the reports could not be written", exc_info=True)
    return reports


def delete_work(folder: Store) -> None:
    """Delete what a run or a pass has worked with from its folder, once its nights are published."""
    folder.delete_many([key for key in folder.list() if is_work(key)])


def is_work(key: str) -> bool:
    """Whether nobody needs a file in the folder of a run or a pass once its nights are published."""
    return key.startswith(_WORK) or "/attempts/" in key or key.endswith((".ids", f".{SAMPLE}"))


def build_report(
    driver: Driver,
    night: ClassifiedNight,
    *,
    classes: Sequence[str],
    drift: Sequence[Drift],
    quality: NightQuality,
    shadow: ShadowAgreement | None,
) -> NightReport:
    """The report of a classified run."""
    run, rows = driver.run, night.input_rows(driver.run)
    taken = sum(row.status == TAKEN for row in rows)
    return NightReport(
        fingerprint=run.fingerprint,
        date=run.record.date,
        run=run.record.run,
        output=driver.tables.out.uri,
        model=run.record.model,
        model_version=run.record.model_version,
        token=driver.token,
        incremental=bool(run.plan.metadata["incremental"]),
        classes=tuple(classes),
        seconds=round(busy_seconds(night.outcomes), 1),
        drift=tuple(drift),
        quality=quality.estimate,
        quality_withdrawn=quality.withdrawn,
        scored=tuple(list_scores(driver.tables, run.record.model, most=_SCORED)),
        max_error=driver.settings.decision.max_error,
        before=_find_night_before(driver),
        shadow=shadow,
        counts=total_counts([outcome.counts for outcome in night.outcomes]),
        files=FileCounts(taken, run.plan.derived.skipped, len(rows) - taken),
        quarantined=tuple(QuarantinedFile(*each) for each in list(night.quarantined.items())[:LISTED_FILES]),
        shards=len(night.outcomes),
        throughput=measure_throughput(night.outcomes),
        slowest=slowest_shards(night.outcomes, [shard.index for shard in night.plan.shards]),
    )


def kept_schema_of(driver: Driver) -> pa.Schema:
    """The kept columns of a run whose intake has ended."""
    return schema_of(driver.run.store.read_json(KEPT) or {})


def _data_files(outcomes: Outcomes) -> Iterator[tuple[str, DataFile]]:
    """The files of shards with their tables."""
    for outcome in outcomes:
        counts = outcome.counts
        differing = 0 if counts.shadow is None else counts.shadow.compared - counts.shadow.agreed
        rows = {PREDICTIONS: counts.predicted, DEAD_LETTERS: counts.dead, DISAGREEMENTS: differing}
        for key, file in outcome.files.items():
            table, _, path = key.partition("/")
            if table in ENDINGS:
                yield table, DataFile(path, file.bytes, rows[table])


def _find_night_before(driver: Driver) -> EarlierNight | None:
    """The night of the model that precedes this one."""
    record = driver.run.record
    earlier = (night for night in list_nights(driver.tables) if night.date < record.date)
    before = find_newest_night(earlier, model=record.model)
    return None if before is None else find_earlier_night(driver.tables.out / f"{RUNS}/{before.run}")
