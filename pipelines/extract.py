"""Corpus to feature shards: the frozen backbone reads every document once."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import backbones, corpus
from pipelines.backbones import DECISIVE, with_engine
from pipelines.documents import Shard
from pipelines.features import FeatureShards
from pipelines.labels import split_all
from pipelines.lease import Lease
from pipelines.ledger import Attempt
from pipelines.manifest import Plan, finish, finished, freeze, require
from pipelines.shards import map_shards
from pipelines.store import Store
from spin.backbone import digest_of, load_backbone
from spin.classifier import columns_of
from spin.engine import open_engine
from spin.errors import UserError
from spin.extract import column_types, read, whole
from spin.features import BYTES_A_SHARD, document_bytes, to_table
from spin.settings import Settings
from spin.sites import Column
from spin.task import Task
from spin.weights import locate

FORMAT = 2
_SURVEYED = 256


class ExtractStep:
    """Reads a shard, runs the backbone and gives the feature shard."""

    def __init__(self, settings: Settings, digest: str, types: dict[str, str]) -> None:
        backbone = load_backbone(backbones.receive(settings, digest), expect_digest=digest)
        self.data = settings.data
        self.types = {Column.parse(name): np.dtype(kind).type for name, kind in types.items()}
        self.engine = open_engine(backbone, [whole(self.types)])

    def __call__(self, shard: Shard, attempt: Attempt) -> tuple[dict[str, bytes], dict[str, Any]]:
        documents = corpus.read_shard(shard, self.data, labelled=True)
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
    files = corpus.list_files(settings.data.train)
    facts = _facts(settings, files)
    start = time.perf_counter()
    with Lease(store) as lease:
        plan = freeze(store, "extract", facts, lambda: _survey(settings, files), restart=restart)
        if manifest := finished(store, plan):
            return plan, manifest
        digest = facts["backbone"]["digest"]
        backbones.publish(settings, digest)
        outcomes = map_shards(
            ExtractStep,
            (settings, digest, plan.detail["types"]),
            [Shard(**shard) for shard in plan.detail["shards"]],
            store,
            settings.ray.of("extract"),
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
        return plan, finish(store, plan, seconds=seconds, inputs=corpus.describe(files), counts=counts, shards=outcomes)


def load_features(settings: Settings) -> tuple[Plan, FeatureShards]:
    """What `run_extract` published for these settings. Raises UserError when it has not ended, or for other ones."""
    settings = with_engine(settings, "extract")
    store = Store(settings.store) / "features"
    plan, _ = require(store, "extract", _facts(settings, corpus.list_files(settings.data.train)))
    return plan, FeatureShards.of(store, plan.detail)


def _facts(settings: Settings, files: list[corpus.File]) -> dict[str, Any]:
    """What changes the features; not worker counts, logging or where the same weights lie."""
    code = settings.backbone.trust_remote_code
    digest = digest_of(locate(settings.backbone.model, settings.backbone.revision, code=code), code=code)
    backbone = settings.backbone.model_dump(include=DECISIVE)
    data = settings.data.model_dump(include={"id", "text", "label", "split"})
    return {
        "format": FORMAT,
        "backbone": {**backbone, "digest": digest},
        "data": {**data, "files": corpus.describe(files)},
        "sites": settings.sites,
        "poolings": settings.poolings,
        "shard_documents": settings.ray.shard_documents,
    }


def _survey(settings: Settings, files: list[corpus.File]) -> dict[str, Any]:
    """Check the labels, look at a first batch for each column's type, and plan the shards by what a document takes."""
    coarse = corpus.plan_shards(files, settings.ray.shard_documents, settings.data)
    labelled = corpus.read_labelled(coarse, settings.data)
    Task.of(labelled.labels, split_all(labelled.ids, labelled.splits, settings, frozen=frozenset()))
    backbone = load_backbone(settings.backbone)
    probed = columns_of(backbone, settings.sites, settings.poolings)
    baselines = [Column(backbone.final, p) for p in (("last", "mean") if backbone.causal else ("mean",))]
    columns = probed + baselines
    first = corpus.read_shard(coarse[0], settings.data).texts[:_SURVEYED]
    types = column_types(backbone, first, columns)
    widths = {column: backbone.width(column.site) for column in columns}
    fitting = max(1, BYTES_A_SHARD // document_bytes(widths, types))
    shards = coarse
    if fitting < settings.ray.shard_documents:
        shards = corpus.plan_shards(files, fitting, settings.data)
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
