"""A pass: the documents of one night, or of the nights of several models that share a backbone, are read once.

The models of a pass may differ in the files that they are to take; a shard has files of the same models only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pipelines.data.forgotten_ids import ForgottenIds, read_forgotten
from pipelines.nightly.night import Night
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.passes import Pass, find_pass, number_driver
from pipelines.storage.lease import LeaseGroup
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardCounts
from pipelines.workers.map_shards import ShardWork, Step
from spin.errors import UserError
from spin.settings import Settings

C = TypeVar("C", bound=ShardCounts)


@dataclass(frozen=True)
class NightPass:
    """The nights that are classified in one pass."""

    nights: tuple[Night, ...]
    """in order of model; of a pass that goes on, those that are not finished"""
    record: Pass
    number: int
    """number of this driver of the pass"""
    forgotten: ForgottenIds
    """documents that are left out; `spin forget` adds to them while no run that has begun is at work"""

    @property
    def settings(self) -> Settings:
        """Settings of the nights, with the backbone that the models share."""
        return self.nights[0].settings

    @property
    def tables(self) -> NightTables:
        """Tables of the output."""
        return self.nights[0].tables

    @cached_property
    def lease(self) -> LeaseGroup:
        """The leases of which this driver must hold any one to go on."""
        return LeaseGroup([night.lease for night in self.nights])

    @property
    def store(self) -> Store:
        """Folder of the work that the nights share."""
        return self.tables.out / f"{RUNS}/{self.record.name}"

    def work(
        self,
        stage: str,
        make: Callable[..., Step[C]],
        *args: Any,
        counts_type: type[C],
        store: Store | None = None,
        layout: LogLayout = LogLayout(),  # noqa: B008
        backbone: str | None = None,
    ) -> ShardWork[C]:
        """The work of a stage; its log is by default in a folder of its own in the folder of the pass."""
        ray = self.settings.ray.for_stage("classify")
        return ShardWork(
            make,
            args,
            counts_type,
            self.store / stage if store is None else store,
            ray if backbone is not None else ray.model_copy(update={"gpus_per_worker": 0}),
            stage=stage,
            claim=self.number,
            layout=layout,
            backbone=backbone,
        )


def form_passes(nights: Sequence[Night]) -> list[list[Night]]:
    """The nights in groups that are classified in one pass, as their runs began."""
    groups: dict[str, list[Night]] = {}
    for night in nights:
        groups.setdefault(night.run.record.pass_name, []).append(night)
    return list(groups.values())


def enter_pass(nights: Sequence[Night]) -> NightPass:
    """Begin to work on the pass of some nights. Raises UserError if its record is missing."""
    out, run = nights[0].tables.out, nights[0].run.record
    record = find_pass(out, run)
    if record is None:
        raise UserError(
            f"{out.uri}/{RUNS}/{run.pass_name} has lost its record, so its runs cannot go on; use --restart"
        )
    number = number_driver(out, record.name, [night.claim for night in nights])
    return NightPass(tuple(nights), record, number, read_forgotten(out))
