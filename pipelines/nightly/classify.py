"""Classify a batch of documents with one version of the model; every row becomes a prediction or a dead letter."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from pipelines.data import input_files, sharding
from pipelines.data.readers import Shard
from pipelines.nightly.classify_step import CALIBRATION, PROFILE, ClassifyStep
from pipelines.nightly.dedup import DigestStep, DuplicateStep, plan_partitions
from pipelines.nightly.drift_check import measure_drift
from pipelines.nightly.publish import (
    BatchRun,
    NightlyRun,
    check_unchanged,
    read_manifest,
    read_night_before,
    readable_outcomes,
    taken_by,
)
from pipelines.nightly.run_records import FORMAT, ClassifyCounts, DigestCounts, DuplicateCounts, RunManifest, RunPlan
from pipelines.nightly.run_report import render_reports
from pipelines.nightly.shadow import ShadowSpec, choose_shadow, resolve_shadow
from pipelines.nightly.throughput import busy_seconds
from pipelines.registry.night_summary import NightSummary, ShadowSummary
from pipelines.registry.versions import Registry
from pipelines.service_errors import BadRowsError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from pipelines.storage.stage_plan import StagePlan
from pipelines.workers import weights_cache
from pipelines.workers.map_shards import Step, map_shards
from pipelines.workers.ray_cluster import shared_ray_session
from spin.errors import UserError
from spin.heads import persistence
from spin.heads.persistence import ClassifierMetadata
from spin.monitor.agreement import ShadowAgreement, total_agreement
from spin.monitor.drift import Drift
from spin.settings import Settings

FEW_IDS = 200_000
"""number of ids that the driver reads in less time than workers need to start"""

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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the folders."""
        return ("model",) if self.shadow is None else ("model", "shadow")


def run_classify(
    settings: Settings,
    registry: Registry,
    source: str,
    output: str,
    *,
    model: str | None = None,
    shadow: str | None = None,
    night: str | None = None,
    since: str | None = None,
    restart: bool = False,
) -> RunManifest:
    """Classify a batch, publish it under `output` and return the manifest.

    Files that the latest night of the output `since` has already taken, by path, size and ETag, are skipped. The
    version of the model is resolved once. Until the manifest is written, all results are in `_runs/`. Then they are
    moved to `predictions/date=DATE/` and `dead_letters/date=DATE/`, and `latest` is written last. A second version as
    `shadow` changes none of this; rows on which the two differ are published in `disagreements/date=DATE/`.

    Raises HeldError if another run is at work in the output. Raises BadRowsError, and publishes nothing, if more rows
    or files than the settings allow could not be classified. Raises UnavailableError if the store does not answer; the
    same command then resumes.
    """
    date = parse_date(night)
    settings = weights_cache.with_engine(settings, "classify")
    out = Store(output)
    version = registry.resolve(model)
    shadow_version = None if shadow is None else resolve_shadow(registry, shadow, version)
    rejected: dict[str, str] = {}
    files = input_files.list_files(source, bad=rejected)
    taken = taken_by(read_manifest(since)) if since else []
    with Lease(out) as lease, tempfile.TemporaryDirectory() as scratch, shared_ray_session():
        models = _download_models(settings, registry, version, shadow_version, Path(scratch))
        nightly_run = NightlyRun(out, date, lease)
        run, plan = nightly_run.begin(
            _metadata(settings, models, source),
            files,
            lambda new: _plan(settings, new, rejected),
            taken=taken,
            restart=restart,
        )
        manifest = run.finished(plan)
        if manifest is None:
            _share_models(settings, run, models)
            outcomes = _classify_shards(settings, run, plan, models, lease)
            check_unchanged(plan, input_files.list_files(source, bad={}))
            manifest = _write_manifest(settings, nightly_run, run, plan, models=models, outcomes=outcomes)
        _check_shares(settings, manifest)
        reports = render_reports(manifest)
        nightly_run.publish(run, manifest, reports)
        registry.log_night(version, _summary(manifest), reports)
        return manifest


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


