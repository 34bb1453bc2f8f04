"""Classify a sample of a night in this process as a worker does, and measure its speed, requests and bytes."""

from __future__ import annotations

import logging
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Generic

import torch

from pipelines.data import sharding
from pipelines.data.readers import read_shard
from pipelines.data.shards import Shard
from pipelines.nightly.classify_step import CALIBRATION, ClassifyStep
from pipelines.nightly.dedup import DigestStep
from pipelines.nightly.run_records import ClassifyCounts, DigestCounts
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.versions import Registry
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from pipelines.storage.request_counting import Traffic, count_input_reads
from pipelines.storage.shard_log import C, ShardLog
from pipelines.workers.map_shards import Step, commit_shard
from pipelines.workers.progress import progress
from pipelines.workers.weights_cache import with_engine
from spin.errors import UserError
from spin.settings import Settings

_log = logging.getLogger(__name__)
_FIRST = 64
"""documents of the piece that warms up, and of the next, whose speed sets the size of the others"""
_PIECES = 8
"""number of pieces that the seconds of a sample are divided into, about"""
_SHARDS = 16
"""most shards of the input that are sampled"""
_READING = 0.25
"""share of a sample's seconds after which no further shard is read for its ids"""


@dataclass(frozen=True)
class Piece(Generic[C]):
    """The measurements of one committed shard, or of a part of one."""

    counts: C
    seconds: float
    reads: Traffic
    """requests and bytes of reading the input"""
    files: Mapping[str, bytes]
    """published files by ending; the two of the shard log, attempt and outcome, are "json" together"""

    @property
    def rows(self) -> int:
        return self.counts.rows


