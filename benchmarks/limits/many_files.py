"""Nights of very many or very large files, through a proxy that delays and counts requests, and one large commit."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits.delay_proxy import DelayProxy, Traffic, run_delay_proxy
from benchmarks.limits.tiny_night import DAY, SHARD, WORKERS, night_command, prepare, read_night
from benchmarks.section_page import Part, Verdict, table
from pipelines.nightly.report.night_report import busy_seconds
from pipelines.nightly.tables.night_records import begin_run, finish_run, lease_model
from pipelines.nightly.tables.night_tables import INPUTS, PREDICTIONS, NightTables, file_rows, table_schema
from pipelines.nightly.tables.publication import claim_nights, publish_night, write_inputs
from pipelines.storage.delta_table import DataFile
from pipelines.storage.object_store import Store

LATENCY = 0.02
"""seconds that every request waits"""
_MODEL = "limits"
_WORDS = "the crew was fine and the day was warm "
_DOCUMENT = 20_000
"""bytes of text of a document in the large files"""
_PARALLEL = 32


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are."""

    files: int
    """small files"""
    documents: int
    """documents per small file"""
    bytes: int
    """of each large file"""
    parts: int
    """files that one commit publishes"""


FULL = Sizes(files=20_000, documents=5, bytes=1_000_000_000, parts=10_000)
QUICK = Sizes(files=200, documents=5, bytes=80_000_000, parts=100)


@dataclass(frozen=True)
class NightCost:
    """What a night took from the object store, and how long."""

    name: str
    """of the input"""
    files: int
    input_bytes: int
    """bytes of the input"""
    documents: int
    shards: int
    """of the classify stage"""
    input_requests: int
    """requests for input files; listings are among the other requests"""
    input_read: int
    """bytes read of input files"""
    lease_requests: int
    """requests of the lease, which is renewed every few seconds"""
    other_requests: int
    """all other requests"""
    seconds: float
    """of the whole command, its start included"""
    computing: float
    """seconds in which at least one shard was being classified"""

    @property
    def overhead(self) -> float:
        """Seconds beyond computing."""
        return self.seconds - self.computing


@dataclass(frozen=True)
class FileCosts:
    """What many and large files take."""

    nights: Sequence[NightCost]
    """of one small file, of many small files, of one CSV file and of one Parquet file"""
    published: int
    """files of one commit"""
    publication: float
    """seconds of this commit"""


def measure(folder: Path, *, quick: bool) -> FileCosts:
    """Classify nights of a few documents, of many small files and of two large files; then publish many files at once.

    The first night has the cost that every night has. An S3 server is started for it.
    """
    from tests.support.s3_server import run_s3_server

    sizes = QUICK if quick else FULL
    with run_s3_server():
        prepare(folder)
        nights = _measure_nights(folder, os.environ["AWS_ENDPOINT_URL"], sizes)
        return FileCosts(nights, sizes.parts, publish_parts(sizes.parts))


def section(costs: FileCosts) -> Part:
    """Requests, bytes and seconds of nights of many or large files, and the seconds of the publication."""
    rows = [
        [f"{c.files:,} × {c.name}" if c.files > 1 else c.name, f"{c.input_bytes / 1e6:,.1f}", f"{c.documents:,}",
         f"{c.shards:,}", f"{c.input_requests:,}", f"{c.input_read / 1e6:,.1f}", f"{c.lease_requests:,}",
         f"{c.other_requests:,}", f"{c.seconds:.0f}", f"{c.computing:.0f}"]
        for c in costs.nights
    ]  # fmt: skip
    heads = ["input", "MB", "documents", "shards", "requests for input", "MB of input read", "requests of the lease",
             "other requests", "seconds", "… computing"]  # fmt: skip
    text = [
        table(heads, rows),
        f"Nights on an S3 server, each request delayed by {1000 * LATENCY:.0f} ms, on a tiny random backbone with the "
        f"check for duplicate ids, {SHARD:,} documents per shard, {WORKERS} workers. Requests and bytes as a "
        "proxy before the server counts them, headers included, of driver and workers. Seconds: of the whole command, "
        "its start included. Computing: while at least one shard was being classified. A night of one small file has "
        "the cost that every night has.\n",
        f"Publishing {costs.published:,} files took {costs.publication:.1f} s without the delay.\n",
    ]
    promise = (
        f"publishing {costs.published:,} files takes {costs.publication:.1f} s, expected at most {_PUBLICATION:.0f} s"
    )
    return "\n".join(text), [*_judge_nights(costs.nights), (costs.publication <= _PUBLICATION, promise)]


def _judge_nights(nights: Sequence[NightCost]) -> list[Verdict]:
    """Whether requests, bytes and seconds keep to their budgets; the first night has the cost that every night has."""
    base, many, large_csv, large_parquet = nights
    per_file = many.input_requests / many.files
    per_shard = (many.other_requests - base.other_requests) / many.shards
    read = {
        cost.name: (cost.input_read / cost.input_bytes, most)
        for cost, most in ((large_csv, _CSV_READ), (large_parquet, _PARQUET_READ))
    }
    return [
        (per_file <= 1, f"{per_file:.2f} requests per small file, expected at most 1"),
        (per_shard <= _PER_SHARD, f"{per_shard:.1f} further requests per shard, expected at most {_PER_SHARD}"),
        (
            many.overhead <= _OVERHEAD,
            f"{many.files:,} small files take {many.overhead:.0f} s beyond computing, expected at most "
            f"{_OVERHEAD:.0f} s",
        ),
        *(
            (times <= most, f"{name}: read {times:.2f} × its size, expected at most {most} ×")
            for name, (times, most) in read.items()
        ),
    ]


