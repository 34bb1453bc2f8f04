"""Classify a batch of documents with one version of the model; every row becomes a prediction or a dead letter."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from pipelines.data import input_files
from pipelines.data.intake import NightPlan, plan_intake, plan_night
from pipelines.data.kept_columns import check_declared_types, check_kept_names, schema_of, type_text
from pipelines.data.shards import Shard
from pipelines.nightly.classify_step import CALIBRATION, PROFILE, ClassifyJob, ClassifyStep, data_layout
from pipelines.nightly.dedup import DuplicateRows, DuplicateStep, collect_duplicates, plan_partitions
from pipelines.nightly.drift_check import measure_drift
from pipelines.nightly.finish import (
    KEPT,
    ClassifiedNight,
    Driver,
    build_report,
    check_files,
    check_rows,
    find_finished,
    finish_night,
    publish,
    reconcile,
    show_reports,
)
from pipelines.nightly.intake_step import IDS, IntakeStep
from pipelines.nightly.night_report import NightReport
from pipelines.nightly.run_records import ClassifyCounts, DuplicateCounts, IntakeCounts
from pipelines.nightly.shadow import ShadowSpec, choose_shadow, resolve_shadow
from pipelines.nightly.tables.night_records import lease_model
from pipelines.nightly.tables.night_tables import (
    PREDICTIONS,
    NightTables,
    check_kept_columns,
)
from pipelines.nightly.tables.old_layout import refuse_old_layout
from pipelines.nightly.tables.publication import claim
from pipelines.nightly.tables.resume import NightRequest, choose_run, find_unfinished
from pipelines.registry.night_summary import NightSummary, ShadowSummary
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.delta_table import require_hard_links
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardCounts, ShardOutcome
from pipelines.workers import weights_cache
from pipelines.workers.artifact_copy import ArtifactCopy
from pipelines.workers.map_shards import Step, describe_backbone, map_shards
from pipelines.workers.ray_cluster import shared_ray_session
from spin.errors import SpinError, UserError
from spin.heads import persistence
from spin.heads.persistence import ClassifierMetadata
from spin.monitor.agreement import ShadowAgreement, total_agreement
from spin.monitor.drift import Drift
from spin.settings import DataSettings, Settings

_log = logging.getLogger(__name__)
FEW_IDS = 200_000
"""number of ids that the driver compares in less time than workers need to start"""
FEW_BYTES = 16_000_000
"""bytes of input that the driver takes in likewise"""
FEW_FILES = 500
"""number of input files likewise"""
_BYTES_PER_DOCUMENT = 500
"""rough size of a document, for the progress of the intake"""

C = TypeVar("C", bound=ShardCounts)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class _NightModels:
    """The model of a night and its shadow, downloaded."""

    registry: Registry
    """registry of both versions"""
    version: str
    """version of the model"""
    metadata: ClassifierMetadata
    """metadata of the model"""
    folder: Path
    """folder that contains `model/` and, if there is a shadow, `shadow/`"""
    shadow: ShadowSpec | None
    """the shadow, None without one"""


def run_classify(
    settings: Settings,
    registry: Registry,
    source: str,
    output: str,
    *,
    model: str | None = None,
    shadow: str | None = None,
    night: str | None = None,
    incremental: bool = False,
    restart: bool = False,
) -> NightReport:
    """Classify a batch, publish it in the tables of `output` and return its report.

    The run of the date `night`, by default of today, goes on if there is one; with `restart`, a new one begins. With
    `incremental`, files are skipped that the nights of the model of other dates have classified, by path, size and
    ETag. The version of the model is resolved once. Readers see the night in one commit at the end, or the one that was
    there before. A second version as `shadow` changes none of this; rows on which the two differ are in the table
    `disagreements`.

    Raises HeldError if another run of the model is at work in the output, or has taken over. Raises BadRowsError, and
    publishes nothing, if more rows or files than the settings allow could not be classified. Raises UnavailableError if
    the store does not answer; the same command then resumes.
    """
    day, out = parse_date(night), _open_output(source, output)
    source = input_files.normalise_source(source)
    check_kept_names(settings.data)
    settings = weights_cache.with_engine(settings, "classify")
    version = registry.resolve(model)
    shadow_version = None if shadow is None else resolve_shadow(registry, shadow, version)
    rejected: dict[str, str] = {}
    files = input_files.list_files(source, bad=rejected, allow_empty=True)
    tables = NightTables(out)
    require_hard_links(out)
    with lease_model(out, registry.name) as lease, tempfile.TemporaryDirectory() as scratch, shared_ray_session():
        models = _download_models(settings, registry, version, shadow_version, Path(scratch))
        token = claim(tables, registry.name, retry_seconds=settings.ray.retry_seconds)
        if night is None:
            _name_unfinished(tables, registry.name, day)
        check_declared_types(settings.data, _kept_types(tables, settings.data))
        request = NightRequest(
            date=day,
            model=registry.name,
            model_version=version,
            metadata=_metadata(settings, models, source),
            files=files,
            rejected=rejected,
            incremental=incremental,
            restart=restart,
        )
        with _overtaken_first(lease):
            driver = Driver(settings, tables, lease, token, choose_run(tables, token, request))
            report = _run_night(driver, models)
            registry.log_night(version, _summary(report), show_reports(driver, report))
        return report


def _open_output(source: str, output: str) -> Store:
    """The output of a night. Raises UserError if it is within the input, or if it holds nights of version 0.2."""
    input_files.check_output_outside(source, output)
    out = Store(output)
    refuse_old_layout(out)
    return out


@contextmanager
def _overtaken_first(lease: Lease) -> Iterator[None]:
    """Raise HeldError in place of another error if another driver has taken over.

    It may have published the run of this one and deleted what nobody needs then, so the error may follow from that.
    """
    try:
        yield
    except HeldError:
        raise
    except SpinError as error:
        try:
            lease.check()
        except HeldError as overtaken:
            raise overtaken from error
        except SpinError:
            _log.debug("the lease could not be checked after an error", exc_info=True)
        raise


def _run_night(driver: Driver, models: _NightModels) -> NightReport:
    """Do what is left of a night, publish it and return its report."""
    driver.lease.check()
    finished = find_finished(driver)
    if finished is None:
        night = _classify(driver, models)
        report = build_report(
            driver,
            night,
            classes=models.metadata.classes,
            drift=_measure_drift(driver, models, night),
            shadow=_total_agreement(models, night),
        )
        check_files(driver.settings.classify, night.quarantined, report.files.total)
        check_rows(driver.settings.classify, report.counts.reasons, report.counts.rows)
        finished = finish_night(driver, night, report)
    report, record = finished
    if record is None:
        _log.warning(
            "%s: the night of %s is published (run %s), so nothing was computed; --restart begins a new run",
            driver.tables.out.uri,
            report.date,
            report.run,
        )
    else:
        publish(driver, record)
    return report


def _download_models(
    settings: Settings, registry: Registry, version: str, shadow_version: str | None, folder: Path
) -> _NightModels:
    """Download the model and the shadow to `folder`. Raises UserError if the shadow does not fit the model."""
    metadata = persistence.read_metadata(_download(registry, version, folder / "model"))
    shadow = None
    if shadow_version is not None:
        shadow_folder = _download(registry, shadow_version, folder / "shadow")
        shadow = choose_shadow(shadow_version, shadow_folder, metadata, settings)
    return _NightModels(registry, version, metadata, folder, shadow)


def _download(registry: Registry, version: str, folder: Path) -> Path:
    folder.mkdir()
    registry.download(version, folder)
    return folder


def _classify(driver: Driver, models: _NightModels) -> ClassifiedNight:
    """Take in the files of a run, look for duplicate ids if the settings ask for it, and classify all shards."""
    rejected = dict(driver.run.listing.rejected)
    tasks = plan_intake(driver.run.listing.files, driver.settings.data, bad=rejected)
    taken_in = _take_in(driver, tasks)
    plan = _plan_shards(driver, taken_in)
    _check_intake(driver, ClassifiedNight(plan, rejected, ()), taken_in)
    documents = sum(shard.documents for shard in plan.shards)
    duplicates = _find_duplicates(driver, plan, taken_in, documents)
    job = _share_models(driver, models, duplicates, schema_of(plan.types))
    outcomes = _map_stage(
        driver,
        "classify",
        plan.shards,
        ClassifyCounts,
        ClassifyStep,
        job,
        driver.settings,
        documents=documents,
        store=driver.tables.out,
        layout=data_layout(driver.run.record.run),
        backbone=describe_backbone(driver.settings.backbone),
    )
    driver.lease.check()
    night = ClassifiedNight(plan, rejected, outcomes)
    reconcile(night)
    return night


def _take_in(driver: Driver, tasks: Sequence[Shard]) -> list[ShardOutcome[IntakeCounts]]:
    """Read and check all files of the run."""
    data, files = driver.settings.data, driver.run.listing.files
    size = sum(file.size for file in files)
    return _map_stage(
        driver,
        "intake",
        tasks,
        IntakeCounts,
        IntakeStep,
        driver.run.store,
        data,
        driver.settings.ray.shard_documents,
        driver.token,
        documents=size // _BYTES_PER_DOCUMENT,
        here=size <= FEW_BYTES and len(files) <= FEW_FILES,
    )


def _plan_shards(driver: Driver, taken_in: Sequence[ShardOutcome[IntakeCounts]]) -> NightPlan:
    """The shards of a run. The types of its kept columns are settled once. Raises UserError if a table has others."""
    run, tables, data = driver.run.store, driver.tables, driver.settings.data
    known = run.read_json(KEPT) or _kept_types(tables, data)
    reports = [outcome.counts.report for outcome in taken_in]
    plan = plan_night(reports, data, driver.settings.ray.shard_documents, known=known)
    check_kept_columns(tables, schema_of(plan.types))
    run.create(KEPT, json.dumps(plan.types).encode())
    return replace(plan, types=run.read_json(KEPT) or plan.types)


def _kept_types(tables: NightTables, data: DataSettings) -> dict[str, str]:
    """The types, as text, of the kept columns that the table of predictions has."""
    schema = tables.open(PREDICTIONS).schema
    return {name: type_text(schema.field(name).type) for name in data.keep if name in schema.names}


def _check_intake(driver: Driver, night: ClassifiedNight, taken_in: Sequence[ShardOutcome[IntakeCounts]]) -> None:
    """Raise BadRowsError, before hours of work, if it is known by now that too little can be classified.

    A column that is no id ends here: all rows of a task but one per value are repeated.
    """
    allowed, bad = driver.settings.classify, night.quarantined
    check_files(allowed, bad, len({file.uri for file in night.plan.files} | set(bad)) + driver.run.plan.derived.skipped)
    reports = [(outcome.counts.repeated, outcome.counts.report) for outcome in taken_in]
    repeated = sum(count for count, report in reports if bad.keys().isdisjoint(file.uri for file in report.files))
    check_rows(allowed, {"repeated_id": repeated}, sum(shard.documents for shard in night.plan.shards))


def _find_duplicates(
    driver: Driver, plan: NightPlan, taken_in: Sequence[ShardOutcome[IntakeCounts]], documents: int
) -> DuplicateRows:
    """The rows whose id another row has; none where ids are trusted."""
    run, data, shards = driver.run.store, driver.settings.data, len(plan.shards)
    if data.ids == "trusted" or not shards:
        return DuplicateRows.none(run)
    partitions, keys = plan_partitions(documents), [outcome.file_key(IDS) for outcome in taken_in]
    outcomes = _map_stage(
        driver,
        "repeats",
        partitions,
        DuplicateCounts,
        DuplicateStep,
        run / "intake",
        keys,
        replace(plan, files=()),
        data,
        len(partitions),
        documents=documents,
        here=documents <= FEW_IDS,
    )
    return collect_duplicates(run, outcomes, shards, driver.token)


def _map_stage(
    driver: Driver,
    stage: str,
    work: Sequence[Shard],
    counts_type: type[C],
    make: Callable[..., Step[C]],
    *args: Any,
    documents: int,
    store: Store | None = None,
    layout: LogLayout = LogLayout(),  # noqa: B008
    backbone: str | None = None,
    here: bool = False,
) -> list[ShardOutcome[C]]:
    """Map a step over shards; the log of the stage is by default in a folder of its own in the folder of the run."""
    ray = driver.settings.ray.for_stage("classify")
    return map_shards(
        make,
        args,
        work,
        driver.run.store / stage if store is None else store,
        ray if backbone is not None else ray.model_copy(update={"gpus_per_worker": 0}),
        counts_type=counts_type,
        stage=stage,
        documents=documents,
        lease=driver.lease,
        here=here,
        token=driver.token,
        layout=layout,
        backbone=backbone,
    )


def _share_models(driver: Driver, models: _NightModels, duplicates: DuplicateRows, kept: pa.Schema) -> ClassifyJob:
    """Write the artifacts to the store of the run and announce the weights, so that every worker can load them."""
    settings, run = driver.settings, driver.run
    calibration = {}
    if settings.backbone.dtype == "int8":
        calibration[CALIBRATION] = json.dumps(models.registry.calibration()).encode()

    def copy(name: str) -> ArtifactCopy:
        files = {file: (models.folder / name / file).read_bytes() for file in (persistence.CONFIG, persistence.TENSORS)}
        return ArtifactCopy.write(run.store / f"{name}/{driver.token:06d}", files | calibration)

    weights_cache.publish(settings, models.metadata.backbone_digest)
    job = ClassifyJob(run.record, copy("model"), kept, duplicates)
    if models.shadow is None:
        return job
    weights_cache.publish(models.shadow.settings(settings), models.shadow.digest)
    return replace(job, shadow=models.shadow, shadow_model=copy("shadow"))


def _measure_drift(driver: Driver, models: _NightModels, night: ClassifiedNight) -> list[Drift]:
    """The drift of the classified documents from the reference of the model."""
    settings = driver.settings
    return measure_drift(
        driver.tables.out,
        [key for outcome in night.readable for key in outcome.files if key.endswith(PROFILE)],
        models.folder / "model",
        settings.choose,
        settings.classify.max_psi,
        early=settings.classify.cascade,
    )


def _total_agreement(models: _NightModels, night: ClassifiedNight) -> ShadowAgreement | None:
    """The agreement with the shadow over the files that could be read, None without a shadow."""
    if models.shadow is None:
        return None
    counts = [outcome.counts.shadow for outcome in night.readable if outcome.counts.shadow is not None]
    return total_agreement(models.shadow.version, models.metadata.multilabel, counts)


def _summary(report: NightReport) -> NightSummary:
    """The figures of a night that MLflow logs."""
    counts, shadow = report.counts, report.shadow
    return NightSummary(
        date=report.date,
        run=report.run,
        output=report.output,
        fingerprint=report.fingerprint,
        seconds=report.seconds,
        rows=counts.rows,
        predicted=counts.predicted,
        abstained=counts.abstained,
        dead=counts.dead,
        tokens=counts.tokens,
        truncated=counts.truncated,
        windows=counts.windows,
        unread_tokens=counts.unread_tokens,
        depths=counts.depths,
        quarantined_files=report.files.quarantined,
        psi={drift.name: drift.psi for drift in report.drift},
        shadow=None if shadow is None else ShadowSummary(shadow.version, shadow.agreement),
    )


def _metadata(settings: Settings, models: _NightModels, source: str) -> dict[str, object]:
    """Everything that changes predictions: not the number of workers, logging or the permitted failures."""
    registry, version, digest = models.registry, models.version, models.metadata.backbone_digest
    metadata: dict[str, object] = {
        "model": {"name": registry.name, "version": version, "backbone": digest},
        "choose": settings.choose,
        "decision": settings.decision.model_dump(),
        "backbone": weights_cache.activation_settings(settings.backbone),
        "data": {**settings.data.model_dump(include={"id", "text", "ids", "keep"}), "input": source},
        "shard_documents": settings.ray.shard_documents,
        "cascade": settings.classify.cascade,
        "dead_letter_text": settings.classify.dead_letter_text,
    }
    if settings.classify.reasons:  # without them these are the metadata of releases that knew none
        metadata["reasons"] = settings.classify.reasons
    return metadata if models.shadow is None else {**metadata, "shadow": models.shadow.metadata()}


def _name_unfinished(tables: NightTables, model: str, day: str) -> None:
    """Log the last unfinished night before a date: a command that was to resume it needs its date and options."""
    unfinished = find_unfinished(tables, model, day)
    if unfinished:
        run = unfinished[-1]
        more = f" ({len(unfinished) - 1} earlier ones too)" if len(unfinished) > 1 else ""
        _log.warning(
            "%s: run %s is unfinished%s; this command is for the night of %s, to resume the other run it again with "
            "--date %s%s",
            tables.out.uri,
            run.run,
            more,
            day,
            run.date,
            " --incremental" if run.incremental else "",
        )


def parse_date(night: str | None) -> str:
    """Return a date as YYYY-MM-DD, today in UTC for None.

    Raises UserError for anything that is not such a date, or is after tomorrow in UTC: a night in the future would make
    all nights until then look late. Tomorrow has begun east of Greenwich.
    """
    today = datetime.now(UTC).date()
    if night is None:
        return today.isoformat()
    try:
        day = date.fromisoformat(night) if _DATE.fullmatch(night) else None
    except ValueError:
        day = None
    if day is None:
        raise UserError(f"--date {night}: expected a day as YYYY-MM-DD")
    if day > today + timedelta(days=1):
        raise UserError(f"--date {night} is in the future: expected at latest tomorrow in UTC; today is {today}")
    return day.isoformat()
