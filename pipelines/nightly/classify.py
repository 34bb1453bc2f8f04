"""A night: one version of the champion over a batch of documents, every row predicted or dead-lettered."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

from pipelines.data import input_files, sharding
from pipelines.data.readers import Shard
from pipelines.nightly.classify_step import CALIBRATION, PROFILE, ClassifyStep
from pipelines.nightly.dedup import DigestStep, RepeatStep, plan_partitions
from pipelines.nightly.drift_check import measure_drift
from pipelines.nightly.publish import BatchRun, NightlyRun, check_unchanged, read_manifest, taken_by, taken_of
from pipelines.nightly.run_records import ClassifyCounts, DigestCounts, DuplicateCounts, RunPlan
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
from spin.monitor.agreement import total_agreement
from spin.settings import Settings

FORMAT = 5

FEW_IDS = 200_000
"""ids that are read sooner here than actors start"""

C = TypeVar("C", bound=ShardCounts)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


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
) -> dict[str, Any]:
    """Classify a batch and publish it under `output`, giving the manifest.

    Files that the latest night of the output `since` has taken already, by path, size and ETag, are skipped.
    The version of the model is resolved once. While it runs, parts lie under `_runs/`; after the manifest, whole parts
    are put into `predictions/date=DATE/` and `dead_letters/date=DATE/`, and `latest` moves last. Another version as
    `shadow` changes none of that; rows on which it differs are put into `disagreements/date=DATE/`. Raises HeldError
    where another run works here, BadRowsError, with nothing published, for more dead letters or more files that cannot
    be read than the settings allow, UnavailableError where the store does not answer: the same command resumes.
    """
    date = parse_date(night)
    settings = weights_cache.with_engine(settings, "classify")
    out = Store(output)
    version = registry.resolve(model)
    other = None if shadow is None else resolve_shadow(registry, shadow, version)
    rejected: dict[str, str] = {}
    files = input_files.list_files(source, bad=rejected)
    taken = taken_by(read_manifest(since)) if since else []
    with Lease(out) as lease, tempfile.TemporaryDirectory() as scratch, shared_ray_session():
        folder = _fetch(registry, version, Path(scratch) / "model")
        metadata = persistence.read_metadata(folder)
        facts = _facts(settings, registry, version, metadata.backbone_digest, source)
        beside = None
        if other is not None:
            beside = choose_shadow(other, _fetch(registry, other, Path(scratch) / "shadow"), metadata, settings)
            facts["shadow"] = beside.facts()
        tonight = NightlyRun(out, date, lease)
        run, plan = tonight.begin(
            facts, files, lambda new: _plan(settings, new, rejected), taken=taken, restart=restart
        )
        manifest = run.finished(plan)
        if manifest is None:
            for kept in ("model", "shadow") if beside else ("model",):
                for name in (persistence.CONFIG, persistence.TENSORS):
                    run.store.write(f"{kept}/{name}", (Path(scratch) / kept / name).read_bytes())
            if settings.backbone.dtype == "int8":
                for kept in ("model", "shadow") if beside else ("model",):
                    run.store.write_json(f"{kept}/{CALIBRATION}", registry.calibration())
            weights_cache.publish(settings, metadata.backbone_digest)
            if beside is not None:
                weights_cache.publish(beside.settings(settings), beside.digest)
            outcomes = _run(settings, run, plan, version, beside, lease)
            check_unchanged(plan, input_files.list_files(source, bad={}))
            manifest = run.finish(
                plan,
                outcomes,
                date,
                format=FORMAT,
                output=out.uri,
                model=registry.name,
                model_version=version,
                classes=list(metadata.classes),
                seconds=round(busy_seconds(outcomes), 1),
                drift=_drift(settings, run, plan, outcomes, folder),
                before=_before(out, date),
                **_shadow(beside, metadata, plan, outcomes),
            )
        _check_shares(settings, manifest)
        reports = render_reports(manifest)
        tonight.publish(run, manifest, reports)
        registry.log_night(version, _summary(manifest), reports)
        return manifest


def _fetch(registry: Registry, version: str, folder: Path) -> Path:
    folder.mkdir()
    registry.download(version, folder)
    return folder


def _run(
    settings: Settings,
    run: BatchRun,
    plan: StagePlan[RunPlan],
    version: str,
    beside: ShadowSpec | None,
    lease: Lease,
) -> list[ShardOutcome[ClassifyCounts]]:
    """The outcomes of all shards."""
    shards, documents = plan.derived.shards, plan.derived.documents
    ray = settings.ray.for_stage("classify")
    without_gpus = ray.model_copy(update={"gpus_per_worker": 0})

    def pass_over(
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
    bad: dict[str, str] = {}
    if settings.data.ids == "checked":
        parts, names = plan_partitions(documents), [shard.name for shard in shards]
        few = documents <= FEW_IDS
        digested = pass_over("ids", ids, shards, DigestCounts, DigestStep, settings.data, len(parts), here=few)
        bad = {s.uri: o.counts.bad for s, o in zip(shards, digested, strict=True) if o.counts.bad is not None}
        searched = pass_over("repeats", repeats, parts, DuplicateCounts, RepeatStep, ids, len(parts), names, here=few)
        keys = [key for outcome in searched for key in outcome.files]
    step = run.store, version, settings, repeats, keys, bad, beside
    outcomes = pass_over("classify", run.store, shards, ClassifyCounts, ClassifyStep, *step)
    lease.check()
    return outcomes


def _drift(
    settings: Settings,
    run: BatchRun,
    plan: StagePlan[RunPlan],
    outcomes: list[ShardOutcome[ClassifyCounts]],
    model: Path,
) -> list[dict[str, Any]]:
    """This night against training."""
    keys = [key for outcome in taken_of(plan, outcomes) for key in outcome.files if key.endswith(PROFILE)]
    classify = settings.classify
    drifts = measure_drift(run.store, keys, model, settings.choose, classify.max_psi, early=classify.cascade)
    return [drift.to_json() for drift in drifts]


def _shadow(
    beside: ShadowSpec | None,
    metadata: ClassifierMetadata,
    plan: StagePlan[RunPlan],
    outcomes: list[ShardOutcome[ClassifyCounts]],
) -> dict[str, Any]:
    """What the manifest says of a shadow; nothing without one."""
    if beside is None:
        return {}
    shards = [outcome.counts.shadow for outcome in taken_of(plan, outcomes) if outcome.counts.shadow is not None]
    return {"shadow": total_agreement(beside.version, metadata.multilabel, shards).to_json()}


def _summary(manifest: dict[str, Any]) -> NightSummary:
    """What MLflow logs of a night."""
    counts, shadow = manifest["counts"], manifest.get("shadow")
    summary = None
    if shadow:
        summary = ShadowSummary(shadow["version"], shadow["agreement"] if shadow["compared"] else None)
    return NightSummary(
        **{name: manifest[name] for name in ("date", "run", "output", "fingerprint", "seconds")},
        **{name: counts[name] for name in ("rows", "predicted", "abstained", "dead", "tokens", "truncated", "depths")},
        quarantined_files=len(manifest["quarantined"]),
        psi={row["name"]: row["psi"] for row in manifest["drift"]},
        shadow=summary,
    )


def _before(out: Store, date: str) -> dict[str, Any] | None:
    """What the manifest keeps of the night before this one, if that is the latest."""
    latest = out.read_json("latest")
    manifest = out.read_json(latest["manifest"]) if latest and latest["date"] < date else None
    if manifest is None or manifest.get("format") != FORMAT:
        return None
    return {name: manifest[name] for name in ("date", "model_version", "counts")}


def _plan(settings: Settings, files: list[input_files.InputFile], rejected: dict[str, str]) -> RunPlan:
    """The shards of the files that can be read, what is wrong with the others, about how many documents there are."""
    bad = dict(rejected)
    shards = sharding.plan_shards(files, settings.ray.shard_documents, settings.data, bad=bad)
    return RunPlan(tuple(shards), bad, sum(shard.documents for shard in shards))


def _facts(settings: Settings, registry: Registry, version: str, digest: str, source: str) -> dict[str, Any]:
    """What changes predictions; not worker counts, logging or the shares that are allowed to fail."""
    return {
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


def _check_shares(settings: Settings, manifest: dict[str, Any]) -> None:
    """Raise BadRowsError where more files or rows had to be left out than the settings allow."""
    allowed, bad = settings.classify, manifest["quarantined"]
    if len(bad) > allowed.max_bad_files * (len(bad) + len(manifest["inputs"])):
        raise BadRowsError(
            f"{len(bad)} of {len(bad) + len(manifest['inputs'])} files cannot be classified, more than "
            f"classify.max_bad_files {allowed.max_bad_files} allows: {bad[0]['reason']}; mend them and start over with "
            "--restart, or raise it and run again"
        )
    counts = manifest["counts"]
    if counts["dead"] > allowed.max_dead_fraction * counts["rows"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(counts["reasons"]).most_common(4))
        raise BadRowsError(
            f"{counts['dead']} of {counts['rows']} rows cannot be classified ({reasons}), more than "
            f"classify.max_dead_fraction {allowed.max_dead_fraction} allows; mend them, or raise it and run again"
        )


def parse_date(night: str | None) -> str:
    """YYYY-MM-DD; today in UTC for None. Raises UserError."""
    if night is None:
        return datetime.now(UTC).date().isoformat()
    try:
        if _DATE.fullmatch(night):
            return date.fromisoformat(night).isoformat()
    except ValueError:
        pass
    raise UserError(f"--date {night}: expected a day as YYYY-MM-DD")
