"""Estimate the time, the workers and the bytes of a night from a sample of it."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.input_files import list_files
from pipelines.data.files.kept_columns import check_kept_names
from pipelines.data.files.shards import even_size
from pipelines.data.intake import plan_intake
from pipelines.nightly.steps.classify_job import PROFILE, SAMPLE, share_to_sample
from pipelines.nightly.steps.counts import ClassifyCounts
from pipelines.nightly.steps.dedup import plan_partitions
from pipelines.nightly.steps.intake_step import IDS
from pipelines.nightly.tables.night_tables import reserved_names
from pipelines.planning.sample import MeasuredShard, NightSample, SampleFigures, take_sample
from pipelines.registry.versions import Registry
from pipelines.storage.parquet import to_parquet
from pipelines.workers.ray_cluster import cluster, worker_count
from spin.errors import UserError
from spin.settings import Settings


@dataclass(frozen=True)
class Intake:
    """The pass that reads and checks every file before documents are classified."""

    documents_per_s: float
    """of one worker"""
    partitions: int
    """number of parts in which the ids are compared, 0 where `data.ids` is trusted"""


@dataclass(frozen=True)
class Hours:
    """Duration of the night."""

    one_worker: float
    workers: int
    """number of workers in the settings, or else that the cluster can hold"""
    with_workers: float
    """with so many `workers`"""


@dataclass(frozen=True)
class Deadline:
    """The workers that a deadline takes."""

    hours: float
    workers: int | None
    """least number; None where no number ends in time"""


@dataclass(frozen=True)
class StoreBytes:
    """Bytes between the night and the object store."""

    read: int
    written: int


@dataclass(frozen=True)
class NightEstimate:
    """The estimated cost of a night. Field names are the keys of `spin plan --json`."""

    model: str
    """name of the registered model"""
    model_version: str
    scales: str | None
    """the digest of the scales by which it is run in int8, None in another precision; models need equal ones to share
    a forward pass"""
    source: str
    """URI of the documents that were sampled"""
    documents: int
    """of the night"""
    shards: int
    """of the night"""
    sample: SampleFigures
    intake: Intake
    hours: Hours
    deadline: Deadline
    one_machine: bool
    """whether all workers share this machine"""
    store: StoreBytes


def estimate_night(
    settings: Settings,
    registry: Registry,
    documents: float,
    *,
    source: str | None = None,
    model: str | None = None,
    deadline: float = 8.0,
    seconds: float = 60.0,
) -> NightEstimate:
    """Estimate a night of so many documents like those of `source`, by default the training corpus.

    `deadline` is in hours; the sample takes `seconds` in this process. Requests to the store are not estimated; the
    bytes of plan, table logs and reports, some kilobytes per shard, are not counted. Raises UserError for a missing
    version, an input without documents that can be classified and figures that are not above 0, UnavailableError where
    the number of workers depends on a cluster that does not answer.
    """
    _check_figures(documents=documents, deadline=deadline, seconds=seconds)
    documents, source = int(documents), source or settings.data.train
    check_kept_names(settings.data, reserved_names())
    version = registry.resolve(model)
    rejected: dict[str, str] = {}
    tasks = plan_intake(list_files(source, bad=rejected), bad=rejected)
    if not tasks:
        why = f" that can be read: {next(iter(rejected.values()))}" if rejected else ""
        raise UserError(f"{source} holds no documents{why}; name some to sample with --input")
    partitions = len(plan_partitions(documents)) if settings.data.ids == "checked" else 0
    sampled = share_to_sample(settings.classify, documents)
    sample = take_sample(settings, registry, version, tasks, seconds, sampled, source=source)
    count = -(-documents // min(even_size(documents, settings.ray.shard_documents), sample.most_in_shard))

    ray = settings.ray.for_stage("classify")
    depends_on_cluster = ray.address is not None and ray.workers is None
    with cluster(ray) if depends_on_cluster else nullcontext():
        workers = worker_count(ray, count)
    hours = _hours(sample, documents, count)
    needed = bisect_left(range(1, count + 1), True, key=lambda w: hours(w) <= deadline) + 1

    return NightEstimate(
        model=registry.name,
        model_version=version,
        scales=sample.scales,
        source=source,
        documents=documents,
        shards=count,
        sample=sample.figures,
        intake=Intake(_reading_rate(sample), partitions),
        hours=Hours(hours(1), workers, hours(workers)),
        deadline=Deadline(deadline, needed if needed <= count else None),
        one_machine=ray.address is None,
        store=_store_bytes(sample, documents, count),
    )


def _check_figures(**figures: float) -> None:
    for name, value in figures.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    if figures["documents"] != int(figures["documents"]):
        raise UserError(f"--documents {figures['documents']:g}: expected a whole number, such as 5e6")


def _hours(sample: NightSample, documents: int, shards: int) -> Callable[[int], float]:
    """The function from a number of workers to the hours of the night."""
    classify_seconds = documents / sample.figures.documents_per_s.median
    intake_seconds = documents / _reading_rate(sample)

    def hours(workers: int) -> float:
        share = math.ceil(shards / workers) / shards  # of the busiest worker: a shard is not divided
        return (sample.figures.load_seconds + (classify_seconds + intake_seconds) * share) / 3600

    return hours


def _reading_rate(sample: NightSample) -> float:
    """Documents per second that are read, checked and spooled."""
    return sum(r.rows for r in sample.readings) / sum(r.seconds for r in sample.readings)


def _share_with_dead(pieces: Sequence[MeasuredShard[ClassifyCounts]], size: float) -> float:
    """The share of shards of `size` documents with dead letters, from the share of the pieces, which are smaller."""
    share = sum(piece.counts.dead > 0 for piece in pieces) / len(pieces)
    return 1 - (1 - share) ** (size * len(pieces) / sum(piece.rows for piece in pieces))


def _store_bytes(sample: NightSample, documents: int, shards: int) -> StoreBytes:
    """The bytes of reading the documents, and of what tasks and shards write and read again."""
    scale = documents / sum(reading.rows for reading in sample.readings)
    profiles = shards * _size(sample.pieces, PROFILE) / len(sample.pieces)
    digests = scale * _size(sample.readings, IDS)
    spool = scale * sum(p.piece.size for reading in sample.readings for p in reading.counts.report.pieces)
    read = scale * sum(reading.read for reading in sample.readings) + spool
    read += digests + profiles * sample.drift

    dead_shards = shards * _share_with_dead(sample.pieces, documents / shards)
    written = profiles + shards * _size(sample.pieces, "json") / len(sample.pieces)
    written += _size(sample.pieces, SAMPLE) * documents / sample.figures.documents
    written += _scaled_size(sample.pieces, "predictions.parquet", documents * sample.predicted_share, shards)
    written += _scaled_size(sample.pieces, "dead.parquet", documents * sample.figures.dead_share, dead_shards)
    written += digests + scale * _size(sample.readings, "json") + spool
    return StoreBytes(round(read), round(written))


def _size(pieces: Sequence[MeasuredShard[Any]], ending: str) -> int:
    """Bytes of all files with an ending."""
    return sum(len(piece.files.get(ending, b"")) for piece in pieces)


def _scaled_size(pieces: Sequence[MeasuredShard[Any]], ending: str, rows: float, files: float) -> float:
    """Bytes of `rows` rows in `files` Parquet files.

    A straight line through two file sizes: the mean of the pieces' files, and one file of many rows of the pieces.
    """
    written = [piece.files[ending] for piece in pieces if ending in piece.files]
    if not written:
        return 0.0
    table = pa.concat_tables([pq.read_table(io.BytesIO(data)) for data in written])
    small_rows, small_size = len(table) / len(written), sum(map(len, written)) / len(written)
    large = table.slice(0, round(rows / files) if len(written) > 1 else 0)
    if len(large) == small_rows:
        return small_size * files
    bytes_per_row = (len(to_parquet(large)) - small_size) / (len(large) - small_rows)
    return small_size * files + bytes_per_row * (rows - small_rows * files)
