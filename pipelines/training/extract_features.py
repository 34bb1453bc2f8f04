"""The extract stage: the frozen backbone reads the texts of a corpus that no training in the store has read before.

Their features join those of all other texts in a pool, from which the features of each document are taken. With
`extract: two_pass` a sample of the documents is read; the chosen neurons of the others are extracted by `keep_neurons`,
once neurons have been chosen.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.corpus import Corpus, CorpusSpool, divide_parts, number_rows
from pipelines.data.feature_pool import (
    FEATURES,
    POOL,
    TEXTS,
    FeaturePool,
    Places,
    PooledTexts,
    make_key,
    name_shard,
    required_file,
    texts_table,
    to_feature_file,
)
from pipelines.data.feature_store import FeaturePlan, FeatureShards, Reading, add_places, labels_key
from pipelines.data.files.input_files import InputFile, list_files
from pipelines.data.files.shards import Shard, even_size
from pipelines.data.forgotten_ids import read_forgotten
from pipelines.data.labelled_corpus import LabelledCorpus, read_labelled
from pipelines.data.spool import PartSize, ReadyPiece, read_documents
from pipelines.data.training_labels import NOTHING_FROZEN, Labels, split_all
from pipelines.storage.lease import Lease, overtaken_first
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import from_json, to_json
from pipelines.storage.retrying import retry_unavailable
from pipelines.storage.shard_log import (
    Attempt,
    LogLayout,
    ShardCounts,
    ShardOutcome,
    ShardTally,
    StepResult,
)
from pipelines.storage.stage_plan import (
    MANIFEST,
    PLAN,
    StageManifest,
    StagePlan,
    delete_objects,
    find_manifest,
    fingerprint,
    load_finished,
    read_plan,
    write_manifest,
    write_plan,
)
from pipelines.training.reading_precision import LearnedTexts, settle_precision
from pipelines.workers import weights_cache
from pipelines.workers.map_shards import C, ShardWork, Step, describe_backbone, map_shards
from pipelines.workers.ray_cluster import runs_here
from pipelines.workers.weights_cache import activation_settings, announce_workers, decide_precision, with_engine
from pipelines.workers.worker_faults import KNOWN_GOOD_TEXT
from spin.activations.engines.engine import open_engine
from spin.activations.extract import choose_column_types, read_activations, single_segment
from spin.activations.feature_table import MAX_SHARD_BYTES, bytes_per_document, features_table
from spin.arrays import Rows
from spin.backbone.loading import load_backbone
from spin.backbone.model import Backbone
from spin.classifier import feature_columns
from spin.errors import UserError
from spin.labels.label_space import LabelSpace
from spin.labels.splits import rows_in_split
from spin.pages.number_format import counted
from spin.precision_trial import PrecisionTrial
from spin.settings import Settings
from spin.sites import FeatureColumn

FORMAT = 8
FEW_DOCUMENTS = 20_000
"""fewer are read in the process of the command: workers would load the libraries and the backbone for as long"""
TWO_PASS_FROM = 5
"""documents, as a multiple of `search.documents`, from which `extract: auto` takes two passes"""
_SURVEYED = 256


@dataclass(frozen=True, kw_only=True)
class ExtractCounts(ShardCounts):
    """A shard of texts that the backbone read."""

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
    """The documents of a corpus, and the sums over the texts that were read for it."""

    extracted: int
    """texts that the backbone read; `rows` counts all documents"""
    truncated_share: float
    """`truncated` per text that the backbone read"""


@dataclass(frozen=True)
class ExtractResults:
    """The manifest of a finished extraction."""

    seconds: float
    """that the last run of the stage took"""
    inputs: tuple[InputFile, ...]
    """files of the corpus"""
    counts: CorpusCounts
    files: tuple[str, ...]
    """keys of the features in the shards of the pool, in the order of `FeaturePlan.pooled`"""
    precision_trial: PrecisionTrial | None = None
    """by which int8 was taken or not; None if it was not tried"""


ExtractPlan = StagePlan[FeaturePlan]
ExtractManifest = StageManifest[ExtractResults]


class ExtractStep:
    """Read a shard of texts, run the backbone and return the shard for the pool."""

    def __init__(self, settings: Settings, digest: str, plan: FeaturePlan) -> None:
        backbone = receive_backbone(settings, digest, plan)
        self.types = plan.reading.column_types
        self.engine = open_engine(backbone, [single_segment(self.types)])

    def check(self) -> None:
        """Compute a text that is known to be good."""
        read_activations(self.engine, [KNOWN_GOOD_TEXT], types=self.types)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ExtractCounts]:
        ids, texts = read_documents(shard)
        features = read_activations(self.engine, texts, types=self.types, progress=attempt.advance)
        counts = ExtractCounts(
            rows=len(texts),
            tokens=int(features.n_tokens.sum()),
            truncated=features.truncated,
            windows=0 if features.windows is None else int(features.windows.sum()),
        )
        named = to_parquet(texts_table(ids, [make_key(text) for text in texts]))
        return StepResult({FEATURES: to_feature_file(features_table(features)), TEXTS: named}, counts)


def receive_backbone(settings: Settings, digest: str, plan: FeaturePlan) -> Backbone:
    """The backbone of a worker, with the scales of the plan."""
    return load_backbone(weights_cache.receive(settings, digest), expect_digest=digest, scales=plan.reading.int8_scales)


def run_extract(settings: Settings, *, restart: bool = False) -> ExtractManifest:
    """Read the texts of the corpus that are not in the pool, and return the manifest; a finished stage is not repeated.

    Raises UserError for a mistake in backbone, sites or data, HeldError if another run uses the store.
    """
    given, settings = settings, with_engine(settings, "extract")
    store = Store.of(settings) / "features"
    files = retry_unavailable(store)(list_files, settings.data.train)
    start = time.perf_counter()
    with Lease(store) as lease, overtaken_first(lease):
        plan = _write_plan(settings, files, store, lease, restart=restart)
        settings = as_planned(settings, plan)
        open_corpus(settings, plan).spool.delete(lease, others=True)  # what killed runs with other corpora have left
        if manifest := find_manifest(store, plan, ExtractResults):
            return manifest
        announce_workers(given, settings, "extract")
        pool = FeaturePool(store, plan.derived.form)
        unread = open_corpus(settings, plan).spool.locate(plan.derived.unread)
        read = read_corpus(
            ExtractStep, (), settings, plan, unread, store, lease, ExtractCounts, stage="extract", folder=pool.folder
        )
        outcomes = pool.outcomes()
        shards = tuple(required_file(outcomes[name], FEATURES) for name in plan.derived.pooled)
        counts = _sum_counts([outcome.counts for outcome in read], plan.derived.documents)
        seconds = round(time.perf_counter() - start, 1)
        trial = plan.derived.reading.precision_trial
        return write_manifest(store, plan, ExtractResults(seconds, tuple(files), counts, shards, trial))


def _sum_counts(read: Sequence[ExtractCounts], documents: int) -> CorpusCounts:
    """The counts of a corpus of so many documents, for which some shards were read."""
    sums = {count.name: sum(getattr(shard, count.name) for shard in read) for count in fields(ExtractCounts)}
    extracted = sums.pop("rows")
    share = round(sums["truncated"] / max(1, extracted), 4)
    return CorpusCounts(**sums, rows=documents, extracted=extracted, truncated_share=share)


def read_corpus(
    make: Callable[..., Step[C]],
    args: tuple[Any, ...],
    settings: Settings,
    plan: ExtractPlan,
    shards: Sequence[Shard],
    store: Store,
    lease: Lease,
    counts_type: type[C],
    *,
    stage: str,
    folder: str,
) -> list[ShardOutcome[C]]:
    """Map a step that runs the backbone over shards of a corpus, with the workers of the extract stage.

    `make` is called with the settings, the digest of the backbone's files, the plan's derived values and `args`. The
    spool is written again if it is gone. Shards are written to a folder of the store. Few documents are read in this
    process, unless an earlier one ended while it read: workers find a document that kills them. The lease is held when
    it returns. Raises HeldError if it is not.
    """
    if not shards:
        lease.check()
        return []
    open_corpus(settings, plan).restore(lease)
    digest = weights_cache.local_digest(settings.backbone)
    weights_cache.publish(settings, digest)
    ray = settings.ray.for_stage("extract")
    work = ShardWork(
        make,
        (settings, digest, plan.derived, *args),
        counts_type,
        store,
        ray,
        stage=stage,
        claim=lease.number,
        layout=LogLayout(folder),
        backbone=describe_backbone(settings.backbone),
    )
    documents = sum(shard.documents for shard in shards)
    began = work.open_log().unfinished() & {shard.name for shard in shards}
    few = documents < FEW_DOCUMENTS and not began
    outcomes = map_shards(work, shards, lease, documents=documents, here=runs_here(ray, few=few))
    lease.check()
    return outcomes


def load_features(settings: Settings) -> tuple[ExtractPlan, ExtractManifest, FeatureShards]:
    """The plan and the manifest of the extraction, and the features that it published for these settings.

    Raises UserError if it has not finished, or finished with other settings or data.
    """
    settings = with_engine(settings, "extract")
    store = Store.of(settings) / "features"
    stored = read_plan(store, FeaturePlan)
    two_passes = _choose_passes(settings, stored, lambda: 0)
    files = retry_unavailable(store)(list_files, settings.data.train)
    metadata = _plan_metadata(as_planned(settings, stored), files, two_passes=two_passes)
    plan, manifest = load_finished(store, "extract", metadata, FeaturePlan, ExtractResults)
    return plan, manifest, FeatureShards.of(store, plan, manifest.results.files)


def open_corpus(settings: Settings, plan: ExtractPlan) -> Corpus:
    """The texts of an extraction's corpus."""
    derived = plan.derived
    files = tuple(from_json(InputFile, file) for file in plan.metadata["data"]["files"])
    spool = CorpusSpool(Store.of(settings), derived.spool, derived.part_size)
    return Corpus(files, spool.locate(derived.shards), spool, settings.data)


