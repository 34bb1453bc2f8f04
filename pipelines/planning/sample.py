"""Classify a sample of a night in this process as a worker does, and measure its speed and bytes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from statistics import median
from typing import Generic

import pyarrow as pa

from pipelines.data.files.formats import MAX_BYTES
from pipelines.data.files.kept_columns import without_kept
from pipelines.data.files.shards import Shard
from pipelines.data.intake import plan_night
from pipelines.data.spool import PartSize
from pipelines.nightly.steps.classify_job import ClassifyJob, ModelJob, pass_ending
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.counts import ClassifyCounts, IntakeCounts, PassCounts
from pipelines.nightly.steps.dedup import DuplicateRows
from pipelines.nightly.steps.intake_step import IntakeStep
from pipelines.nightly.tables.night_records import Run
from pipelines.nightly.tables.passes import Pass
from pipelines.planning.night_worker import as_night_worker
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import C, ShardLog
from pipelines.storage.store_requests import PROCESS_REQUESTS
from pipelines.workers.artifact_copy import ArtifactCopy
from pipelines.workers.map_shards import Step, commit_shard
from pipelines.workers.progress import progress
from spin.classifier import TrainedClassifier
from spin.errors import UserError
from spin.fitted import persistence
from spin.settings import DecisionSettings, Settings

_FIRST = 64
"""documents of the piece that warms up, and of the next, whose speed sets the size of the others"""
_PIECES = 8
"""number of pieces that the seconds of a sample are divided into, about"""
_SHARDS = 16
"""most shards of the input that are sampled"""
_RUN = "sample"
"""name of the run"""
_READING = 0.25
"""share of a sample's seconds after which no further task of the intake is done"""


@dataclass(frozen=True)
class MeasuredShard(Generic[C]):
    """The measurements of one committed shard, or of a part of one."""

    counts: C
    seconds: float
    read: int
    """bytes read of the input"""
    files: Mapping[str, bytes]
    """published files by ending; the two of the shard log, attempt and outcome, are "json" together"""

    @property
    def rows(self) -> int:
        return self.counts.rows


