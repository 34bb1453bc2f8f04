"""The extract stage: the frozen backbone reads the documents and writes feature shards.

With `extract: two_pass` it reads a sample of them; the chosen neurons of the others are extracted by `keep_neurons`,
once neurons have been chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import labelled_corpus
from pipelines.data.feature_store import DOCUMENTS, FEATURES, FeaturePlan, FeatureShards
from pipelines.data.files import input_files, readers, sharding
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.shards import Shard, even_size
from pipelines.data.forgotten_ids import read_forgotten
from pipelines.data.labelled_corpus import LabelledCorpus
from pipelines.data.training_labels import NOTHING_FROZEN, split_all
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from pipelines.storage.shard_log import (
    Attempt,
    LogLayout,
    ShardCounts,
    ShardOutcome,
    ShardTally,
    StepResult,
)
from pipelines.storage.stage_plan import (
    StageManifest,
    StagePlan,
    find_manifest,
    load_finished,
    plan_fingerprint,
    read_plan,
    write_manifest,
    write_plan,
)
from pipelines.workers import weights_cache
from pipelines.workers.map_shards import C, ShardWork, Step, describe_backbone, map_shards
from pipelines.workers.weights_cache import activation_settings, announce_workers, with_engine
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT
from spin.activations.engines.engine import open_engine
from spin.activations.extract import choose_column_types, read_activations, single_segment
from spin.activations.feature_table import MAX_SHARD_BYTES, bytes_per_document, documents_table, features_table
from spin.arrays import Rows
from spin.backbone.digest import cached_digest
from spin.backbone.hub import locate_model
from spin.backbone.loading import load_backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.split_groups import choose_group, hash_text
from spin.labels.splits import rows_in_split
from spin.labels.training_data import TrainingData
from spin.pages.number_format import counted
from spin.settings import DataSettings, Settings
from spin.sites import FeatureColumn

FORMAT = 6
TWO_PASS_FROM = 5
"""documents, as a multiple of `search.documents`, from which `extract: auto` takes two passes"""
_SURVEYED = 256


@dataclass(frozen=True, kw_only=True)
class ExtractCounts(ShardCounts):
    """A shard of documents whose features are extracted."""

    extracted: int
    """documents that the backbone read; `rows` counts all"""
    tokens: int
    """that the backbone read"""
    truncated: int
    """texts that were not read to their end"""
    windows: int = 0
    """windows in which the backbone read the texts, 0 where long texts are cut"""

    def tallies(self) -> Mapping[str | None, ShardTally]:
        return {None: ShardTally(documents=self.rows, tokens=self.tokens)}


@dataclass(frozen=True, kw_only=True)
class CorpusCounts(ExtractCounts):
    """The sums over all shards of a corpus."""

    truncated_share: float
    """`truncated` per document that the backbone read"""


@dataclass(frozen=True)
class ExtractResults:
    """The manifest of a finished extraction."""

    seconds: float
    """that the last run of the stage took"""
    inputs: tuple[InputFile, ...]
    """files of the corpus"""
    counts: CorpusCounts
    shards: tuple[ShardOutcome[ExtractCounts], ...]
    """in plan order"""


ExtractPlan = StagePlan[FeaturePlan]
ExtractManifest = StageManifest[ExtractResults]


class ExtractStep:
    """Read a shard of documents, run the backbone and return the feature shard."""

    def __init__(self, settings: Settings, digest: str, plan: FeaturePlan) -> None:
        backbone = load_backbone(weights_cache.receive(settings, digest), expect_digest=digest)
        self.data, self.sample, self.types = settings.data, plan.sample, plan.column_types
        self.engine = open_engine(backbone, [single_segment(self.types)])

    def check(self) -> None:
        """Compute a text that is known to be good."""
        read_activations(self.engine, [KNOWN_GOOD_TEXT], types=self.types)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ExtractCounts]:
        documents = readers.read_shard(shard, self.data, columns=readers.ALL_COLUMNS)
        rows = range(len(documents)) if self.sample is None else self.sample[shard.index]
        per_row = len(documents) / max(1, len(rows))
        features = read_activations(
            self.engine,
            [documents.texts[row] for row in rows],
            types=self.types,
            progress=lambda done: attempt.advance(done * per_row),
        )
        text_hashes = [hash_text(text) for text in documents.texts]
        table = documents_table(
            documents.ids,  # type: ignore[arg-type]
            documents.labels,  # type: ignore[arg-type]
            documents.splits,
            text_hashes=text_hashes,
            groups=[choose_group(*pair) for pair in zip(text_hashes, documents.groups, strict=True)],
        )
        files = {DOCUMENTS: to_feature_file(table), FEATURES: to_feature_file(features_table(features))}
        counts = ExtractCounts(
            rows=len(documents),
            extracted=len(rows),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            windows=0 if features.windows is None else int(features.windows.sum()),
        )
        return StepResult(files, counts)


def run_extract(settings: Settings, *, restart: bool = False) -> tuple[ExtractPlan, ExtractManifest]:
    """Write the feature shards of the corpus and return the plan and the manifest; a finished stage is not repeated.

    Raises UserError for a mistake in backbone, sites or data, HeldError if another run uses the store.
    """
    given, settings = settings, with_engine(settings, "extract")
    store = Store.of(settings) / "features"
    files = input_files.list_files(settings.data.train)
    metadata = _plan_metadata(settings, files, None if restart else store)
    start = time.perf_counter()
    with Lease(store) as lease:
        survey = partial(_survey, settings, files, sampled="sample" in metadata)
        plan = write_plan(store, "extract", metadata, FeaturePlan, survey, lease=lease, restart=restart)
        if manifest := find_manifest(store, plan, ExtractResults):
            return plan, manifest
        announce_workers(given, settings, "extract")
        outcomes = read_corpus(
            ExtractStep, (), settings, plan.derived, store, lease, ExtractCounts, stage="extract", folder=plan.folder
        )
        counts = _sum_counts([outcome.counts for outcome in outcomes])
        if counts.rows != plan.derived.documents:
            raise UserError(
                f"extract: the plan counted {plan.derived.documents} documents, the shards hold {counts.rows}; "
                "the data changed meanwhile: start over with --restart"
            )
        seconds = round(time.perf_counter() - start, 1)
        return plan, write_manifest(store, plan, ExtractResults(seconds, tuple(files), counts, tuple(outcomes)))


def read_corpus(
    make: Callable[..., Step[C]],
    args: tuple[Any, ...],
    settings: Settings,
    plan: FeaturePlan,
    store: Store,
    lease: Lease,
    counts_type: type[C],
    *,
    stage: str,
    folder: str,
) -> list[ShardOutcome[C]]:
    """Map a step that runs the backbone over all shards of a corpus, with the workers of the extract stage.

    `make` is called with the settings, the digest of the backbone's files, the plan and `args`. Shards are written to a
    folder of the store. The lease is held when it returns. Raises HeldError if it is not.
    """
    digest = backbone_digest(settings)
    weights_cache.publish(settings, digest)
    work = ShardWork(
        make,
        (settings, digest, plan, *args),
        counts_type,
        store,
        settings.ray.for_stage("extract"),
        stage=stage,
        token=lease.number,
        layout=LogLayout(folder),
        backbone=describe_backbone(settings.backbone),
    )
    outcomes = map_shards(work, plan.shards, lease, documents=plan.documents)
    lease.check()
    return outcomes


def _sum_counts(shards: Sequence[ExtractCounts]) -> CorpusCounts:
    rows, extracted = sum(shard.rows for shard in shards), sum(shard.extracted for shard in shards)
    tokens = sum(shard.tokens for shard in shards)
    truncated = sum(shard.truncated for shard in shards)
    return CorpusCounts(
        rows=rows,
        extracted=extracted,
        tokens=tokens,
        truncated=truncated,
        windows=sum(shard.windows for shard in shards),
        truncated_share=round(truncated / max(1, extracted), 4),
    )


def load_features(settings: Settings) -> tuple[ExtractPlan, ExtractManifest, FeatureShards]:
    """The plan and the manifest of the extraction, and the features that it published for these settings.

    Raises UserError if it has not finished, or finished with other settings or data.
    """
    settings = with_engine(settings, "extract")
    store = Store.of(settings) / "features"
    metadata = _plan_metadata(settings, input_files.list_files(settings.data.train), store)
    plan, manifest = load_finished(store, "extract", metadata, FeaturePlan, ExtractResults)
    return plan, manifest, FeatureShards.of(store, plan.derived, manifest.results.shards)


def backbone_digest(settings: Settings) -> str:
    """The digest of the backbone's files."""
    code = settings.backbone.trust_remote_code
    folder = locate_model(settings.backbone.model, settings.backbone.revision, include_code=code)
    return cached_digest(folder, include_code=code)


