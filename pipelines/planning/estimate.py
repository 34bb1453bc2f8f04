"""What a night will take: time, workers and an object store's bytes and requests, from a sample of it."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import input_files, sharding
from pipelines.nightly.classify import FEW_IDS
from pipelines.nightly.classify_step import PROFILE
from pipelines.nightly.dedup import plan_partitions
from pipelines.planning.request_model import night_requests
from pipelines.planning.sample import Piece, Sample, take_sample
from pipelines.registry.versions import Registry
from pipelines.storage.request_counting import Traffic, count_input_reads
from pipelines.workers.ray_cluster import cluster, worker_count
from spin.errors import UserError
from spin.settings import Settings


def forecast(
    settings: Settings,
    registry: Registry,
    documents: float,
    *,
    source: str | None = None,
    model: str | None = None,
    deadline: float = 8.0,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """What a night of so many documents like those of `source`, by default the training corpus, will take.

    A deadline is in hours, `seconds` are those of the sample, which is taken in this process. Many files are taken to
    stay as large as they are, a single one to grow. Of the store's bytes plan, manifest and reports are left out, some
    kilobytes a shard. Raises UserError for a version that is not there, an input without documents that can be
    classified and figures that are not above 0, UnavailableError where the cluster is to be asked and does not answer.
    """
    _check_figures(documents=documents, deadline=deadline, seconds=seconds)
    documents, source = int(documents), source or settings.data.train
    version = registry.resolve(model)
    bad: dict[str, str] = {}
    files = input_files.list_files(source, bad=bad)
    with count_input_reads() as planning:
        shards = sharding.plan_shards(files, settings.ray.shard_documents, settings.data, bad=bad)
    found = sum(shard.documents for shard in shards)
    if not found:
        why = f" that can be read: {next(iter(bad.values()))}" if bad else ""
        raise UserError(f"{source} holds no documents{why}; name some to sample with --input")
    grows = len(files) == 1 and documents > found
    size = settings.ray.shard_documents if grows else found / len(shards)
    count = max(1, math.ceil(round(documents / size, 1)))  # how many lines JSONL has is only about known
    partitions = len(plan_partitions(documents)) if settings.data.ids == "checked" else 0
    sample = take_sample(settings, registry, version, shards, partitions, seconds)

    ray = settings.ray.for_stage("classify")
    asks = ray.address is not None and ray.workers is None
    with cluster(ray) if asks else nullcontext():
        workers = worker_count(ray, count)
    hours = _hours(sample, documents, count, partitions)
    needed = bisect_left(range(1, count + 1), True, key=lambda w: hours(w) <= deadline) + 1

    dead_shards = count * _share_with_dead(sample.pieces, documents / count)
    traffic = planning * (count / len(shards)) + night_requests(
        count,
        dead_shards=dead_shards,
        files=len(files) * (1 if grows else count / len(shards)),
        workers=workers,
        seconds=3600 * hours(workers),
        partitions=partitions,
        drift=sample.drift,
    )
    traffic += _moved(sample, documents, count, dead_shards, ids=bool(partitions))
    return {
        "model": registry.name,
        "model_version": version,
        "source": source,
        "documents": documents,
        "shards": count,
        "sample": _facts(sample, ray.cpus_per_worker),
        "ids": {"documents_per_s": _reading_rate(sample), "partitions": partitions} if partitions else None,
        "hours": {"one_worker": hours(1), "workers": workers, "with_workers": hours(workers)},
        "deadline": {"hours": deadline, "workers": needed if needed <= count else None},
        "one_machine": ray.address is None,
        "store": {name: round(value) for name, value in asdict(traffic).items()},
    }


def _check_figures(**figures: float) -> None:
    for name, value in figures.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    if figures["documents"] != int(figures["documents"]):
        raise UserError(f"--documents {figures['documents']:g}: expected a whole number, such as 5e6")


def _facts(sample: Sample, threads: int) -> dict[str, Any]:
    return {
        "documents": sum(piece.rows for piece in sample.pieces),
        "whole": sample.whole,
        "pieces": len(sample.pieces),
        "seconds": sum(piece.seconds for piece in sample.pieces),
        "threads": threads,
        "load_seconds": sample.load_seconds,
        "documents_per_s": {"median": median(sample.rates), "lowest": min(sample.rates), "highest": max(sample.rates)},
        "tokens_per_document": sample.mean("tokens", "predicted"),
        "dead_share": sample.mean("dead"),
    }


def _hours(sample: Sample, documents: int, shards: int, partitions: int) -> Callable[[int], float]:
    """From a number of workers to the hours of a night."""
    classifying = documents / median(sample.rates)
    looking = documents / _reading_rate(sample) if partitions else 0.0

    def hours(workers: int) -> float:
        share = math.ceil(shards / workers) / shards  # of the worker with most: a shard is not divided
        return (sample.load_seconds + classifying * share + looking * (share if documents > FEW_IDS else 1)) / 3600

    return hours


def _reading_rate(sample: Sample) -> float:
    """Documents a second whose ids are read and digested."""
    return sum(r.rows for r in sample.readings) / sum(r.seconds for r in sample.readings)


def _share_with_dead(pieces: Sequence[Piece], size: float) -> float:
    """Of shards of some size, how many have dead letters: one has none where none of its pieces has."""
    share = sum(piece.counts.dead > 0 for piece in pieces) / len(pieces)
    return 1 - (1 - share) ** (size * len(pieces) / sum(piece.rows for piece in pieces))


def _moved(sample: Sample, documents: int, shards: int, dead_shards: float, *, ids: bool) -> Traffic:
    """The requests for the documents, and the bytes of these and of what shards publish."""
    rows = sum(r.rows for r in sample.readings)

    def of_all_shards(reads: Sequence[Traffic]) -> Traffic:
        total = sum(reads, Traffic())
        return replace(total * (shards / len(reads)), read=total.read * documents / rows)

    traffic = of_all_shards(sample.text_reads)
    profiles = shards * _size(sample.pieces, PROFILE) / len(sample.pieces)
    written = profiles + shards * _size(sample.pieces, "json") / len(sample.pieces)
    written += _grown(sample.pieces, "predictions.parquet", documents * sample.mean("predicted"), shards)
    written += _grown(sample.pieces, "dead.parquet", documents * sample.mean("dead"), dead_shards)
    again = 0.0
    if ids:
        traffic += of_all_shards([reading.reads for reading in sample.readings])
        again = _size(sample.readings, "ids") * documents / rows
        written += again + shards * _size(sample.readings, "json") / len(sample.readings)
    return traffic + Traffic(read=again + profiles * sample.drift, written=written)


def _size(pieces: Sequence[Piece], ending: str) -> int:
    return sum(len(piece.files.get(ending, b"")) for piece in pieces)


def _grown(pieces: Sequence[Piece], ending: str, rows: float, files: float) -> float:
    """Bytes of so many rows in so many Parquet files, by what pieces of them take alone and what they take together."""
    found = [piece.files[ending] for piece in pieces if ending in piece.files]
    if not found:
        return 0.0
    every = pa.concat_tables([pq.read_table(io.BytesIO(data)) for data in found])
    alone, mean = len(every) / len(found), sum(map(len, found)) / len(found)
    together = every.slice(0, round(rows / files) if len(found) > 1 else 0)
    if len(together) == alone:
        return mean * files
    sink = io.BytesIO()
    pq.write_table(together, sink, compression="zstd")
    a_row = (sink.tell() - mean) / (len(together) - alone)
    return mean * files + a_row * (rows - alone * files)
