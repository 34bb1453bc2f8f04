"""A pass of a night: the documents of one run, or of several runs whose models share a backbone, are read once.

The files are taken in, ids that occur twice are looked for, and all shards are classified. The models of a pass may
differ in the files that they are to take; a shard has files of the same models only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from pipelines.data.intake import NightPlan, plan_intake, plan_night
from pipelines.data.kept_columns import schema_of, type_text
from pipelines.data.shards import Shard
from pipelines.nightly.finish import KEPT, ClassifiedNight, Driver, check_files, check_rows
from pipelines.nightly.night_models import NightModel
from pipelines.nightly.steps.classify_job import (
    CALIBRATION,
    ENDINGS,
    PROFILE,
    ClassifyJob,
    ModelJob,
    data_layout,
    pass_ending,
    pass_layout,
)
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.dedup import REPEATS, DuplicateRows, DuplicateStep, collect_duplicates, plan_partitions
from pipelines.nightly.steps.intake_step import IDS, IntakeStep
from pipelines.nightly.steps.run_records import ClassifyCounts, DuplicateCounts, IntakeCounts, PassCounts
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, check_kept_columns
from pipelines.nightly.tables.pass_files import FileGroup, plan_files
from pipelines.nightly.tables.passes import PassRecord, find_pass, number_driver
from pipelines.service_errors import BadRowsError
from pipelines.storage.lease import Lease, LeaseGroup
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardCounts, ShardOutcome
from pipelines.workers.map_shards import Step, describe_backbone, map_shards
from spin.errors import UserError
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


@dataclass(frozen=True)
class ModelNight:
    """The night of one model that a command works on."""

    driver: Driver
    """what the command holds for it"""
    model: NightModel
    """the model"""

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.model.registry.name

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.driver.run.record.run


@dataclass(frozen=True)
class NightPass:
    """The nights that are classified in one pass."""

    nights: tuple[ModelNight, ...]
    """in order of model; of a pass that goes on, those that are not finished"""
    record: PassRecord | None
    """the pass, None for a run that classifies alone"""
    number: int
    """number of this driver: of its claim, or in a pass of several runs that of `number_driver`"""

    @property
    def settings(self) -> Settings:
        """Settings of the nights, with the backbone that the models share."""
        return self.nights[0].model.settings

    @property
    def tables(self) -> NightTables:
        """Tables of the output."""
        return self.nights[0].driver.tables

    @cached_property
    def lease(self) -> Lease | LeaseGroup:
        """What this driver must hold to go on: the lease of one of the models."""
        leases = [night.driver.lease for night in self.nights]
        return leases[0] if len(leases) == 1 else LeaseGroup(leases)

    @property
    def store(self) -> Store:
        """Folder of the work that the nights share."""
        return self.tables.out / f"{RUNS}/{self.nights[0].run if self.record is None else self.record.name}"

    @property
    def layout(self) -> LogLayout:
        """Where the log and the files of the shards are in the output."""
        return data_layout(self.nights[0].run) if self.record is None else pass_layout(self.record)

    def list_groups(self) -> list[FileGroup]:
        """The files to read, in groups that the same runs take."""
        if self.record is None:
            [night] = self.nights
            return [FileGroup((night.run,), night.driver.run.listing.files)]
        return plan_files(self.tables.out, self.record, self.number)


def form_passes(nights: Sequence[ModelNight]) -> list[list[ModelNight]]:
    """The nights in groups that are classified in one pass, as their runs began."""
    groups: dict[str, list[ModelNight]] = {}
    for night in nights:
        groups.setdefault(night.driver.run.record.shared_pass or night.run, []).append(night)
    return list(groups.values())


def enter_pass(nights: Sequence[ModelNight]) -> NightPass:
    """Begin to work on the pass of some nights. Raises UserError if its record is missing."""
    driver = nights[0].driver
    name = driver.run.record.shared_pass
    if name is None:
        return NightPass(tuple(nights), None, driver.token)
    out = driver.tables.out
    record = find_pass(out, name)
    if record is None:
        raise UserError(f"{out.uri}/{RUNS}/{name} has lost its record, so its runs cannot go on; use --restart")
    number = number_driver(out, name, [night.driver.token for night in nights])
    return NightPass(tuple(nights), record, number)


def classify_pass(shared: NightPass, waiting: Collection[str]) -> Mapping[str, ClassifiedNight | BadRowsError]:
    """Take in the files, look for duplicate ids if the settings ask for it, and classify all shards for each night.

    Returns the nights by model. `waiting` are the models whose nights are to be published: if it is known after the
    intake, before hours of work, that none of them can be, nothing is classified, and the errors of these are returned.
    """
    intake = _take_in(shared)
    plan = _plan_shards(shared, intake)
    parts = [_part_of(night, plan, intake) for night in shared.nights]
    errors = _check_intake(parts, intake)
    if errors.keys() >= set(waiting):
        return {model: errors[model] for model in waiting}
    work = [shard for shard in plan.shards if any(part.takes(shard) for part in parts)]
    duplicates = _find_all_duplicates(shared, plan, parts, intake)
    outcomes = _map_stage(
        shared,
        "classify",
        work,
        ClassifyCounts if shared.record is None else PassCounts,
        ClassifyStep,
        _share_models(shared, plan, parts, duplicates),
        shared.settings,
        documents=sum(shard.documents for shard in work),
        store=shared.tables.out,
        layout=shared.layout,
        backbone=describe_backbone(shared.settings.backbone),
    )
    shared.lease.check()
    by_name = dict(zip((shard.name for shard in work), outcomes, strict=True))
    return {part.night.name: _classified(shared, part, by_name) for part in parts}


@dataclass(frozen=True)
class _Intake:
    """The files of a pass, taken in."""

    outcomes: Sequence[ShardOutcome[IntakeCounts]]
    """by task"""
    takers: Sequence[tuple[str, ...]]
    """names of the runs that take the files of a task, by task"""
    groups: Sequence[int]
    """number of the group of files of each task"""
    empty: Mapping[str, str]
    """reasons by URI of the files that are empty"""

    def tasks_of(self, run: str) -> frozenset[int]:
        """The tasks whose files a run takes."""
        return frozenset(task for task, runs in enumerate(self.takers) if run in runs)


def _take_in(shared: NightPass) -> _Intake:
    """Read and check all files of a pass."""
    tasks: list[Shard] = []
    takers: list[tuple[str, ...]] = []
    numbers: list[int] = []
    empty: dict[str, str] = {}
    groups = shared.list_groups()
    for number, group in enumerate(groups):
        planned = plan_intake(group.files, shared.settings.data, bad=empty)
        tasks += [replace(task, index=len(tasks) + n) for n, task in enumerate(planned)]
        takers += [group.runs] * len(planned)
        numbers += [number] * len(planned)
    files = [file for group in groups for file in group.files]
    size = sum(file.size for file in files)
    outcomes = _map_stage(
        shared,
        "intake",
        tasks,
        IntakeCounts,
        IntakeStep,
        shared.store,
        shared.settings.data,
        shared.settings.ray.shard_documents,
        shared.number,
        documents=size // _BYTES_PER_DOCUMENT,
        here=size <= FEW_BYTES and len(files) <= FEW_FILES,
    )
    return _Intake(outcomes, takers, numbers, empty)


@dataclass(frozen=True)
class _Part:
    """What one night takes of a pass."""

    night: ModelNight
    """the night"""
    plan: NightPlan
    """its shards and files"""
    rejected: Mapping[str, str]
    """reasons by URI of its files that the intake did not read"""
    tasks: frozenset[int]
    """tasks of the intake with its files"""
    shards: frozenset[int] | None
    """indices of its shards, None if it takes all of the pass"""

    def takes(self, shard: Shard) -> bool:
        """Whether the night takes the files of a shard."""
        return self.shards is None or shard.index in self.shards


def _part_of(night: ModelNight, plan: NightPlan, intake: _Intake) -> _Part:
    """The part of a night in the plan of its pass."""
    listing = night.driver.run.listing
    listed = {file.uri for file in listing.files}
    rejected = dict(listing.rejected) | {uri: reason for uri, reason in intake.empty.items() if uri in listed}
    tasks = intake.tasks_of(night.run)
    if len(tasks) == len(intake.takers):
        return _Part(night, plan, rejected, tasks, None)
    own = plan.with_tasks(tasks)
    taken = [(shard, keys) for shard, keys in zip(own.shards, own.parts, strict=True) if shard.pieces]
    restricted = replace(
        plan,
        shards=tuple(shard for shard, _ in taken),
        parts=tuple(keys for _, keys in taken),
        files=tuple(file for file in plan.files if file.uri in listed),
    )
    return _Part(night, restricted, rejected, tasks, frozenset(shard.index for shard, _ in taken))


def _plan_shards(shared: NightPass, intake: _Intake) -> NightPlan:
    """The shards of a pass. The types of its kept columns are settled once. Raises UserError if a table has others."""
    store, tables, data = shared.store, shared.tables, shared.settings.data
    known = store.read_json(KEPT) or kept_types(tables, data)
    reports = [outcome.counts.report for outcome in intake.outcomes]
    plan = plan_night(reports, data, shared.settings.ray.shard_documents, known=known, groups=intake.groups)
    check_kept_columns(tables, schema_of(plan.types))
    store.create(KEPT, json.dumps(plan.types).encode())
    types = store.read_json(KEPT) or plan.types
    if shared.record is not None:  # for a driver that publishes a run and does not know its pass
        for night in shared.nights:
            night.driver.run.store.create(KEPT, json.dumps(types).encode())
    return replace(plan, types=types)


def kept_types(tables: NightTables, data: DataSettings) -> dict[str, str]:
    """The types, as text, of the kept columns that the table of predictions has."""
    schema = tables.open(PREDICTIONS).schema
    return {name: type_text(schema.field(name).type) for name in data.keep if name in schema.names}


def _check_intake(parts: Sequence[_Part], intake: _Intake) -> dict[str, BadRowsError]:
    """By model the errors of the nights of which it is known by now that too little can be classified."""
    errors = {}
    for part in parts:
        try:
            _check_part(part, intake)
        except BadRowsError as error:
            _log.debug("model %s: too little can be classified", part.night.name, exc_info=True)
            errors[part.night.name] = error
    return errors


def _check_part(part: _Part, intake: _Intake) -> None:
    """Raise BadRowsError if too little of what a night takes can be classified.

    A column that is no id ends here: all rows of a task but one per value are repeated.
    """
    driver, night = part.night.driver, ClassifiedNight(part.plan, part.rejected, ())
    allowed, bad = driver.settings.classify, night.quarantined
    check_files(allowed, bad, len({file.uri for file in part.plan.files} | set(bad)) + driver.run.plan.derived.skipped)
    counts = [outcome.counts for task, outcome in enumerate(intake.outcomes) if task in part.tasks]
    sound = [each for each in counts if bad.keys().isdisjoint(file.uri for file in each.report.files)]
    repeated = sum(each.repeated for each in sound)
    check_rows(allowed, {"repeated_id": repeated}, sum(shard.documents for shard in part.plan.shards))


def _find_all_duplicates(
    shared: NightPass, plan: NightPlan, parts: Sequence[_Part], intake: _Intake
) -> list[DuplicateRows]:
    """For each night the rows whose id another row of it has; nights that take the same files are asked about once."""
    found: dict[frozenset[int], DuplicateRows] = {}
    for part in parts:
        if part.tasks in found:
            continue
        stage, whole = REPEATS, part.shards is None
        if not whole and shared.record is not None:  # named after the first run that takes these files
            first = next(n for n, run in enumerate(shared.record.runs) if intake.tasks_of(run) == part.tasks)
            stage = f"{REPEATS}-{first}"
        own = plan if whole else plan.with_tasks(part.tasks)
        found[part.tasks] = _find_duplicates(shared, stage, own, intake)
    return [found[part.tasks] for part in parts]


def _find_duplicates(shared: NightPass, stage: str, plan: NightPlan, intake: _Intake) -> DuplicateRows:
    """The rows whose id another row has; none where ids are trusted."""
    store, data, shards = shared.store, shared.settings.data, len(plan.shards)
    if data.ids == "trusted" or not shards:
        return DuplicateRows.none(store)
    documents = sum(shard.documents for shard in plan.shards)
    partitions, keys = plan_partitions(documents), [outcome.file_key(IDS) for outcome in intake.outcomes]
    outcomes = _map_stage(
        shared,
        stage,
        partitions,
        DuplicateCounts,
        DuplicateStep,
        store / "intake",
        keys,
        replace(plan, files=()),
        data,
        len(partitions),
        documents=documents,
        here=documents <= FEW_IDS,
    )
    return collect_duplicates(store, outcomes, shards, shared.number, stage)


def _share_models(
    shared: NightPass, plan: NightPlan, parts: Sequence[_Part], duplicates: Sequence[DuplicateRows]
) -> ClassifyJob:
    """Write the artifacts to the folder of the shared work, so that every worker can load them."""
    jobs, calibration = [], _settle_calibration(shared)
    for part, rows in zip(parts, duplicates, strict=True):
        run, driver = part.night.driver.run.record, f"{shared.number:06d}"
        if shared.record is not None:
            driver = f"{driver}-{shared.record.runs.index(run.run)}"
        artifact, shadow = part.night.model.share(shared.store, driver, calibration)
        jobs.append(ModelJob(run, artifact, rows, shadow, part.shards))
    return ClassifyJob(tuple(jobs), schema_of(plan.types), shared.record)


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


def _map_stage(
    shared: NightPass,
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
    """Map a step over shards; the log of a stage is by default in a folder of its own in that of the shared work."""
    ray = shared.settings.ray.for_stage("classify")
    return map_shards(
        make,
        args,
        work,
        shared.store / stage if store is None else store,
        ray if backbone is not None else ray.model_copy(update={"gpus_per_worker": 0}),
        counts_type=counts_type,
        stage=stage,
        documents=documents,
        lease=shared.lease,
        here=here,
        token=shared.number,
        layout=layout,
        backbone=backbone,
    )


def _classified(shared: NightPass, part: _Part, outcomes: Mapping[str, ShardOutcome[Any]]) -> ClassifiedNight:
    """A night from the outcomes of the pass by name of shard."""
    own = [outcomes[shard.name] for shard in part.plan.shards]
    if shared.record is not None:
        own = [_outcome_of(shared.record, part.night.run, outcome) for outcome in own]
    return ClassifiedNight(part.plan, part.rejected, own)


def _outcome_of(record: PassRecord, run: str, outcome: ShardOutcome[PassCounts]) -> ShardOutcome[ClassifyCounts]:
    """The part of one run in the outcome of a shard. Raises UserError if it has none."""
    counts = outcome.counts.models.get(run)
    if counts is None:
        raise UserError(
            f"the pass {record.name} has a shard without the documents of run {run}, so the run cannot go on; start "
            "over with --restart"
        )
    profile = pass_ending(PROFILE, record.runs.index(run))
    folders = tuple(f"{table}/{run}/" for table in ENDINGS)
    files = {key: file for key, file in outcome.files.items() if key.startswith(folders) or key.endswith(f".{profile}")}
    return ShardOutcome(counts, files, outcome.tries, outcome.seconds, outcome.ended)
