"""The extract stage: the frozen backbone reads every document once and writes feature shards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import input_files, readers, sharding, training_labels
from pipelines.data.feature_store import FeaturePlan, FeatureShards
from pipelines.data.input_files import InputFile
from pipelines.data.shards import Shard
from pipelines.data.training_labels import NOTHING_FROZEN, split_all
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from pipelines.storage.shard_log import Attempt, ShardCounts, StepResult, StoredOutcome
from pipelines.storage.stage_plan import (
    StageManifest,
    StagePlan,
    find_manifest,
    load_finished,
    write_manifest,
    write_plan,
)
from pipelines.workers import weights_cache
from pipelines.workers.map_shards import describe_backbone, map_shards
from pipelines.workers.weights_cache import ACTIVATION_SETTINGS, with_engine
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT
from spin.activations.engine import open_engine
from spin.activations.extract import choose_column_types, read_activations, single_segment
from spin.activations.feature_table import MAX_SHARD_BYTES, bytes_per_document, to_table
from spin.backbone.digest import cached_digest
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.split_groups import choose_group, hash_text
from spin.settings import Settings
from spin.sites import FeatureColumn

FORMAT = 4
_SURVEYED = 256


@dataclass(frozen=True, kw_only=True)
class ExtractCounts(ShardCounts):
    """A shard of documents whose features are extracted."""

    tokens: int
    """that the backbone read"""
    truncated: int
    """texts that were cut at the backbone's limit"""


@dataclass(frozen=True, kw_only=True)
class CorpusCounts(ExtractCounts):
    """The sums over all shards of a corpus."""

    truncated_share: float
    """`truncated` per document"""


@dataclass(frozen=True)
class ExtractResults:
    """The manifest of a finished extraction."""

    seconds: float
    """that the last run of the stage took"""
    inputs: tuple[InputFile, ...]
    """files of the corpus"""
    counts: CorpusCounts
    shards: tuple[StoredOutcome[ExtractCounts], ...]
    """in plan order"""


ExtractPlan = StagePlan[FeaturePlan]
ExtractManifest = StageManifest[ExtractResults]


class ExtractStep:
    """Read a shard of documents, run the backbone and return the feature shard."""

    def __init__(self, settings: Settings, digest: str, types: Mapping[str, str]) -> None:
        backbone = load_backbone(weights_cache.receive(settings, digest), expect_digest=digest)
        self.data = settings.data
        self.types = {FeatureColumn.parse(name): np.dtype(kind).type for name, kind in types.items()}
        self.engine = open_engine(backbone, [single_segment(self.types)])

    def check(self) -> None:
        """Compute a text that is known to be good."""
        read_activations(self.engine, [KNOWN_GOOD_TEXT], types=self.types)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ExtractCounts]:
        documents = readers.read_shard(shard, self.data, columns=readers.ALL_COLUMNS)
        features = read_activations(self.engine, documents.texts, types=self.types)
        text_hashes = [hash_text(text) for text in documents.texts]
        table = to_table(
            documents.ids,  # type: ignore[arg-type]
            documents.labels,  # type: ignore[arg-type]
            documents.splits,
            features,
            text_hashes=text_hashes,
            groups=[choose_group(*pair) for pair in zip(text_hashes, documents.groups, strict=True)],
        )
        tokens, truncated = int(features.n_tokens.sum()), features.truncated
        counts = ExtractCounts(rows=len(documents), tokens=tokens, truncated=truncated)
        return StepResult({"parquet": _to_parquet(table)}, counts)


def run_extract(settings: Settings, *, restart: bool = False) -> tuple[ExtractPlan, ExtractManifest]:
    """Write the feature shards of the corpus and return the plan and the manifest; a finished stage is not repeated.

    Raises UserError for a mistake in backbone, sites or data, HeldError if another run uses the store.
    """
    settings = with_engine(settings, "extract")
    store = Store(settings.store) / "features"
    files = input_files.list_files(settings.data.train)
    digest = _backbone_digest(settings)
    metadata = _plan_metadata(settings, files, digest)
    start = time.perf_counter()
    with Lease(store) as lease:
        plan = write_plan(store, "extract", metadata, FeaturePlan, lambda: _survey(settings, files), restart=restart)
        if manifest := find_manifest(store, plan, ExtractResults):
            return plan, manifest
        weights_cache.publish(settings, digest)
        outcomes = map_shards(
            ExtractStep,
            (settings, digest, plan.derived.types),
            plan.derived.shards,
            store,
            settings.ray.for_stage("extract"),
            counts_type=ExtractCounts,
            stage="extract",
            documents=plan.derived.documents,
            lease=lease,
            backbone=describe_backbone(settings.backbone),
        )
        lease.check()
        counts = _sum_counts([outcome.counts for outcome in outcomes])
        if counts.rows != plan.derived.documents:
            raise UserError(
                f"extract: the plan counted {plan.derived.documents} documents, the shards hold {counts.rows}; "
                "the data changed meanwhile: start over with --restart"
            )
        seconds = round(time.perf_counter() - start, 1)
        return plan, write_manifest(store, plan, ExtractResults(seconds, tuple(files), counts, tuple(outcomes)))


