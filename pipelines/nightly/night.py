"""The night of one model that a command works on."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipelines.data.files.kept_columns import schema_of
from pipelines.nightly.night_models import NightModel
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.nightly.tables.resume import ChosenRun
from pipelines.storage.lease import Lease
from spin.settings import Settings

KEPT = "kept.json"
"""record of the kept columns of a run with their types"""


@dataclass(frozen=True)
class Night:
    """The night of one model, and what the command holds while it works on it."""

    model: NightModel
    """the model"""
    tables: NightTables
    """tables of the output"""
    lease: Lease
    """lease on the nights of the model"""
    claim: int
    """number of the claim of the model"""
    run: ChosenRun
    """the run"""

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
