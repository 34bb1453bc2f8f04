"""The files of a pass, taken in and divided into shards, and what each of its nights takes of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.data.files.input_files import InputFile
from pipelines.data.files.kept_columns import schema_of, type_text
from pipelines.data.files.reader_process import describe_columns
from pipelines.data.files.shards import Shard
from pipelines.data.intake import FileOutcome, NightPlan, plan_intake, plan_night
from pipelines.data.spool import PartSize
from pipelines.nightly.finish import check_files, check_rows
from pipelines.nightly.night import KEPT, Night, NightShare
from pipelines.nightly.night_pass import NightPass
from pipelines.nightly.steps.counts import IntakeCounts
from pipelines.nightly.steps.intake_step import IntakeStep
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, check_kept_columns
from pipelines.nightly.tables.passes import plan_files
from pipelines.service_errors import BadRowsError
from pipelines.storage.shard_log import ShardOutcome
from pipelines.workers.map_shards import map_shards
from spin.errors import SpinError, UserError
from spin.settings import DataSettings

_log = logging.getLogger(__name__)
FEW_BYTES = 16_000_000
"""bytes of input that the driver takes in by itself, which is faster than to start workers"""
FEW_FILES = 500
"""number of input files that it takes in by itself"""


@dataclass(frozen=True)
class PassIntake:
    """The files of a pass, taken in."""

    outcomes: Sequence[ShardOutcome[IntakeCounts]]
    """by task"""
    takers: Sequence[tuple[str, ...]]
    """names of the runs that take the files of a task, by task"""
    empty: Mapping[str, str]
    """reasons by URI of the files that are empty"""
    files: Mapping[str, InputFile]
    """all files of the pass by URI"""

    def tasks_of(self, run: str) -> frozenset[int]:
        """The tasks whose files a run takes."""
        return frozenset(task for task, runs in enumerate(self.takers) if run in runs)


def take_in(shared: NightPass) -> PassIntake:
    """Read and check all files of a pass."""
    tasks: list[Shard] = []
    takers: list[tuple[str, ...]] = []
    empty: dict[str, str] = {}
    groups = plan_files(shared.tables.out, shared.record, shared.number)
    for group in groups:
        planned = plan_intake(group.files, bad=empty)
        tasks += [replace(task, index=len(tasks) + n) for n, task in enumerate(planned)]
        takers += [group.runs] * len(planned)
    files = [file for group in groups for file in group.files]
    size = sum(file.size for file in files)
    work = shared.work(
        "intake",
        IntakeStep,
        shared.store,
        shared.settings.data,
        PartSize.of(size, shared.settings.ray.shard_documents),
        shared.number,
        shared.forgotten,
        counts_type=IntakeCounts,
    )
    few = size <= FEW_BYTES and len(files) <= FEW_FILES
    outcomes = map_shards(work, tasks, shared.lease, documents=None, here=few)
    return PassIntake(outcomes, takers, empty, {file.uri: file for file in files})


def share_of(night: Night, plan: NightPlan, intake: PassIntake) -> NightShare:
    """The share of a night in the plan of its pass."""
    listed = {file.uri: file for file in night.run.listing.files}
    files = [file for file in plan.files if file.uri in listed]
    files += [FileOutcome(uri, 0, "", 0, reason) for uri, reason in night.run.listing.rejected.items()]
    empty = {uri: reason for uri, reason in intake.empty.items() if uri in listed}
    files += [FileOutcome(uri, 0, listed[uri].version, 0, reason) for uri, reason in empty.items()]
    tasks = intake.tasks_of(night.run.name)
    return NightShare(night, plan.with_tasks(tasks), files, tasks)


def plan_shards(shared: NightPass, intake: PassIntake) -> tuple[NightPlan | None, dict[str, SpinError]]:
    """The shards of a pass, with the types of its kept columns, and by model the errors of those that are left out.

    These are models in whose files a kept column has two types, or another one than in the table or in the files of the
    models before them. The types are settled once. There is no plan if no model is left. Of a single model, the error
    is raised.
    """
    store = shared.store
    plan, errors = _settle_types(shared, intake)
    if plan is None:
        return None, errors
    store.create(KEPT, json.dumps(plan.types).encode())
    types = store.read_json(KEPT) or plan.types
    for night in shared.nights:  # for a driver that publishes a run and does not know its pass
        if night.name not in errors:
            night.run.store.create(KEPT, json.dumps(types).encode())
    return replace(plan, types=types), errors


def _settle_types(shared: NightPass, intake: PassIntake) -> tuple[NightPlan | None, dict[str, SpinError]]:
    """The plan for those nights of a pass whose kept columns fit together, and by model the errors of the others.

    A night that does not fit to those before it is tried once more at the end, since a later one may have a column that
    it lacks.
    """
    known = shared.store.read_json(KEPT) or kept_types(shared.tables, shared.settings.data)
    try:
        return _plan_nights(shared, shared.nights, intake, known), {}
    except UserError:
        if len(shared.nights) == 1:
            raise
        _log.debug("the kept columns of the models do not fit together", exc_info=True)
    plan: NightPlan | None = None
    fitting: dict[str, Night] = {}
    errors: dict[str, SpinError] = {}
    for night in [*shared.nights, *shared.nights]:
        if night.name in fitting:
            continue
        try:
            plan = _plan_nights(shared, [*fitting.values(), night], intake, known)
        except UserError as error:
            _log.debug("the kept columns of model %s do not fit to those of the others", night.name, exc_info=True)
            errors[night.name] = error
        else:
            fitting[night.name] = night
            errors.pop(night.name, None)
    return plan, errors


def _plan_nights(shared: NightPass, nights: Sequence[Night], intake: PassIntake, known: Mapping[str, str]) -> NightPlan:
    """The plan of a pass with the types of kept columns that some of its nights have.

    Raises UserError if they have several, or others than a table.
    """
    settings = shared.settings
    reports = [outcome.counts.report for outcome in intake.outcomes]
    typed = frozenset[int]().union(*(intake.tasks_of(night.run.name) for night in nights))
    plan = plan_night(
        reports,
        settings.data,
        settings.ray.shard_documents,
        known=known,
        groups=intake.takers,
        typed=typed,
        describe_columns=lambda uri: describe_columns(intake.files[uri].whole, settings.data),
    )
    check_kept_columns(shared.tables, schema_of(plan.types))
    return plan


def kept_types(tables: NightTables, data: DataSettings) -> dict[str, str]:
    """The types, as text, of the kept columns that the table of predictions has."""
    schema = tables.open(PREDICTIONS).schema
    return {name: type_text(schema.field(name).type) for name in data.keep if name in schema.names}


def check_intake(shares: Sequence[NightShare], intake: PassIntake) -> dict[str, SpinError]:
    """By model the errors of the nights of which it is known by now that too little can be classified."""
    errors: dict[str, SpinError] = {}
    for share in shares:
        try:
            _check_share(share, intake)
        except BadRowsError as error:
            _log.debug("model %s: too little can be classified", share.night.name, exc_info=True)
            errors[share.night.name] = error
    return errors


def _check_share(share: NightShare, intake: PassIntake) -> None:
    """Raise BadRowsError if too little of what a night takes can be classified.

    A column that is no id ends here: all rows of a task but one per value are repeated.
    """
    allowed, bad = share.night.settings.classify, share.quarantined
    check_files(share)
    counts = [outcome.counts for task, outcome in enumerate(intake.outcomes) if task in share.tasks]
    sound = [each for each in counts if bad.keys().isdisjoint(file.uri for file in each.report.files)]
    check_rows(allowed, {"repeated_id": sum(each.repeated for each in sound)}, share.documents)
