"""Classify a pass: take in its files, look for ids that occur twice, and classify all shards for each night."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.intake import NightPlan
from pipelines.nightly.night import NightShare
from pipelines.nightly.night_pass import NightPass
from pipelines.nightly.pass_intake import PassIntake, check_intake, plan_shards, share_of, take_in
from pipelines.nightly.steps.classify_job import (
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
from pipelines.nightly.steps.counts import ClassifyCounts, PassCounts
from pipelines.nightly.steps.dedup import REPEATS, DuplicateRows, DuplicateStep, collect_duplicates, plan_partitions
from pipelines.nightly.steps.intake_step import IDS
from pipelines.nightly.tables.passes import Pass
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from pipelines.workers.map_shards import describe_backbone, map_shards
from spin.errors import SpinError, UserError

FEW_IDS = 200_000
"""number of ids that the driver compares in less time than workers need to start"""


def classify_pass(shared: NightPass, waiting: Collection[str]) -> Mapping[str, NightShare | SpinError]:
    """Take in the files, look for duplicate ids if the settings ask for it, and classify all shards for each night.

    Returns the shares of the nights by model, and the error of a model whose kept columns do not fit in place of its
    share. `waiting` are the models whose nights are to be published: if it is known after the intake, before hours of
    work, that none of them can be, nothing is classified, and the errors of these are returned.
    """
    intake = take_in(shared)
    plan, refused = plan_shards(shared, intake)
    if plan is None:
        return refused
    shares = [share_of(night, plan, intake) for night in shared.nights if night.name not in refused]
    errors = refused | check_intake(shares, intake)
    if errors.keys() >= set(waiting):
        return {model: errors[model] for model in waiting}
    shards = [shard for shard in plan.shards if any(shard.index in share.shards for share in shares)]
    duplicates = _find_all_duplicates(shared, shares, intake)
    work = shared.work(
        "classify",
        ClassifyStep,
        _share_models(shared, plan, shares, duplicates),
        shared.settings,
        counts_type=PassCounts,
        store=shared.tables.out,
        layout=pass_layout(shared.record),
        backbone=describe_backbone(shared.settings.backbone),
    )
    outcomes = map_shards(work, shards, shared.lease, documents=sum(shard.documents for shard in shards))
    shared.lease.check()
    by_name = dict(zip((shard.name for shard in shards), outcomes, strict=True))
    return refused | {share.night.name: _with_outcomes(shared, share, by_name) for share in shares}


def _find_all_duplicates(shared: NightPass, shares: Sequence[NightShare], intake: PassIntake) -> list[DuplicateRows]:
    """For each night the rows whose id another row of it has; nights that take the same files are asked about once."""
    found: dict[frozenset[int], DuplicateRows] = {}
    for share in shares:
        if share.tasks in found:
            continue
        stage = REPEATS
        if len(share.tasks) < len(intake.takers):  # named after the first run that takes these files
            first = next(n for n, run in enumerate(shared.record.runs) if intake.tasks_of(run) == share.tasks)
            stage = f"{REPEATS}-{first}"
        found[share.tasks] = _find_duplicates(shared, stage, share, intake)
    return [found[share.tasks] for share in shares]


def _find_duplicates(shared: NightPass, stage: str, share: NightShare, intake: PassIntake) -> DuplicateRows:
    """The rows whose id another row has; none where ids are trusted."""
    store, documents = shared.store, share.documents
    if shared.settings.data.ids == "trusted" or not share.shards:
        return DuplicateRows.none(store)
    partitions, keys = plan_partitions(documents), [outcome.file_key(IDS) for outcome in intake.outcomes]
    work = shared.work(
        stage,
        DuplicateStep,
        store / "intake",
        keys,
        replace(share.plan, files=()),
        len(partitions),
        counts_type=ShardCounts,
    )
    outcomes = map_shards(work, partitions, shared.lease, documents=documents, here=documents <= FEW_IDS)
    return collect_duplicates(store, outcomes, max(share.shards) + 1, shared.number, stage)


def _share_models(
    shared: NightPass, plan: NightPlan, shares: Sequence[NightShare], duplicates: Sequence[DuplicateRows]
) -> ClassifyJob:
    """Write the artifacts to the folder of the shared work, so that every worker can load them."""
    jobs = []
    for share, rows in zip(shares, duplicates, strict=True):
        night = share.night
        driver = f"{shared.number:06d}-{shared.record.runs.index(night.run.name)}"
        artifact, shadow = night.model.share(shared.store, driver)
        sampled = share_to_sample(shared.settings.classify, share.documents)
        jobs.append(ModelJob(night.run.record, artifact, night.model.decision, rows, shadow, share.shards, sampled))
    return ClassifyJob(tuple(jobs), schema_of(plan.types), shared.record, shared.forgotten)


def _with_outcomes(
    shared: NightPass, share: NightShare, outcomes: Mapping[str, ShardOutcome[PassCounts]]
) -> NightShare:
    """The share of a night with its part of the outcomes of the pass, which are given by name of shard."""
    run = share.night.run.name
    return replace(
        share, outcomes=[_outcome_of(shared.record, run, outcomes[shard.name]) for shard in share.plan.shards]
    )


def _outcome_of(shared: Pass, run: str, outcome: ShardOutcome[PassCounts]) -> ShardOutcome[ClassifyCounts]:
    """The part of one run in the outcome of a shard. Raises UserError if it has none."""
    counts = outcome.counts.models.get(run)
    if counts is None:
        raise UserError(
            f"the pass {shared.name} has a shard without the documents of run {run}, so the run cannot go on; start "
            "over with --restart"
        )
    place = shared.runs.index(run)
    endings = tuple(f".{pass_ending(ending, place)}" for ending in (PROFILE, SAMPLE))
    folders = tuple(f"{table}/{run}/" for table in ENDINGS)
    files = {key: file for key, file in outcome.files.items() if key.startswith(folders) or key.endswith(endings)}
    return ShardOutcome(counts, files, outcome.tries, outcome.seconds, outcome.ended)