def _sum_counts(shards: Sequence[ExtractCounts]) -> CorpusCounts:
    rows = sum(shard.rows for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    truncated = sum(shard.truncated for shard in shards)
    share = round(truncated / max(1, rows), 4)
    return CorpusCounts(rows=rows, tokens=tokens, truncated=truncated, truncated_share=share)


def load_features(settings: Settings) -> tuple[ExtractPlan, ExtractManifest, FeatureShards]:
    """The plan and the manifest of the extraction, and the features that it published for these settings.

    Raises UserError if it has not finished, or finished with other settings or data.
    """
    settings = with_engine(settings, "extract")
    store = Store(settings.store) / "features"
    metadata = _plan_metadata(settings, input_files.list_files(settings.data.train), _backbone_digest(settings))
    plan, manifest = load_finished(store, "extract", metadata, FeaturePlan, ExtractResults)
    return plan, manifest, FeatureShards.of(store, plan.derived, manifest.results.shards)


def _backbone_digest(settings: Settings) -> str:
    """The digest of the backbone's files."""
    code = settings.backbone.trust_remote_code
    folder = locate_model(settings.backbone.model, settings.backbone.revision, include_code=code)
    return cached_digest(folder, include_code=code)


def _plan_metadata(settings: Settings, files: list[InputFile], digest: str) -> dict[str, Any]:
    """Everything that changes the features; not worker counts, logging or the path of the weights."""
    backbone = settings.backbone.model_dump(include=ACTIVATION_SETTINGS)
    data = settings.data.model_dump(include={"id", "text", "label", "split", "group"})
    return {
        "format": FORMAT,
        "backbone": {**backbone, "digest": digest},
        "data": {**data, "files": to_json(files)},
        "sites": settings.sites,
        "poolings": settings.poolings,
        "shard_documents": settings.ray.shard_documents,
    }


def _survey(settings: Settings, files: list[InputFile]) -> FeaturePlan:
    """Check the labelled corpus, choose each column's number type from the first texts, and plan the shards.

    A shard holds as many documents as the settings ask for, or as many as its features fit in memory.
    """
    coarse = sharding.plan_shards(files, settings.ray.shard_documents, settings.data)
    labelled = training_labels.read_labelled(coarse, settings.data, keep_texts=_SURVEYED)
    text_hashes, groups = np.array(labelled.text_hashes, np.uint64), np.array(labelled.groups, np.uint64)
    splits = split_all(labelled.ids, labelled.splits, text_hashes, groups, settings, frozen=NOTHING_FROZEN)
    LabelSpace.of(labelled.labels, splits, groups)
    backbone = load_backbone(settings.backbone)
    probed = feature_columns(backbone, settings.sites, settings.poolings)
    baselines = [FeatureColumn(backbone.final_site, p) for p in (("last", "mean") if backbone.causal else ("mean",))]
    columns = probed + baselines
    types = choose_column_types(backbone, labelled.texts[: labelled.shard_rows[0]], columns)
    widths = {column: backbone.width(column.site) for column in columns}
    fitting = max(1, MAX_SHARD_BYTES // bytes_per_document(widths, types))
    shards = coarse
    if fitting < settings.ray.shard_documents:
        shards = sharding.plan_shards(files, fitting, settings.data)
    return FeaturePlan(
        shards=tuple(shards),
        documents=len(labelled.ids),
        types={str(column): np.dtype(kind).name for column, kind in types.items()},
        widths={str(column): width for column, width in widths.items()},
        depth=backbone.depth,
        causal=backbone.causal,
    )


def _to_parquet(table: pa.Table) -> bytes:
    """One row group, so that a reader of one column asks for one range; activations do not compress."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, len(table)),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()