@dataclass(frozen=True)
class Rates:
    """Documents per second of one worker, over the pieces of the sample."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class SampleFigures:
    """The measurements of the sample."""

    documents: int
    whole: bool
    """whether these are all documents of the source"""
    pieces: int
    """parts that were measured one by one"""
    seconds: float
    threads: int
    """torch threads of a worker"""
    load_seconds: float
    """until a worker has loaded the model"""
    documents_per_s: Rates
    tokens_per_document: float
    windows_per_document: float
    """in which the backbone reads a document; 1 where long texts are cut"""
    dead_share: float
    """share of the documents that become dead letters"""

    @classmethod
    def of(
        cls, pieces: Sequence[MeasuredShard[ClassifyCounts]], *, whole: bool, threads: int, load_seconds: float
    ) -> SampleFigures:
        """The figures of pieces that have rows, at least one of them classified."""
        counts = [piece.counts for piece in pieces]
        rates = [piece.rows / piece.seconds for piece in pieces]
        documents, predicted = sum(c.rows for c in counts), sum(c.predicted for c in counts)
        return cls(
            documents=documents,
            whole=whole,
            pieces=len(pieces),
            seconds=sum(piece.seconds for piece in pieces),
            threads=threads,
            load_seconds=load_seconds,
            documents_per_s=Rates(median(rates), min(rates), max(rates)),
            tokens_per_document=sum(c.tokens for c in counts) / predicted,
            windows_per_document=sum(c.windows or c.predicted for c in counts) / predicted,
            dead_share=sum(c.dead for c in counts) / documents,
        )


@dataclass(frozen=True)
class NightSample:
    """The measurements that an estimate is computed from."""

    figures: SampleFigures
    pieces: list[MeasuredShard[ClassifyCounts]]
    """classified"""
    readings: list[MeasuredShard[IntakeCounts]]
    """tasks of the intake"""
    drift: bool
    """whether the version has a drift reference, so that a night reads its profiles again"""
    scales: str | None
    """the digest of the scales by which the version is run in int8, None in another precision"""

    @property
    def most_in_shard(self) -> int:
        """Documents that fit into a shard by their bytes."""
        parts = [part for reading in self.readings for part in reading.counts.report.pieces]
        return max(1, MAX_BYTES * sum(part.piece.documents for part in parts) // sum(part.bytes for part in parts))

    @property
    def predicted_share(self) -> float:
        """Share of the documents that is classified."""
        return sum(piece.counts.predicted for piece in self.pieces) / self.figures.documents


def take_sample(
    settings: Settings,
    registry: Registry,
    version: str,
    tasks: Sequence[Shard],
    seconds: float,
    sampled: float,
    *,
    source: str,
) -> NightSample:
    """Take in tasks of the intake, load a version, and classify pieces of what was taken in for some seconds.

    `sampled` is the share of documents that a night keeps for the causes of drift; `source` names the input in errors.
    Runs with the torch threads of one worker and writes into a temporary folder. Raises UserError where no document can
    be read or classified.
    """
    with tempfile.TemporaryDirectory() as scratch, as_night_worker(settings) as of_worker:
        # without a cluster the backbone is read where the settings name it, and not fetched from the store
        local = of_worker.model_copy(update={"ray": settings.ray.model_copy(update={"address": None})})
        run, model = Store(f"{scratch}/run", retry_seconds=0), Path(scratch) / "model"
        model.mkdir(parents=True)
        registry.download(version, model)
        readings = _readings(run / "intake", tasks, settings, seconds * _READING)
        reports = [reading.counts.report for reading in readings]
        plan = plan_night(reports, without_kept(settings.data), settings.ray.shard_documents)
        if not plan.shards:
            why = next((f" that can be read: {file.reason}" for file in plan.files if file.reason), "")
            raise UserError(f"{source} holds no documents{why}; name some to sample with --input")
        shards = plan.shards
        chosen = random.Random(settings.seed).sample(shards, min(len(shards), _SHARDS))
        start = time.perf_counter()
        spin = TrainedClassifier.open(model, local)
        step = ClassifyStep(_job(run, registry, version, model, spin.decision, sampled), local)
        load = time.perf_counter() - start
        pieces, ended = _pieces(step, chosen, run, seconds)
        drift = (model / REFERENCE).exists()
    if not any(piece.counts.predicted for piece in pieces):
        reasons = {reason for piece in pieces for reason in piece.counts.reasons}
        raise UserError(f"none of the documents that were sampled can be classified: {', '.join(sorted(reasons))}")
    pieces = [piece for piece in pieces if piece.rows]
    whole = ended and len(chosen) == len(shards) and len(readings) == len(tasks)
    threads = settings.ray.for_stage("classify").cpus_per_worker
    figures = SampleFigures.of(pieces, whole=whole, threads=threads, load_seconds=load)
    return NightSample(figures, pieces, readings, drift, spin.scales_digest)


def _pieces(
    step: Step[PassCounts], shards: Sequence[Shard], run: Store, seconds: float
) -> tuple[list[MeasuredShard[ClassifyCounts]], bool]:
    """Pieces of about equal size from all shards in turn, and whether all documents were used up in time."""
    for folder in ("cold", "warm"):
        first = _measure(step, next(_split(shards[0], _FIRST)), ShardLog(run / folder))
    # in a small piece few texts are of similar length, so batches are padded more and it is slower
    size = max(_FIRST, int(first.rows / first.seconds * seconds / _PIECES))
    turns = chain.from_iterable(zip_longest(*(_split(shard, size) for shard in shards)))
    total = min(sum(shard.documents for shard in shards), _PIECES * size)
    pieces: list[MeasuredShard[ClassifyCounts]] = []
    until = time.perf_counter() + seconds
    with progress("sample", total, "documents") as advance:
        for number, part in enumerate(part for part in turns if part is not None):
            if pieces and time.perf_counter() >= until:
                return pieces, False
            pieces.append(_of_run(_measure(step, replace(part, index=number), ShardLog(run))))
            advance(pieces[-1].rows)
    return pieces, True


def _of_run(piece: MeasuredShard[PassCounts]) -> MeasuredShard[ClassifyCounts]:
    """The piece of the only run of a pass."""
    files = {ending.removeprefix(pass_ending("", 0)): data for ending, data in piece.files.items()}
    return MeasuredShard(piece.counts.models[_RUN], piece.seconds, piece.read, files)


def _split(shard: Shard, documents: int) -> Iterator[Shard]:
    """The parts of a shard in equal pieces of at most so many documents; each has the index of the shard."""
    for part in shard.pieces:
        pieces = -(-part.documents // documents)
        edges = [part.documents * n // pieces for n in range(pieces + 1)]
        for start, stop in pairwise(edges):
            yield Shard(shard.index, (replace(part, start=start, stop=stop, documents=stop - start),))


def _readings(
    run: Store, tasks: Sequence[Shard], settings: Settings, seconds: float
) -> list[MeasuredShard[IntakeCounts]]:
    """Tasks of the intake, until the seconds are over and there are rows."""
    data = without_kept(settings.data)  # a few files need not have all columns
    size = PartSize.of(sum(task.bytes for task in tasks), settings.ray.shard_documents)
    step = IntakeStep(run, data, size, 0)
    readings: list[MeasuredShard[IntakeCounts]] = []
    until = time.perf_counter() + seconds
    for task in random.Random(settings.seed).sample(tasks, len(tasks)):
        readings.append(_measure(step, task, ShardLog(run)))
        if time.perf_counter() >= until and any(reading.rows for reading in readings):
            break
    return readings


def _job(
    run: Store, registry: Registry, version: str, model: Path, decision: DecisionSettings, sampled: float
) -> ClassifyJob:
    """The job of the workers of a run that nobody publishes."""
    files = {name: (model / name).read_bytes() for name in (persistence.CONFIG, persistence.TENSORS)}
    record = Run(
        name=_RUN,
        date="2000-01-01",
        model=registry.name,
        model_version=version,
        claim=0,
        begun="2000-01-01",
        incremental=False,
        pass_name=_RUN,
    )
    copy = ArtifactCopy.write(run / "model", files)
    job = ModelJob(record, copy, decision, DuplicateRows.none(run), sampled=sampled)
    alone = Pass(name=_RUN, runs=(_RUN,), begun=record.begun)
    return ClassifyJob((job,), pa.schema([]), alone)


def _measure(step: Step[C], shard: Shard, shard_log: ShardLog) -> MeasuredShard[C]:
    """Commit a shard as a worker does, and measure it."""
    before, start = PROCESS_REQUESTS.totals(), time.perf_counter()
    outcome = commit_shard(step, shard, shard_log)
    seconds, requests = time.perf_counter() - start, PROCESS_REQUESTS.totals().since(before)
    log_keys = (shard_log.attempt_key(shard.name), shard_log.outcome_key(shard.name))
    files = {"json": b"".join(shard_log.store.read(key) or b"" for key in log_keys)}
    files |= {key.partition(".")[2]: shard_log.store.read(key) or b"" for key in outcome.files}
    return MeasuredShard(outcome.counts, seconds, requests.bytes_read, files)