def _choose_passes(settings: Settings, stored: ExtractPlan | None, count: Callable[[], int]) -> bool:
    """Whether the extraction takes two passes; `extract: auto` keeps the number of a stored plan.

    `count` returns the number of documents.
    """
    if settings.extract != "auto":
        return settings.extract == "two_pass"
    if stored is not None:
        return "sample" in stored.metadata
    return count() >= TWO_PASS_FROM * settings.search.documents


def as_planned(settings: Settings, plan: ExtractPlan | None) -> Settings:
    """The settings with int8 for `backbone.dtype: auto` where a trial has taken it when the plan was made."""
    if plan is None or settings.backbone.dtype != "auto" or plan.metadata["backbone"]["dtype"] != "int8":
        return settings
    return _in_int8(settings)


def _in_int8(settings: Settings) -> Settings:
    return settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"dtype": "int8"})})


def _plan_metadata(settings: Settings, files: list[InputFile], *, two_passes: bool) -> dict[str, Any]:
    """Everything that changes what the training learns from; not worker counts, logging or paths of weights."""
    data = settings.data.model_dump(include={"id", "text", "label", "split", "group"}) | settings.data.file_format()
    metadata = {
        **_form_metadata(settings),
        "data": {**data, "files": to_json(files)},
        "shard_documents": settings.ray.shard_documents,
    }
    if not two_passes:
        return metadata
    fractions = settings.data.model_dump(include=set() if settings.data.split else {"valid_fraction", "test_fraction"})
    return {**metadata, "sample": {"documents": settings.search.documents, "seed": settings.seed, **fractions}}


