"""The job of the workers that classify a pass: the models with their runs, and the names of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.data.files.shards import Shard
from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.nightly.steps.counts import ClassifyCounts, PassCounts
from pipelines.nightly.steps.dedup import DuplicateRows
from pipelines.nightly.steps.shadow import ShadowSpec
from pipelines.nightly.tables.night_records import RUNS, Run
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, DISAGREEMENTS, PREDICTIONS
from pipelines.nightly.tables.passes import Pass
from pipelines.storage.shard_log import LogLayout, StepResult
from pipelines.workers.artifact_copy import ArtifactCopy
from spin.monitor.document_sample import sample_share
from spin.settings import ClassifySettings, DecisionSettings

PROFILE = "profile.safetensors"
"""ending of the file from which drift is measured"""
SAMPLE = "sample.safetensors"
"""ending of the file with a sample of documents, from which the causes of drift are named; deleted after publication"""
ENDINGS = {
    PREDICTIONS: "predictions.parquet",
    DEAD_LETTERS: "dead.parquet",
    DISAGREEMENTS: "disagreements.parquet",
}
"""ending of a shard's file by the table that it belongs to"""


@dataclass(frozen=True)
class ShadowJob:
    """The shadow of a run, as its workers need it."""

    spec: ShadowSpec
    artifact: ArtifactCopy


@dataclass(frozen=True)
class ModelJob:
    """One of a pass's models, as its workers need it."""

    run: Run
    artifact: ArtifactCopy
    decision: DecisionSettings
    """how the model decides, with the band that keeps a promised error"""
    duplicates: DuplicateRows
    """rows whose id another row of the run has"""
    shadow: ShadowJob | None = None
    shards: frozenset[int] | None = None
    """indices of the shards with files of the run; None: all"""
    sampled: float = 0.0
    """share of the documents that are kept as a sample for the causes of drift"""


@dataclass(frozen=True)
class ClassifyJob:
    """The job that all workers of a pass share."""

    models: tuple[ModelJob, ...]
    """the models, of which at most one has a shadow"""
    kept: pa.Schema
    """kept columns with their types"""
    record: Pass
    forgotten: ForgottenIds = field(default_factory=ForgottenIds)
    """ids of documents of which nothing is read or written but their place in the input"""

    def takers(self, shard: Shard) -> list[int]:
        """The numbers of the models whose runs take a shard."""
        return [n for n, model in enumerate(self.models) if model.shards is None or shard.index in model.shards]

    def combine(self, results: Mapping[int, StepResult[ClassifyCounts]]) -> StepResult[PassCounts]:
        """The result of a shard from those of its models by number.

        The names of a model's files begin with the place of its run in the pass, and its counts are under the run.
        """
        files: dict[str, bytes] = {}
        for number, result in results.items():
            place = self.record.runs.index(self.models[number].run.name)
            files |= {pass_ending(ending, place): data for ending, data in result.files.items()}
        counts = {self.models[number].run.name: result.counts for number, result in results.items()}
        return StepResult(files, PassCounts(rows=max(each.rows for each in counts.values()), models=counts))


def share_to_sample(settings: ClassifySettings, documents: int) -> float:
    """The share of the documents of a night that is kept as a sample, 0 where no causes of drift are named."""
    return sample_share(documents) if settings.drift_documents or settings.drift_words else 0.0


def pass_layout(record: Pass) -> LogLayout:
    """The places of a pass's shard files in an output: files of tables lie in the folder of each run."""
    return LogLayout(
        f"{RUNS}/{record.name}",
        {
            pass_ending(ending, place): f"{table}/{run}"
            for place, run in enumerate(record.runs)
            for table, ending in ENDINGS.items()
        },
    )


def pass_ending(ending: str, place: int) -> str:
    """The ending of a file in the shard log of a pass; `place` is its run's place in the record of the pass."""
    return f"{place}.{ending}"