def _share_models(settings: Settings, run: BatchRun, models: _NightModels) -> None:
    """Write the artifacts to the store of the run and announce the weights, so that every worker can load them."""
    for name in models.names:
        for file in (persistence.CONFIG, persistence.TENSORS):
            run.store.write(f"{name}/{file}", (models.folder / name / file).read_bytes())
    if settings.backbone.dtype == "int8":
        for name in models.names:
            run.store.write_json(f"{name}/{CALIBRATION}", models.registry.calibration())
    weights_cache.publish(settings, models.metadata.backbone_digest)
    if models.shadow is not None:
        weights_cache.publish(models.shadow.settings(settings), models.shadow.digest)


def _classify_shards(
    settings: Settings, run: BatchRun, plan: StagePlan[RunPlan], models: _NightModels, lease: Lease
) -> list[ShardOutcome[ClassifyCounts]]:
    """Look for duplicate ids if the settings ask for it, classify all shards and return their outcomes."""
    shards, documents = plan.derived.shards, plan.derived.documents
    ray = settings.ray.for_stage("classify")
    without_gpus = ray.model_copy(update={"gpus_per_worker": 0})

    def map_stage(
        name: str,
        store: Store,
        work: Sequence[Shard],
        counts_type: type[C],
        make: Callable[..., Step[C]],
        *args: Any,
        here: bool = False,
    ) -> list[ShardOutcome[C]]:
        workers = ray if counts_type is ClassifyCounts else without_gpus
        return map_shards(
            make,
            args,
            work,
            store,
            workers,
            counts_type=counts_type,
            stage=name,
            documents=documents,
            lease=lease,
            here=here,
        )

    ids, repeats = run.store / "ids", run.store / "repeats"
    keys: list[str] = []
    unreadable: dict[str, str] = {}
    if settings.data.ids == "checked":
        partitions, names = plan_partitions(documents), [shard.name for shard in shards]
        few, count = documents <= FEW_IDS, len(partitions)
        digested = map_stage("ids", ids, shards, DigestCounts, DigestStep, settings.data, count, here=few)
        unreadable = {s.uri: o.counts.bad for s, o in zip(shards, digested, strict=True) if o.counts.bad is not None}
        searched = map_stage(
            "repeats", repeats, partitions, DuplicateCounts, DuplicateStep, ids, count, names, here=few
        )
        keys = [key for outcome in searched for key in outcome.files]
    step = run.store, models.version, settings, repeats, keys, unreadable, models.shadow
    outcomes = map_stage("classify", run.store, shards, ClassifyCounts, ClassifyStep, *step)
    lease.check()
    return outcomes


def _write_manifest(
    settings: Settings,
    nightly_run: NightlyRun,
    run: BatchRun,
    plan: StagePlan[RunPlan],
    *,
    models: _NightModels,
    outcomes: Sequence[ShardOutcome[ClassifyCounts]],
) -> RunManifest:
    """Write and return the manifest of a run, with its drift and the agreement with the shadow."""
    return run.finish(
        plan,
        outcomes,
        date=nightly_run.date,
        output=nightly_run.out.uri,
        model=models.registry.name,
        model_version=models.version,
        classes=models.metadata.classes,
        seconds=round(busy_seconds(outcomes), 1),
        drift=_measure_drift(settings, run, plan, outcomes, models),
        before=read_night_before(nightly_run.out, nightly_run.date),
        shadow=_total_agreement(models, plan, outcomes),
    )


def _measure_drift(
    settings: Settings,
    run: BatchRun,
    plan: StagePlan[RunPlan],
    outcomes: Sequence[ShardOutcome[ClassifyCounts]],
    models: _NightModels,
) -> list[Drift]:
    """Return the drift of the classified documents from the reference of the model."""
    readable = readable_outcomes(plan, outcomes)
    keys = [key for outcome in readable for key in outcome.files if key.endswith(PROFILE)]
    return measure_drift(
        run.store,
        keys,
        models.folder / "model",
        settings.choose,
        settings.classify.max_psi,
        early=settings.classify.cascade,
    )


