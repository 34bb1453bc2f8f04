"""The night of one model that a command works on, and its share of the pass in which it is classified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipelines.data.files.kept_columns import schema_of
from pipelines.data.intake import FileOutcome, NightPlan
from pipelines.nightly.night_models import NightModel
from pipelines.nightly.steps.counts import ClassifyCounts
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.resume import ChosenRun
from pipelines.storage.lease import Lease
from pipelines.storage.shard_log import ShardOutcome
from spin.settings import Settings

Outcomes = Sequence[ShardOutcome[ClassifyCounts]]
KEPT = "kept.json"
"""record of the kept columns of a run with their types"""


@dataclass(frozen=True)
class Night:
    """The night of one model, and what the command holds while it works on it."""

    model: NightModel
    tables: NightTables
    lease: Lease
    claim: int
    """number of the claim of the model"""
    run: ChosenRun

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.model.registry.name

    @property
    def settings(self) -> Settings:
        """Settings of the night, with an engine and with the backbone of the model."""
        return self.model.settings

    @property
    def kept(self) -> pa.Schema:
        """The kept columns of a run whose intake has ended."""
        return schema_of(self.run.store.read_json(KEPT) or {})


@dataclass(frozen=True)
class NightShare:
    """The share of a night in its pass."""

    night: Night
    plan: NightPlan
    """its shards, with their indices in the pass"""
    input_files: Sequence[FileOutcome]
    """the findings in every input file that the run was to read"""
    tasks: frozenset[int]
    """tasks of the intake with its files"""
    outcomes: Outcomes = ()
    """of its shards, once all are classified"""

    @property
    def documents(self) -> int:
        """Number of documents in its shards."""
        return sum(shard.documents for shard in self.plan.shards)

    @cached_property
    def shards(self) -> frozenset[int]:
        """The indices of its shards."""
        return frozenset(shard.index for shard in self.plan.shards)

    @property
    def quarantined(self) -> dict[str, str]:
        """The reason for each file that could not be read, by URI, in order of URI."""
        return dict(sorted((file.uri, file.reason) for file in self.input_files if file.reason is not None))

    def keys(self, ending: str) -> list[str]:
        """The keys in the output of the files of its shards that have an ending."""
        return [key for outcome in self.outcomes for key in outcome.files if key.endswith(ending)]