def _form_metadata(settings: Settings) -> dict[str, Any]:
    """Everything in the settings that changes the features of a text."""
    backbone = activation_settings(settings.backbone)
    scales = {"scales": settings.backbone.scales or "measured"} if settings.backbone.dtype == "int8" else {}
    return {
        "format": FORMAT,
        "backbone": {**backbone, **scales, "digest": weights_cache.local_digest(settings.backbone)},
        "sites": settings.sites,
        "poolings": settings.poolings,
    }


def _write_plan(
    settings: Settings, files: list[InputFile], store: Store, lease: Lease, *, restart: bool
) -> ExtractPlan:
    """The plan of the extraction, with the table of the documents beside it.

    The corpus and the backbone that this may read are no longer in memory when it returns.
    """
    stored = None if restart else read_plan(store, FeaturePlan)
    survey = _Survey(settings, files, store, lease)
    two_passes = _choose_passes(settings, stored, lambda: len(survey.labelled))
    planned = as_planned(settings, stored) if stored is not None else survey.settled
    metadata = _plan_metadata(planned, files, two_passes=two_passes)
    plan = write_plan(
        store,
        "extract",
        metadata,
        FeaturePlan,
        lambda: survey.plan(sampled=two_passes),
        lease=lease,
        restart=restart,
        may_change=("data", "shard_documents"),
        keep=lambda derived: FeaturePool(store, derived.form).folder if restart else POOL,
    )
    if not store.exists(labels_key(plan)):
        _write_documents(survey, plan, store, lease)
    return plan


