"""The second pass of `extract: two_pass`: the chosen neurons of the documents that the first pass left out.

Of test documents it also reads the columns that baselines need, all neurons of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pipelines.data.feature_pool import FEATURES, required_file, to_feature_file
from pipelines.data.feature_store import (
    TESTED,
    FeaturePlan,
    FeatureShards,
    KeptFeatures,
    KeptShard,
    Positions,
)
from pipelines.data.files.shards import Shard
from pipelines.data.spool import read_texts
from pipelines.data.training_labels import Labels
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardOutcome, StepResult
from pipelines.storage.stage_plan import (
    NothingDerived,
    StagePlan,
    delete_objects,
    find_manifest,
    fingerprint,
    write_manifest,
    write_plan,
)
from pipelines.training.extract_features import ExtractPlan, open_corpus, read_corpus, receive_backbone
from pipelines.workers.weights_cache import with_engine
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT
from spin.activations.engines.engine import Engine, open_engine
from spin.activations.extract import Progress, count_tokens, read_activations, single_segment
from spin.activations.feature_table import features_table
from spin.activations.features import Features
from spin.arrays import Rows
from spin.heads.selection import Selection
from spin.labels.splits import in_split
from spin.settings import Settings
from spin.sites import FeatureColumn

FORMAT = 2


@dataclass(frozen=True)
class KeptColumns:
    """The neurons that the second pass reads, and of which documents."""

    selection: Selection
    """the neurons of all these documents"""
    whole: tuple[FeatureColumn, ...]
    """columns of which all neurons of test documents are read"""
    rows: tuple[Positions, ...]
    """for each shard the documents that train or validate"""
    tested: tuple[Positions, ...]
    """those that test"""

    @classmethod
    def plan(
        cls, features: FeatureShards, labels: Labels, selection: Selection, whole: Sequence[FeatureColumn]
    ) -> KeptColumns:
        """Every document that the first pass left out and that trains, validates or tests."""
        learning, testing = in_split(labels.splits, "train", "valid"), in_split(labels.splits, "test")
        rows: list[Positions] = []
        tested: list[Positions] = []
        for first, last in pairwise(features.borders):
            own = slice(first, last)
            left_out = features.places.files[own] < 0
            rows.append(np.flatnonzero(left_out & learning[own]).astype(np.int32))
            tested.append(np.flatnonzero(left_out & testing[own]).astype(np.int32))
        return cls(selection, tuple(whole), tuple(rows), tuple(tested))

    @property
    def documents_digest(self) -> str:
        """sha256 of the positions of all documents."""
        digest = hashlib.sha256()
        for rows in (*self.rows, *self.tested):
            digest.update(len(rows).to_bytes(8) + rows.astype(np.int64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class KeptResults:
    """The manifest of the second pass."""

    shards: tuple[ShardOutcome[ShardCounts], ...]
    """in plan order"""


class KeepStep:
    """Read a shard of documents, run the backbone as deep as needed and return the kept neurons."""

    def __init__(self, settings: Settings, digest: str, plan: FeaturePlan, kept: KeptColumns) -> None:
        self.backbone = receive_backbone(settings, digest, plan)
        self.kept, self.types = kept, plan.reading.column_types
        neurons: dict[FeatureColumn, Rows | None] = dict(kept.selection.neurons)
        self.engine = self._open_engine(neurons)
        self.tested_engine = self._open_engine(neurons | dict.fromkeys(kept.whole))

    def _open_engine(self, neurons: Mapping[FeatureColumn, Rows | None]) -> Engine | None:
        """The engine that reads some neurons of some columns, None: all of them; no engine if there are no columns."""
        ordered = {column: neurons[column] for column in sorted(neurons)}
        return open_engine(self.backbone, [single_segment(list(ordered), ordered)]) if ordered else None

    def check(self) -> None:
        """Compute a text that is known to be good."""
        self._read(self.tested_engine, [KNOWN_GOOD_TEXT])

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        texts = read_texts(shard)
        read = len(self.kept.rows[shard.index]) + len(self.kept.tested[shard.index])
        per_row = len(texts) / max(1, read)

        def advance(done: int) -> None:
            attempt.advance(done * per_row)

        files = {
            ending: to_feature_file(
                features_table(self._read(engine, [texts[row] for row in rows[shard.index]], advance))
            )
            for ending, engine, rows in (
                (FEATURES, self.engine, self.kept.rows),
                (TESTED, self.tested_engine, self.kept.tested),
            )
        }
        return StepResult(files, ShardCounts(rows=len(texts)))

    def _read(
        self, engine: Engine | None, texts: Sequence[str], progress: Progress = lambda documents: None
    ) -> Features:
        if engine is None:
            return count_tokens(self.backbone, texts)
        return read_activations(engine, texts, types=self.types, progress=progress)


def run_keep(
    settings: Settings,
    source: ExtractPlan,
    features: FeatureShards,
    labels: Labels,
    selection: Selection,
    whole: Sequence[FeatureColumn],
) -> FeatureShards:
    """The features with the neurons of a selection, and with whole columns of test documents, for all documents.

    If the first pass has extracted all documents, the features are returned as they are. Otherwise the shards of the
    second pass are written to a folder of `kept/` in the store that is named after the neurons and documents: a driver
    that was overtaken while it was suspended never writes among those of other neurons. A pass that has not finished is
    continued; one for others is deleted once this one has finished. Raises HeldError if another run uses the store.
    """
    if features.extracted is None:
        return features
    settings = with_engine(settings, "extract")
    folder, kept = Store.of(settings) / "kept", KeptColumns.plan(features, labels, selection, whole)
    neurons = {str(column): indices.tolist() for column, indices in selection.neurons.items()}
    metadata = {
        "format": FORMAT,
        "features": source.fingerprint,
        "neurons": fingerprint(neurons),
        "whole": [str(column) for column in whole],
        "documents": kept.documents_digest,
    }
    name = StagePlan("keep", metadata, NothingDerived()).folder
    store = folder / name
    with Lease(folder) as lease:
        plan = write_plan(store, "keep", metadata, NothingDerived, NothingDerived, lease=lease)
        manifest = find_manifest(store, plan, KeptResults)
        if manifest is None:
            outcomes = read_corpus(
                KeepStep,
                (kept,),
                settings,
                source,
                open_corpus(settings, source).shards,
                store,
                lease,
                ShardCounts,
                stage="keep",
                folder="",
            )
            manifest = write_manifest(store, plan, KeptResults(tuple(outcomes)))
        others = [key for key in folder.list() if not key.startswith(("_lease/", f"{name}/"))]
        delete_objects(folder, others, lease)  # the passes for other neurons
    shards = tuple(
        KeptShard(required_file(outcome, FEATURES), rows, required_file(outcome, TESTED), tested)
        for outcome, rows, tested in zip(manifest.results.shards, kept.rows, kept.tested, strict=True)
    )
    return replace(features, kept=KeptFeatures(store, shards, selection, frozenset(whole)))
