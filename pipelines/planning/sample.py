"""A sample of a night, made in this process as a worker makes it: how fast, and how many bytes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from pipelines.data import sharding
from pipelines.data.readers import Shard, read_shard
from pipelines.nightly.classify_step import CALIBRATION, ClassifyStep
from pipelines.nightly.dedup import DigestStep
from pipelines.registry.packaging import REFERENCE
from pipelines.registry.versions import Registry
from pipelines.storage.object_store import Store
from pipelines.storage.request_counting import Traffic, count_input_reads
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.map_shards import Step, commit_shard
from pipelines.workers.progress import progress
from pipelines.workers.weights_cache import with_engine
from spin.errors import UserError
from spin.settings import Settings

_FIRST = 64
"""documents of the piece that warms up, and once more tells how large the others may be"""
_PIECES = 8
"""into which the seconds of a sample are divided, about"""
_SHARDS = 16
"""of the input, at most, that are sampled"""
_READING = 0.25
"""of the seconds of a sample, after which no further shard is read whole"""


@dataclass(frozen=True)
class Piece:
    """The results of a part of a shard, or of a whole one."""

    counts: Any
    """record of what the step counted"""
    seconds: float
    reads: Traffic
    """of the input"""
    files: dict[str, bytes]
    """by ending; the ledger's own, attempt and outcome, are "json" together"""

    @property
    def rows(self) -> int:
        return int(self.counts.rows)


@dataclass(frozen=True)
class Sample:
    """A worker's start, some pieces of its work, and some whole shards as the pass over the ids reads them."""

    load_seconds: float
    pieces: list[Piece]
    readings: list[Piece]
    text_reads: list[Traffic]
    """of the same whole shards, when ids and texts are read"""
    whole: bool
    """whether there were no other documents"""
    drift: bool
    """whether the version holds a reference, so that a night reads its profiles again"""

    @property
    def rates(self) -> list[float]:
        """Documents a second of every piece."""
        return [piece.rows / piece.seconds for piece in self.pieces]

    def mean(self, count: str, of: str = "rows") -> float:
        """Of a count of the outcomes, to one of another."""
        return sum(getattr(p.counts, count) for p in self.pieces) / max(
            1, sum(getattr(p.counts, of) for p in self.pieces)
        )


def take_sample(
    settings: Settings, registry: Registry, version: str, shards: Sequence[Shard], partitions: int, seconds: float
) -> Sample:
    """Load a version and classify pieces of some of the shards until the seconds are over, or the documents are.

    With the torch threads of one worker. What is published goes into a folder that is removed again. Raises UserError
    where no document can be classified.
    """
    chosen = random.Random(settings.seed).sample(shards, min(len(shards), _SHARDS))
    # a worker of a cluster may have to fetch the backbone first; here it is what the settings name
    alone = with_engine(settings, "classify")
    alone = alone.model_copy(update={"ray": settings.ray.model_copy(update={"address": None})})
    if not settings.ray.for_stage("classify").gpus_per_worker:
        alone = alone.model_copy(update={"backbone": alone.backbone.model_copy(update={"device": "cpu"})})
    with tempfile.TemporaryDirectory() as scratch, _threads(settings.ray.for_stage("classify").cpus_per_worker):
        run, model = Store(f"{scratch}/run"), Path(scratch) / "run" / "model"
        model.mkdir(parents=True)
        registry.download(version, model)
        if settings.backbone.dtype == "int8":
            (run / "model").write_json(CALIBRATION, registry.calibration())
        start = time.perf_counter()
        step = ClassifyStep(run, version, alone, run / "repeats", [], {})
        load = time.perf_counter() - start
        pieces, ended = _pieces(step, chosen, run, seconds)
        readings = _readings(DigestStep(settings.data, max(1, partitions)), chosen, run / "ids", seconds * _READING)
        text_reads = [_count_text_reads(shard, settings) for shard, p in zip(chosen, readings, strict=False) if p.rows]
        drift = (model / REFERENCE).exists()
    if not any(piece.counts.predicted for piece in pieces):
        said = {reason for piece in pieces for reason in piece.counts.reasons}
        said |= {piece.counts.bad for piece in pieces if piece.counts.bad is not None}
        raise UserError(f"none of the documents that were sampled can be classified: {', '.join(sorted(said))}")
    whole = ended and len(chosen) == len(shards)
    return Sample(load, [p for p in pieces if p.rows], [p for p in readings if p.rows], text_reads, whole, drift)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pieces(step: Step[Any], shards: Sequence[Shard], run: Store, seconds: float) -> tuple[list[Piece], bool]:
    """Pieces of about equal size, of all of the shards in turn, and whether these ended before the seconds did."""
    for again in ("cold", "warm"):
        first = _measure(step, next(sharding.split_shard(shards[0], _FIRST)), ShardLog(run / again))
    # a small piece has few texts of like length for a batch, and is slower for that
    size = max(_FIRST, int(first.rows / first.seconds * seconds / _PIECES))
    turns = chain.from_iterable(zip_longest(*(sharding.split_shard(shard, size) for shard in shards)))
    total = min(sum(shard.documents for shard in shards), _PIECES * size)
    pieces: list[Piece] = []
    until = time.perf_counter() + seconds
    with progress("sample", total, "documents") as advance:
        for number, part in enumerate(part for part in turns if part is not None):
            if pieces and time.perf_counter() >= until:
                return pieces, False
            pieces.append(_measure(step, replace(part, index=number), ShardLog(run)))
            advance(pieces[-1].rows)
    return pieces, True


def _readings(step: Step[Any], shards: Sequence[Shard], run: Store, seconds: float) -> list[Piece]:
    readings: list[Piece] = []
    until = time.perf_counter() + seconds
    for shard in shards:
        readings.append(_measure(step, shard, ShardLog(run)))
        if time.perf_counter() >= until:
            break
    return readings


def _count_text_reads(shard: Shard, settings: Settings) -> Traffic:
    with count_input_reads() as traffic:
        read_shard(shard, settings.data)
    return traffic


def _measure(step: Step[Any], shard: Shard, shard_log: ShardLog) -> Piece:
    """Commit a shard, as a worker does, and see what that took."""
    with count_input_reads() as reads:
        start = time.perf_counter()
        outcome = commit_shard(step, shard, shard_log)
        seconds = time.perf_counter() - start
    own = (f"attempts/{shard.name}.json", f"parts/{shard.name}.json")
    files = {"json": b"".join(shard_log.store.read(key) or b"" for key in own)}
    files |= {key.partition(".")[2]: shard_log.store.read(key) or b"" for key in outcome.files}
    return Piece(outcome.counts, seconds, reads, files)
