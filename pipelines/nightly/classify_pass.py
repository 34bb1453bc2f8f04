"""Classify a pass: take in its files, look for ids that occur twice, and classify all shards for each night."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.intake import NightPlan
from pipelines.nightly.finish import ClassifiedNight
from pipelines.nightly.night_pass import NightPass, map_stage
from pipelines.nightly.pass_intake import NightPart, PassIntake, check_intake, part_of, plan_shards, take_in
from pipelines.nightly.steps.classify_job import (
    CALIBRATION,
    ENDINGS,
    PROFILE,
    SAMPLE,
    ClassifyJob,
    ModelJob,
    pass_ending,
    pass_layout,
    share_to_sample,
)
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.dedup import REPEATS, DuplicateRows, DuplicateStep, collect_duplicates, plan_partitions
from pipelines.nightly.steps.intake_step import IDS
from pipelines.nightly.steps.run_records import ClassifyCounts, DuplicateCounts, PassCounts
from pipelines.nightly.tables.passes import PassRecord
from pipelines.storage.shard_log import ShardOutcome
from pipelines.workers.map_shards import describe_backbone
from spin.errors import SpinError, UserError

FEW_IDS = 200_000
"""number of ids that the driver compares in less time than workers need to start"""


def classify_pass(shared: NightPass, waiting: Collection[str]) -> Mapping[str, ClassifiedNight | SpinError]:
    """Take in the files, look for duplicate ids if the settings ask for it, and classify all shards for each night.

    Returns the nights by model, and the error of a model whose kept columns do not fit in place of its night. `waiting`
    are the models whose nights are to be published: if it is known after the intake, before hours of work, that none of
    them can be, nothing is classified, and the errors of these are returned.
    """
    intake = take_in(shared)
    plan, refused = plan_shards(shared, intake)
    if plan is None:
        return refused
    parts = [part_of(night, plan, intake) for night in shared.nights if night.name not in refused]
    errors = refused | check_intake(parts, intake)
    if errors.keys() >= set(waiting):
        return {model: errors[model] for model in waiting}
    work = [shard for shard in plan.shards if any(part.takes(shard) for part in parts)]
    duplicates = _find_all_duplicates(shared, plan, parts, intake)
    outcomes = map_stage(
        shared,
        "classify",
        work,
        PassCounts,
        ClassifyStep,
        _share_models(shared, plan, parts, duplicates),
        shared.settings,
        documents=sum(shard.documents for shard in work),
        store=shared.tables.out,
        layout=pass_layout(shared.record),
        backbone=describe_backbone(shared.settings.backbone),
    )
    shared.lease.check()
    by_name = dict(zip((shard.name for shard in work), outcomes, strict=True))
    return refused | {part.night.name: _classified(shared, part, by_name) for part in parts}


def _find_all_duplicates(
    shared: NightPass, plan: NightPlan, parts: Sequence[NightPart], intake: PassIntake
) -> list[DuplicateRows]:
    """For each night the rows whose id another row of it has; nights that take the same files are asked about once."""
    found: dict[frozenset[int], DuplicateRows] = {}
    for part in parts:
        if part.tasks in found:
            continue
        stage, whole = REPEATS, part.shards is None
        if not whole:  # named after the first run that takes these files
            first = next(n for n, run in enumerate(shared.record.runs) if intake.tasks_of(run) == part.tasks)
            stage = f"{REPEATS}-{first}"
        own = plan if whole else plan.with_tasks(part.tasks)
        found[part.tasks] = _find_duplicates(shared, stage, own, intake)
    return [found[part.tasks] for part in parts]


def _find_duplicates(shared: NightPass, stage: str, plan: NightPlan, intake: PassIntake) -> DuplicateRows:
    """The rows whose id another row has; none where ids are trusted."""
    store, shards = shared.store, len(plan.shards)
    if shared.settings.data.ids == "trusted" or not shards:
        return DuplicateRows.none(store)
    documents = sum(shard.documents for shard in plan.shards)
    partitions, keys = plan_partitions(documents), [outcome.file_key(IDS) for outcome in intake.outcomes]
    outcomes = map_stage(
        shared,
        stage,
        partitions,
        DuplicateCounts,
        DuplicateStep,
        store / "intake",
        keys,
        replace(plan, files=()),
        len(partitions),
        documents=documents,
        here=documents <= FEW_IDS,
    )
    return collect_duplicates(store, outcomes, shards, shared.number, stage)


def _share_models(
    shared: NightPass, plan: NightPlan, parts: Sequence[NightPart], duplicates: Sequence[DuplicateRows]
) -> ClassifyJob:
    """Write the artifacts to the folder of the shared work, so that every worker can load them."""
    jobs, calibration = [], _settle_calibration(shared)
    for part, rows in zip(parts, duplicates, strict=True):
        run = part.night.driver.run.record
        driver = f"{shared.number:06d}-{shared.record.runs.index(run.run)}"
        artifact, shadow = part.night.model.share(shared.store, driver, calibration)
        documents = sum(shard.documents for shard in part.plan.shards)
        sampled = share_to_sample(shared.settings.classify, documents)
        jobs.append(ModelJob(run, artifact, rows, shadow, part.shards, sampled, part.night.model.decision))
    return ClassifyJob(tuple(jobs), schema_of(plan.types), shared.record, shared.forgotten)


def _settle_calibration(shared: NightPass) -> bytes | None:
    """The texts, as JSON, from which int8 scales are computed: those of the first model of the pass, settled once.

    A driver that goes on without this model, which may be finished, scales as the first driver did.
    """
    if shared.settings.backbone.dtype != "int8":
        return None
    store, key = shared.store, f"model/{CALIBRATION}"  # deleted with the other work of the pass
    stored = store.read(key)
    if stored is None:
        texts = json.dumps(shared.nights[0].model.registry.calibration()).encode()
        store.create(key, texts)
        stored = store.read(key) or texts
    return stored


def _classified(shared: NightPass, part: NightPart, outcomes: Mapping[str, ShardOutcome[Any]]) -> ClassifiedNight:
    """A night from the outcomes of the pass by name of shard."""
    own = [_outcome_of(shared.record, part.night.run, outcomes[shard.name]) for shard in part.plan.shards]
    return ClassifiedNight(part.plan, part.rejected, own)


def _outcome_of(record: PassRecord, run: str, outcome: ShardOutcome[PassCounts]) -> ShardOutcome[ClassifyCounts]:
    """The part of one run in the outcome of a shard. Raises UserError if it has none."""
    counts = outcome.counts.models.get(run)
    if counts is None:
        raise UserError(
            f"the pass {record.name} has a shard without the documents of run {run}, so the run cannot go on; start "
            "over with --restart"
        )
    place = record.runs.index(run)
    endings = tuple(f".{pass_ending(ending, place)}" for ending in (PROFILE, SAMPLE))
    folders = tuple(f"{table}/{run}/" for table in ENDINGS)
    files = {key: file for key, file in outcome.files.items() if key.startswith(folders) or key.endswith(endings)}
    return ShardOutcome(counts, files, outcome.tries, outcome.seconds, outcome.ended)