def _write_documents(survey: _Survey, plan: ExtractPlan, store: Store, lease: Lease) -> None:
    """Write the table of the documents with the places of their features, and note their ids in the pool."""
    pool, derived, labelled = FeaturePool(store, plan.derived.form), plan.derived, survey.labelled
    keys, first = labelled.text_keys, number_rows(derived.unread, derived.shards)
    known, unread = pool.read_texts(derived.known), Places.of_sizes([shard.documents for shard in derived.unread])
    shards = np.concatenate([known.places.files, unread.files + len(known.shards)])
    texts = PooledTexts(
        derived.pooled,
        pa.chunked_array([*known.keys.chunks, keys.take(pa.array(first))]),
        Places(shards, np.concatenate([known.places.rows, unread.rows])),
    )
    places = texts.find(keys)
    further = places.files >= 0
    further[first] = False  # their ids come with the shards
    pool.delete_unnamed(lease)
    pool.note_use(derived.pooled)
    pool.note_ids(labelled.texts_table().filter(pa.array(further)))
    lease.check()
    sample = survey.choose_sample() if "sample" in plan.metadata else None
    store.write(labels_key(plan), to_parquet(add_places(labelled.table(), places, sample)))


@dataclass(frozen=True)
class _Survey:
    """A corpus that is taken in and checked when its labels or its parts are first needed, and the plan of it."""

    settings: Settings
    files: list[InputFile]
    store: Store
    """of the extract stage"""
    lease: Lease

    @cached_property
    def spool(self) -> CorpusSpool:
        """The spool of the corpus."""
        size = PartSize.of(sum(file.size for file in self.files), self.settings.ray.shard_documents)
        data = self.settings.data.model_dump(include={"id", "text"}) | self.settings.data.file_format()
        folder = fingerprint({"data": data, "files": to_json(self.files), "size": to_json(size)})[:16]
        return CorpusSpool(Store.of(self.settings), folder, size)

    @property
    def labelled(self) -> LabelledCorpus:
        return self._taken_in[0]

    @cached_property
    def _taken_in(self) -> tuple[LabelledCorpus, list[ReadyPiece]]:
        """The labelled corpus and the parts of its spool."""
        writer = self.spool.open_writer(self.lease)
        with self._deleting_refused():
            labelled = read_labelled(self.files, self.settings.data, keep_texts=_SURVEYED, spool=writer)
            _require_none_forgotten(self.settings, labelled)
        return labelled, writer.ready

    @contextmanager
    def _deleting_refused(self) -> Iterator[None]:
        """Delete the spool again if the corpus cannot be learned from."""
        try:
            yield
        except UserError:
            self.spool.delete(self.lease)
            raise

    @cached_property
    def _divided(self) -> tuple[list[str], LabelSpace]:
        """The split of every document, and the classes. Raises UserError for classes that cannot be learned."""
        splits, groups = _split_labelled(self.settings, self.labelled), np.asarray(self.labelled.groups, np.uint64)
        return splits, LabelSpace.of(self.labelled.labels, splits, groups)

    def choose_sample(self) -> Rows | None:
        """The documents whose features are extracted; None if there are not too many to extract all."""
        return _choose_sample(self.settings, self.labelled, *self._divided)

    @cached_property
    def _reading(self) -> Reading:
        """How the texts are read: as a pool says that these settings begin or go on with, else found out by a trial."""
        # guarded by test_forgetting_in_int8_keeps_the_scales; broken by:
        #   if False:
        if (stored := self._find_reading()) is not None:
            return stored
        labelled, parts = self._taken_in
        with self._deleting_refused():
            pieces = [p for shard in self.spool.locate(divide_parts(parts, len(labelled))) for p in shard.pieces]
            texts, backbone = LearnedTexts(labelled, self._divided[0], pieces), load_backbone(self.settings.backbone)
            scales, trial = settle_precision(self.settings, backbone, texts)
            if scales is not None and backbone.precision != "int8":
                backbone = load_backbone(_in_int8(self.settings).backbone)
            backbone.scales = scales
            widths = _column_widths(backbone, self.settings)
            types = choose_column_types(backbone, labelled.texts, list(widths))
        return Reading(
            types={str(column): np.dtype(kind).name for column, kind in types.items()},
            widths={str(column): width for column, width in widths.items()},
            scales=None if scales is None else b64encode(scales.to_bytes()).decode(),
            precision_trial=trial,
        )

    def _find_reading(self) -> Reading | None:
        """How the texts of a pool in the store are read with these settings; None if there is no such pool."""
        for pool in FeaturePool.list_all(self.store):
            stored = pool.read_reading()
            reading = None if stored is None else from_json(Reading, stored)
            if reading is not None and pool.form == _describe_form(self._settle(reading), reading):
                return reading
        return None

    def _settle(self, reading: Reading) -> Settings:
        return self.settings if reading.scales is None else _in_int8(self.settings)

    @property
    def settled(self) -> Settings:
        """The settings with int8 for `backbone.dtype: auto` if a trial takes it, or has taken it for a pool."""
        return self._settle(self._reading)

    def plan(self, *, sampled: bool) -> FeaturePlan:
        """Divide the corpus into shards, and the texts that the pool lacks.

        A shard holds as many documents as the settings ask for, fewer where all are few, or as many as its features fit
        in memory.
        """
        labelled, parts = self._taken_in
        with self._deleting_refused():
            # guarded by test_a_corpus_that_cannot_be_learned_from_leaves_the_last_one; broken by:
            #   splits = labelled.ids
            splits = self._divided[0]
            sample, reading = self.choose_sample() if sampled else None, self._reading
        pool = FeaturePool(self.store, _describe_form(self.settled, reading))
        self._forget_again(pool)
        pool.note_reading(to_json(reading))
        known, unread = _find_unread(labelled.text_keys, pool.read_texts(), sample)
        most = self.settings.ray.shard_documents
        fitting = max(1, MAX_SHARD_BYTES // bytes_per_document(reading.column_widths, reading.column_types))
        size = even_size(len(labelled), most)
        shards = divide_parts(parts, min(fitting, size) if sample is None else size)
        divided = divide_parts(parts, min(fitting, even_size(len(unread), most)), unread)
        return FeaturePlan(
            shards=tuple(shards),
            documents=len(splits),
            reading=reading,
            form=pool.form,
            known=known,
            unread=_name_shards(divided, labelled.texts_table().take(pa.array(unread))),
            spool=self.spool.folder,
            part_size=self.spool.size,
        )

    def _forget_again(self, pool: FeaturePool) -> None:
        """Remove forgotten documents that a worker, which slept over its shard meanwhile, has brought back."""
        forgotten = read_forgotten(Store.of(self.settings))
        if len(forgotten) and pool.holds(forgotten):
            delete_objects(self.store, [key for key in (MANIFEST, PLAN) if self.store.exists(key)], self.lease)
            pool.forget(forgotten, self.lease)


def _column_widths(backbone: Backbone, settings: Settings) -> dict[FeatureColumn, int]:
    """The neurons of every feature column, the baseline columns of the last layer included."""
    probed = feature_columns(backbone, settings.sites, settings.poolings)
    last = ("last", "mean") if backbone.causal else ("mean",)
    baselines = [FeatureColumn(backbone.final_site, pooling) for pooling in last]
    return {column: backbone.width(column.site) for column in probed + baselines}


def _require_none_forgotten(settings: Settings, labelled: LabelledCorpus) -> None:
    """Raise UserError if the corpus holds documents that were forgotten in the store of this training."""
    found = read_forgotten(Store.of(settings)).find(labelled.ids)
    if found:
        raise UserError(
            f"data.train holds {counted(len(found), 'document')} whose ids `spin forget` was given; remove them from "
            "the corpus"
        )


def _split_labelled(settings: Settings, labelled: LabelledCorpus) -> list[str]:
    """The split of every document, as if none were frozen."""
    hashes, groups = np.asarray(labelled.text_hashes, np.uint64), np.asarray(labelled.groups, np.uint64)
    given = labelled.ids, labelled.labels, labelled.splits, hashes, groups
    return split_all(*given, settings, frozen=NOTHING_FROZEN)


def _choose_sample(
    settings: Settings, labelled: LabelledCorpus, splits: list[str], label_space: LabelSpace
) -> Rows | None:
    """The documents whose features are extracted; None if there are not too many to extract all.

    Raises UserError for classes that cannot be learned from the sample alone.
    """
    if len(rows_in_split(splits, "train", "valid")) <= settings.search.documents:
        return None
    y, groups = label_space.index(labelled.labels), np.asarray(labelled.groups, np.uint64)
    return Labels(labelled.ids, label_space, y, splits, groups).training_data(settings).rows


def _describe_form(settings: Settings, reading: Reading) -> str:
    """The digest of all that decides the features of a text."""
    form, precision = _form_metadata(settings), decide_precision(settings, "extract")
    # guarded by test_a_shard_of_an_overtaken_extraction_is_not_among_those_of_its_successor; broken by:
    #   return "one"
    return fingerprint({**form, "precision": precision, "types": reading.types, "scales": reading.scales})[:16]


def _find_unread(
    keys: pa.FixedSizeBinaryArray, pooled: PooledTexts, sample: Rows | None
) -> tuple[tuple[str, ...], Rows]:
    """The shards of a pool that hold texts of a corpus, and the documents, ascending, whose texts it lacks.

    Of documents with equal texts, the first is taken. With a sample, texts of other documents are not missed.
    """
    texts = keys.dictionary_encode()
    numbers = texts.indices.to_numpy()
    _, first = np.unique(numbers, return_index=True)
    places = pooled.find(texts.dictionary)
    lacking = places.files < 0
    if sample is not None:
        lacking &= np.isin(np.arange(len(first)), numbers[sample])
    known = np.unique(places.files[places.files >= 0]).tolist()
    return tuple(pooled.shards[shard] for shard in known), np.sort(first[lacking])


def _name_shards(shards: Sequence[Shard], texts: pa.Table) -> tuple[Shard, ...]:
    """Shards of the pool by the names that follow from their texts, which the table holds in order."""
    firsts = np.cumsum([0, *(shard.documents for shard in shards)])
    return tuple(
        replace(shard, key=name_shard(texts.slice(first, shard.documents)))
        for shard, first in zip(shards, firsts.tolist(), strict=False)
    )
