"""Corpus to feature shards: the frozen backbone reads every document once."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import input_files, readers, sharding, training_labels
from pipelines.data.feature_store import FeatureShards
from pipelines.data.readers import Shard
from pipelines.data.training_labels import split_all
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt
from pipelines.storage.stage_plan import Plan, finish, finished, freeze, require
from pipelines.workers import weights_cache
from pipelines.workers.map_shards import map_shards
from pipelines.workers.weights_cache import ACTIVATION_SETTINGS, with_engine
from spin.activations.engine import open_engine
from spin.activations.extract import column_types, read, whole
from spin.activations.feature_table import BYTES_A_SHARD, document_bytes, to_table
from spin.backbone.digest import compute_digest
from spin.backbone.hub import locate
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.settings import Settings
from spin.sites import FeatureColumn

FORMAT = 2
_SURVEYED = 256


class ExtractStep:
    """Reads a shard, runs the backbone and gives the feature shard."""

    def __init__(self, settings: Settings, digest: str, types: dict[str, str]) -> None:
        backbone = load_backbone(weights_cache.receive(settings, digest), expect_digest=digest)
        self.data = settings.data
        self.types = {FeatureColumn.parse(name): np.dtype(kind).type for name, kind in types.items()}
        self.engine = open_engine(backbone, [whole(self.types)])

    def __call__(self, shard: Shard, attempt: Attempt) -> tuple[dict[str, bytes], dict[str, Any]]:
        documents = readers.read_shard(shard, self.data, labelled=True)
        features = read(self.engine, documents.texts, types=self.types)
        table = to_table(documents.ids, documents.labels, documents.splits, features)  # type: ignore[arg-type]
        outcome = {
            "rows": len(documents),
            "tokens": int(features.n_tokens.sum()),
            "truncated": features.truncated,
        }
        return {"parquet": _to_parquet(table)}, outcome


def run_extract(settings: Settings, *, restart: bool = False) -> tuple[Plan, dict[str, Any]]:
    """Publish the feature shards of the corpus, giving the plan and the manifest; a finished store is left as it is.

    Raises UserError for what is wrong with backbone, sites or data, HeldError where another run works here.
    """
    settings = with_engine(settings, "extract")
    store = Store(settings.store) / "features"
    files = input_files.list_files(settings.data.train)
    facts = _facts(settings, files)
    start = time.perf_counter()
    with Lease(store) as lease:
        plan = freeze(store, "extract", facts, lambda: _survey(settings, files), restart=restart)
        if manifest := finished(store, plan):
            return plan, manifest
        digest = facts["backbone"]["digest"]
        weights_cache.publish(settings, digest)
        outcomes = map_shards(
            ExtractStep,
            (settings, digest, plan.detail["types"]),
            [Shard(**shard) for shard in plan.detail["shards"]],
            store,
            settings.ray.for_stage("extract"),
            stage="extract",
            documents=plan.detail["documents"],
            lease=lease,
        )
        lease.check()
        rows = sum(outcome["rows"] for outcome in outcomes)
        if rows != plan.detail["documents"]:
            raise UserError(
                f"extract: the plan counted {plan.detail['documents']} documents, the shards hold {rows}; "
                "the data changed meanwhile: start over with --restart"
            )
        counts = {name: sum(outcome[name] for outcome in outcomes) for name in ("rows", "tokens", "truncated")}
        counts["truncated_share"] = round(counts["truncated"] / max(1, counts["rows"]), 4)
        seconds = round(time.perf_counter() - start, 1)
        return plan, finish(
            store, plan, seconds=seconds, inputs=input_files.describe(files), counts=counts, shards=outcomes
        )


def load_features(settings: Settings) -> tuple[Plan, FeatureShards]:
    """What `run_extract` published for these settings. Raises UserError when it has not ended, or for other ones."""
    settings = with_engine(settings, "extract")
    store = Store(settings.store) / "features"
    plan, _ = require(store, "extract", _facts(settings, input_files.list_files(settings.data.train)))
    return plan, FeatureShards.of(store, plan.detail)


def _facts(settings: Settings, files: list[input_files.File]) -> dict[str, Any]:
    """What changes the features; not worker counts, logging or where the same weights lie."""
    code = settings.backbone.trust_remote_code
    digest = compute_digest(locate(settings.backbone.model, settings.backbone.revision, code=code), code=code)
    backbone = settings.backbone.model_dump(include=ACTIVATION_SETTINGS)
    data = settings.data.model_dump(include={"id", "text", "label", "split"})
    return {
        "format": FORMAT,
        "backbone": {**backbone, "digest": digest},
        "data": {**data, "files": input_files.describe(files)},
        "sites": settings.sites,
        "poolings": settings.poolings,
        "shard_documents": settings.ray.shard_documents,
    }


def _survey(settings: Settings, files: list[input_files.File]) -> dict[str, Any]:
    """Check the labels, look at a first batch for each column's type, and plan the shards by what a document takes."""
    coarse = sharding.plan_shards(files, settings.ray.shard_documents, settings.data)
    labelled = training_labels.read_labelled(coarse, settings.data)
    LabelSpace.of(labelled.labels, split_all(labelled.ids, labelled.splits, settings, frozen=frozenset()))
    backbone = load_backbone(settings.backbone)
    probed = feature_columns(backbone, settings.sites, settings.poolings)
    baselines = [FeatureColumn(backbone.final, p) for p in (("last", "mean") if backbone.causal else ("mean",))]
    columns = probed + baselines
    first = readers.read_shard(coarse[0], settings.data).texts[:_SURVEYED]
    types = column_types(backbone, first, columns)
    widths = {column: backbone.width(column.site) for column in columns}
    fitting = max(1, BYTES_A_SHARD // document_bytes(widths, types))
    shards = coarse
    if fitting < settings.ray.shard_documents:
        shards = sharding.plan_shards(files, fitting, settings.data)
    return {
        "shards": [asdict(shard) for shard in shards],
        "documents": len(labelled.ids),
        "types": {str(column): np.dtype(kind).name for column, kind in types.items()},
        "widths": {str(column): width for column, width in widths.items()},
        "depth": backbone.depth,
        "causal": backbone.causal,
    }


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