_PER_SHARD, _OVERHEAD, _CSV_READ, _PARQUET_READ, _PUBLICATION = 8, 120.0, 1.1, 1.3, 10.0
"""promises: requests per shard, seconds beyond computing, bytes read by bytes of input, seconds of a commit"""


def _measure_nights(folder: Path, endpoint: str, sizes: Sizes) -> list[NightCost]:
    writers: dict[str, Callable[[Store], object]] = {
        "one small file": lambda store: _write_small_files(store, 1, sizes.documents),
        "small JSONL files": lambda store: _write_small_files(store, sizes.files, sizes.documents),
        "one CSV file": lambda store: _write_large_csv(store, folder, sizes.bytes),
        "one Parquet file of one row group": lambda store: _write_large_parquet(store, folder, sizes.bytes),
    }
    costs = []
    with run_delay_proxy(endpoint, "/spin/limits/in/", LATENCY) as (delayed, proxy):
        for number, (name, write) in enumerate(writers.items()):
            write(Store(f"s3://spin/limits/in/{number}"))
            costs.append(_run_night(folder, delayed, proxy, number, name))
            print(costs[-1], flush=True)
    return costs


def _run_night(folder: Path, endpoint: str, proxy: DelayProxy, number: int, name: str) -> NightCost:
    """Classify an input in a fresh process, through the proxy."""
    source, output = f"s3://spin/limits/in/{number}", f"s3://spin/limits/out/{number}"
    proxy.reset()
    start = time.perf_counter()
    subprocess.run(night_command(folder, source, output), check=True, env={**os.environ, "AWS_ENDPOINT_URL": endpoint})
    return _cost(name, Store(source), Store(output), proxy.traffic, time.perf_counter() - start)


def _cost(name: str, source: Store, out: Store, traffic: Traffic, seconds: float) -> NightCost:
    night, shards = read_night(out)
    objects = source.list_objects()
    return NightCost(
        name=name,
        files=len(objects),
        input_bytes=sum(item.size for item in objects),
        documents=night.rows,
        shards=len(shards),
        input_requests=traffic.input.requests.total(),
        input_read=traffic.input.read,
        lease_requests=traffic.lease.requests.total(),
        other_requests=traffic.rest.requests.total(),
        seconds=round(seconds, 1),
        computing=round(busy_seconds(shards), 1),
    )


def publish_parts(parts: int) -> float:
    """Publish a run of so many files without a proxy; the seconds of the publication."""
    tables = NightTables(Store("s3://spin/limits/parts"))
    with lease_model(tables.out, _MODEL) as lease:
        claim = claim_nights(tables, _MODEL, lease)
    run = begin_run(tables.out, date=DAY, model=_MODEL, model_version="1", claim=claim)
    rows = file_rows(PREDICTIONS, table_schema(PREDICTIONS).empty_table(), date=DAY, model=_MODEL, run=run.name)
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    data, store = sink.getvalue(), tables.store(PREDICTIONS)
    files = [DataFile(f"{run.name}/{n:06d}-{claim:06d}-1.parquet", len(data), 0) for n in range(parts)]
    with ThreadPoolExecutor(_PARALLEL) as threads:
        list(threads.map(lambda file: store.create(file.path, data), files))
    inputs = write_inputs(tables, run, claim, [])
    night = finish_run(tables.out, run, {PREDICTIONS: files, INPUTS: [inputs]})
    start = time.perf_counter()
    publish_night(tables, night, claim=claim)
    seconds = time.perf_counter() - start
    assert len(tables.open(PREDICTIONS).files({"date": DAY, "model": _MODEL})) == parts
    return round(seconds, 1)


def _write_small_files(store: Store, files: int, documents: int) -> None:
    def write(number: int) -> None:
        rows = [{"id": f"d{number:06d}-{row}", "text": _WORDS * (1 + row)} for row in range(documents)]
        store.write(f"{number:06d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    with ThreadPoolExecutor(_PARALLEL) as threads:
        list(threads.map(write, range(files)))


def _documents(size: int) -> Iterator[tuple[str, str]]:
    """Ids and texts of about so many bytes in all."""
    text = _WORDS * (_DOCUMENT // len(_WORDS))
    for number in range(size // len(text)):
        yield f"d{number:07d}", text


def _write_large_csv(store: Store, folder: Path, size: int) -> None:
    path = folder / "large.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(_documents(size))
    store.upload(path.name, path)
    path.unlink()


def _write_large_parquet(store: Store, folder: Path, size: int) -> None:
    path = folder / "large.parquet"
    ids, texts = zip(*_documents(size), strict=True)
    table = pa.table({"id": pa.array(ids), "text": pa.array(texts, pa.large_string())})
    pq.write_table(table, path, row_group_size=len(table), compression="none", use_dictionary=False)
    store.upload(path.name, path)
    path.unlink()