def _total_agreement(
    models: _NightModels, plan: StagePlan[RunPlan], outcomes: Sequence[ShardOutcome[ClassifyCounts]]
) -> ShadowAgreement | None:
    """Return the agreement with the shadow over the files that could be read, None without a shadow."""
    if models.shadow is None:
        return None
    counts = [outcome.counts.shadow for outcome in readable_outcomes(plan, outcomes)]
    shards = [shard for shard in counts if shard is not None]
    return total_agreement(models.shadow.version, models.metadata.multilabel, shards)


def _summary(manifest: RunManifest) -> NightSummary:
    """Return the figures of a night that MLflow logs."""
    counts, shadow = manifest.counts, manifest.shadow
    return NightSummary(
        date=manifest.date,
        run=manifest.run,
        output=manifest.output,
        fingerprint=manifest.fingerprint,
        seconds=manifest.seconds,
        rows=counts.rows,
        predicted=counts.predicted,
        abstained=counts.abstained,
        dead=counts.dead,
        tokens=counts.tokens,
        truncated=counts.truncated,
        depths=counts.depths,
        quarantined_files=len(manifest.quarantined),
        psi={drift.name: drift.psi for drift in manifest.drift},
        shadow=None if shadow is None else ShadowSummary(shadow.version, shadow.agreement),
    )


def _plan(settings: Settings, files: list[input_files.InputFile], rejected: Mapping[str, str]) -> RunPlan:
    """Plan the shards of the files; add to the `rejected` files those that cannot be read, each with the reason."""
    unreadable = dict(rejected)
    shards = sharding.plan_shards(files, settings.ray.shard_documents, settings.data, bad=unreadable)
    return RunPlan(tuple(shards), unreadable, sum(shard.documents for shard in shards))


def _metadata(settings: Settings, models: _NightModels, source: str) -> dict[str, object]:
    """Return everything that changes predictions: not the number of workers, logging or the permitted failures."""
    registry, version, digest = models.registry, models.version, models.metadata.backbone_digest
    metadata: dict[str, object] = {
        "format": FORMAT,
        "model": {"name": registry.name, "version": version, "backbone": digest},
        "choose": settings.choose,
        "decision": settings.decision.model_dump(),
        "backbone": settings.backbone.model_dump(include=weights_cache.ACTIVATION_SETTINGS),
        "data": {**settings.data.model_dump(include={"id", "text", "ids"}), "input": source},
        "shard_documents": settings.ray.shard_documents,
        "cascade": settings.classify.cascade,
        "dead_letter_text": settings.classify.dead_letter_text,
    }
    return metadata if models.shadow is None else {**metadata, "shadow": models.shadow.metadata()}


def _check_shares(settings: Settings, manifest: RunManifest) -> None:
    """Raise BadRowsError if more files or rows than the settings allow could not be classified."""
    allowed, quarantined, counts = settings.classify, manifest.quarantined, manifest.counts
    files = len(quarantined) + len(manifest.inputs)
    if len(quarantined) > allowed.max_bad_files * files:
        raise BadRowsError(
            f"{len(quarantined)} of {files} files cannot be classified, more than "
            f"classify.max_bad_files {allowed.max_bad_files} allows: {quarantined[0].reason}; mend them and start over "
            "with --restart, or raise it and run again"
        )
    if counts.dead > allowed.max_dead_fraction * counts.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(counts.reasons).most_common(4))
        raise BadRowsError(
            f"{counts.dead} of {counts.rows} rows cannot be classified ({reasons}), more than "
            f"classify.max_dead_fraction {allowed.max_dead_fraction} allows; mend them, or raise it and run again"
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
