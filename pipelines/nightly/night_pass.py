"""A pass: the documents of one night, or of the nights of several models that share a backbone, are read once.

The models of a pass may differ in the files that they are to take; a shard has files of the same models only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pipelines.data.files.shards import Shard
from pipelines.data.forgotten_ids import ForgottenIds, read_forgotten
from pipelines.nightly.finish import Driver
from pipelines.nightly.night_models import NightModel
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.passes import PassRecord, find_pass, number_driver
from pipelines.storage.lease import Lease, LeaseGroup
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardCounts, ShardOutcome
from pipelines.workers.map_shards import ShardWork, Step, map_shards
from spin.errors import UserError
from spin.settings import Settings

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
    record: PassRecord
    """the pass"""
    number: int
    """number of this driver of the pass"""

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

    @cached_property
    def forgotten(self) -> ForgottenIds:
        """Documents that are left out. `spin forget` adds to them while no run that has begun is at work."""
        return read_forgotten(self.tables.out)

    @property
    def store(self) -> Store:
        """Folder of the work that the nights share."""
        return self.tables.out / f"{RUNS}/{self.record.name}"


def form_passes(nights: Sequence[ModelNight]) -> list[list[ModelNight]]:
    """The nights in groups that are classified in one pass, as their runs began."""
    groups: dict[str, list[ModelNight]] = {}
    for night in nights:
        groups.setdefault(night.driver.run.record.shared_pass or night.run, []).append(night)
    return list(groups.values())


def enter_pass(nights: Sequence[ModelNight]) -> NightPass:
    """Begin to work on the pass of some nights. Raises UserError if its record is missing."""
    out, run = nights[0].driver.tables.out, nights[0].driver.run.record
    record = find_pass(out, run)
    if record is None:
        raise UserError(
            f"{out.uri}/{RUNS}/{run.shared_pass} has lost its record, so its runs cannot go on; use --restart"
        )
    number = number_driver(out, record.name, [night.driver.token for night in nights])
    return NightPass(tuple(nights), record, number)


def map_stage(
    shared: NightPass,
    stage: str,
    shards: Sequence[Shard],
    counts_type: type[C],
    make: Callable[..., Step[C]],
    *args: Any,
    documents: int | None,
    store: Store | None = None,
    layout: LogLayout = LogLayout(),  # noqa: B008
    backbone: str | None = None,
    here: bool = False,
) -> list[ShardOutcome[C]]:
    """Map a step over shards; the log of a stage is by default in a folder of its own in that of the shared work."""
    ray = shared.settings.ray.for_stage("classify")
    work = ShardWork(
        make,
        args,
        counts_type,
        shared.store / stage if store is None else store,
        ray if backbone is not None else ray.model_copy(update={"gpus_per_worker": 0}),
        stage=stage,
        token=shared.number,
        layout=layout,
        backbone=backbone,
    )
    return map_shards(work, shards, shared.lease, documents=documents, here=here)