@dataclass(frozen=True)
class Sample:
    """The measurements that an estimate is computed from."""

    load_seconds: float
    """until a worker has loaded the model"""
    pieces: list[Piece[ClassifyCounts]]
    """classified"""
    readings: list[Piece[DigestCounts]]
    """whole shards of which only the ids were read, as the duplicate-id pass does"""
    text_reads: list[Traffic]
    """requests and bytes of reading ids and texts of the same whole shards"""
    whole: bool
    """whether all documents of the input were classified"""
    drift: bool
    """whether the version has a drift reference, so that a night reads its profiles again"""

    @property
    def rows(self) -> int:
        """Documents of the pieces."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def rates(self) -> list[float]:
        """Documents per second of every piece."""
        return [piece.rows / piece.seconds for piece in self.pieces]

    @property
    def predicted_share(self) -> float:
        """Share of the documents that is classified."""
        return sum(piece.counts.predicted for piece in self.pieces) / max(1, self.rows)

    @property
    def dead_share(self) -> float:
        """Share of the documents that become dead letters."""
        return sum(piece.counts.dead for piece in self.pieces) / max(1, self.rows)

    @property
    def tokens_per_document(self) -> float:
        """Mean tokens of a classified document."""
        return sum(piece.counts.tokens for piece in self.pieces) / max(
            1, sum(piece.counts.predicted for piece in self.pieces)
        )


def take_sample(
    settings: Settings, registry: Registry, version: str, shards: Sequence[Shard], partitions: int, seconds: float
) -> Sample:
    """Load a version and classify pieces of some shards, until the seconds or the documents are used up.

    Runs with the torch threads of one worker and publishes into a temporary folder. Raises UserError where no document
    can be classified.
    """
    chosen = random.Random(settings.seed).sample(shards, min(len(shards), _SHARDS))
    # without a cluster the backbone is read where the settings name it, and not fetched from the store
    local = with_engine(settings, "classify")
    local = local.model_copy(update={"ray": settings.ray.model_copy(update={"address": None})})
    if not settings.ray.for_stage("classify").gpus_per_worker:
        local = local.model_copy(update={"backbone": local.backbone.model_copy(update={"device": "cpu"})})
    with tempfile.TemporaryDirectory() as scratch, _threads(settings.ray.for_stage("classify").cpus_per_worker):
        run, model = Store(f"{scratch}/run"), Path(scratch) / "run" / "model"
        model.mkdir(parents=True)
        registry.download(version, model)
        if settings.backbone.dtype == "int8":
            (run / "model").write_json(CALIBRATION, registry.calibration())
        start = time.perf_counter()
        step = ClassifyStep(run, version, local, run / "repeats", [], {})
        load = time.perf_counter() - start
        pieces, ended = _pieces(step, chosen, run, seconds)
        readings = _readings(DigestStep(settings.data, max(1, partitions)), chosen, run / "ids", seconds * _READING)
        text_reads = [_count_text_reads(shard, settings) for shard, p in zip(chosen, readings, strict=False) if p.rows]
        drift = (model / REFERENCE).exists()
    if not any(piece.counts.predicted for piece in pieces):
        reasons = {reason for piece in pieces for reason in piece.counts.reasons}
        reasons |= {piece.counts.bad for piece in pieces if piece.counts.bad is not None}
        raise UserError(f"none of the documents that were sampled can be classified: {', '.join(sorted(reasons))}")
    whole = ended and len(chosen) == len(shards)
    return Sample(load, [p for p in pieces if p.rows], [p for p in readings if p.rows], text_reads, whole, drift)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pieces(
    step: Step[ClassifyCounts], shards: Sequence[Shard], run: Store, seconds: float
) -> tuple[list[Piece[ClassifyCounts]], bool]:
    """Pieces of about equal size from all shards in turn, and whether all documents were used up in time."""
    for folder in ("cold", "warm"):
        first = _measure(step, next(sharding.split_shard(shards[0], _FIRST)), ShardLog(run / folder))
    # in a small piece few texts are of similar length, so batches are padded more and it is slower
    size = max(_FIRST, int(first.rows / first.seconds * seconds / _PIECES))
    turns = chain.from_iterable(zip_longest(*(sharding.split_shard(shard, size) for shard in shards)))
    total = min(sum(shard.documents for shard in shards), _PIECES * size)
    pieces: list[Piece[ClassifyCounts]] = []
    until = time.perf_counter() + seconds
    with progress("sample", total, "documents") as advance:
        for number, part in enumerate(part for part in turns if part is not None):
            if pieces and time.perf_counter() >= until:
                return pieces, False
            pieces.append(_measure(step, replace(part, index=number), ShardLog(run)))
            advance(pieces[-1].rows)
    return pieces, True


def _readings(
    step: Step[DigestCounts], shards: Sequence[Shard], run: Store, seconds: float
) -> list[Piece[DigestCounts]]:
    """Whole shards whose ids are read, until the seconds are over."""
    readings: list[Piece[DigestCounts]] = []
    until = time.perf_counter() + seconds
    for shard in shards:
        readings.append(_measure(step, shard, ShardLog(run)))
        if time.perf_counter() >= until:
            break
    return readings


def _count_text_reads(shard: Shard, settings: Settings) -> Traffic:
    """The requests and bytes of reading the ids and texts of a whole shard, up to where it cannot be read."""
    with count_input_reads() as traffic:
        try:
            read_shard(shard, settings.data)
        except BadFileError:
            _log.debug("%s cannot be read; a night quarantines it", shard.uri, exc_info=True)
    return traffic


def _measure(step: Step[C], shard: Shard, shard_log: ShardLog) -> Piece[C]:
    """Commit a shard as a worker does, and measure it."""
    with count_input_reads() as reads:
        start = time.perf_counter()
        outcome = commit_shard(step, shard, shard_log)
        seconds = time.perf_counter() - start
    log_keys = (shard_log.attempt_key(shard.name), shard_log.outcome_key(shard.name))
    files = {"json": b"".join(shard_log.store.read(key) or b"" for key in log_keys)}
    files |= {key.partition(".")[2]: shard_log.store.read(key) or b"" for key in outcome.files}
    return Piece(outcome.counts, seconds, reads, files)