def _plan_metadata(settings: Settings, files: list[InputFile], store: Store | None) -> dict[str, Any]:
    """Everything that changes the features; not worker counts, logging or the path of the weights.

    `store` may hold a plan of before, whose number of passes `extract: auto` keeps.
    """
    backbone = activation_settings(settings.backbone)
    data = settings.data.model_dump(include={"id", "text", "label", "split", "group"}) | settings.data.file_format()
    of_one_pass = {
        "format": FORMAT,
        "backbone": {**backbone, "digest": backbone_digest(settings)},
        "data": {**data, "files": to_json(files)},
        "sites": settings.sites,
        "poolings": settings.poolings,
        "shard_documents": settings.ray.shard_documents,
    }
    fractions = settings.data.model_dump(include=set() if settings.data.split else {"valid_fraction", "test_fraction"})
    sample = {"documents": settings.search.documents, "seed": settings.seed, **fractions}
    of_two = {**of_one_pass, "sample": sample}
    if settings.extract != "auto":
        return of_one_pass if settings.extract == "all" else of_two
    plan = None if store is None else read_plan(store, FeaturePlan)
    for metadata in (of_one_pass, of_two):
        if plan is not None and plan.fingerprint == plan_fingerprint("extract", metadata):
            return metadata
    documents = sum(
        shard.documents for shard in sharding.plan_shards(files, settings.ray.shard_documents, settings.data)
    )
    return of_two if documents >= TWO_PASS_FROM * settings.search.documents else of_one_pass


def _survey(settings: Settings, files: list[InputFile], *, sampled: bool) -> FeaturePlan:
    """Check the labelled corpus, choose each column's number type from the first texts, and plan the shards.

    A shard holds as many documents as the settings ask for, fewer where all are few, or as many as its features fit in
    memory.
    """
    shards = sharding.plan_shards(files, settings.ray.shard_documents, settings.data)
    labelled = labelled_corpus.read_labelled(shards, settings.data, keep_texts=_SURVEYED)
    _require_none_forgotten(settings, labelled)
    sample = _choose_sample(settings, labelled, extracts_all=not sampled)
    backbone = load_backbone(settings.backbone)
    probed = feature_columns(backbone, settings.sites, settings.poolings)
    baselines = [FeatureColumn(backbone.final_site, p) for p in (("last", "mean") if backbone.causal else ("mean",))]
    columns = probed + baselines
    types = choose_column_types(backbone, labelled.texts[: labelled.shard_rows[0]], columns)
    widths = {column: backbone.width(column.site) for column in columns}
    sizes = labelled.shard_rows
    share = 1.0 if sample is None else _largest_share(sample, sizes)
    fitting = max(1, int(MAX_SHARD_BYTES / share) // bytes_per_document(widths, types))
    fitting = min(fitting, even_size(len(labelled.ids), settings.ray.shard_documents))
    if fitting < settings.ray.shard_documents:
        shards = sharding.plan_shards(files, fitting, settings.data)
        if sample is not None:
            sizes = [_count_rows(shard, settings.data) for shard in shards]
    return FeaturePlan(
        shards=tuple(shards),
        documents=len(labelled.ids),
        types={str(column): np.dtype(kind).name for column, kind in types.items()},
        widths={str(column): width for column, width in widths.items()},
        depth=backbone.depth,
        causal=backbone.causal,
        sample=None if sample is None else _split_by_shard(sample, sizes),
    )


def _count_rows(shard: Shard, data: DataSettings) -> int:
    """The rows of a shard, which are read only if they are not counted yet."""
    return len(readers.read_shard(shard, data, columns=readers.IDS)) if shard.by_bytes else shard.documents


def _require_none_forgotten(settings: Settings, labelled: LabelledCorpus) -> None:
    """Raise UserError if the corpus holds documents that were forgotten in the store of this training."""
    found = read_forgotten(Store.of(settings)).find(labelled.ids)
    if found:
        raise UserError(
            f"data.train holds {counted(len(found), 'document')} whose ids `spin forget` was given; remove them from "
            "the corpus"
        )


def _choose_sample(settings: Settings, labelled: LabelledCorpus, *, extracts_all: bool) -> Rows | None:
    """The documents whose features are extracted; None if it is all of them, or if there are not too many for that.

    Raises UserError for classes that cannot be learned, as `LabelSpace.of` does, also from the sample alone.
    """
    text_hashes, groups = np.asarray(labelled.text_hashes, np.uint64), np.asarray(labelled.groups, np.uint64)
    splits = split_all(labelled.ids, labelled.splits, text_hashes, groups, settings, frozen=NOTHING_FROZEN)
    label_space = LabelSpace.of(labelled.labels, splits, groups)
    train, valid = (rows_in_split(splits, split) for split in ("train", "valid"))
    if extracts_all or len(train) + len(valid) <= settings.search.documents:
        return None
    data = TrainingData.from_splits(
        label_space.index(labelled.labels),
        splits,
        label_space,
        groups=groups,
        metric=settings.metric,
        seed=settings.seed,
        documents=settings.search.documents,
    )
    return data.rows


def _largest_share(rows: Rows, sizes: Sequence[int]) -> float:
    """The share of its documents that are among some rows, in the shard where it is largest."""
    parts = _split_by_shard(rows, sizes)
    return max(len(part) / max(1, size) for part, size in zip(parts, sizes, strict=True))


def _split_by_shard(rows: Rows, sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Rows of the corpus as positions in shards of these sizes."""
    borders = np.cumsum([0, *sizes])
    parts = np.split(rows, np.searchsorted(rows, borders[1:-1]))
    return tuple(tuple((part - first).tolist()) for part, first in zip(parts, borders, strict=False))


def to_feature_file(table: pa.Table) -> bytes:
    """The table as an uncompressed Parquet file, since activations do not compress.

    It is one row group, so that a reader of one column asks for one range.
    """
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
