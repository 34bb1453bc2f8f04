"""Memory and speed of a night by its number of documents, on a tiny random backbone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits.process_memory import run_watched
from benchmarks.limits.tiny_night import SHARD, WIDE, WORKERS, night_command, read_night
from benchmarks.limits.tiny_night import prepare as prepare_classifier
from benchmarks.section_page import Part, Verdict, table
from pipelines.nightly.report.night_report import span
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardOutcome

FILE = 10_000
"""documents per file of the corpus; the texts are the same in every file, the ids are not"""


@dataclass(frozen=True)
class Scale:
    """Memory and time of a night."""

    documents: int
    per_s: float
    """documents per second of the median shard times the workers, of the shards begun after the first had ended"""
    whole_s: float
    """seconds from the start of the first shard to the end of the last"""
    peak: dict[str, float]
    """peak resident memory in MB by kind of process, of the largest; library files and shared memory included"""
    own: dict[str, float]
    """peak anonymous memory in MB, which belongs to the process alone, likewise; as measured at intervals"""
    outcome: int
    """length in bytes of the longest record of a shard that the driver holds"""


def measure(folder: Path, *, quick: bool) -> list[Scale]:
    """Classify nights of ever more documents."""
    sizes = (10_000, 20_000) if quick else (10_000, 100_000, 1_000_000)
    prepare(folder, max(sizes))
    nights = []
    for documents in sizes:
        nights.append(night(folder, documents))
        print(nights[-1], flush=True)
    return nights


def section(nights: Sequence[Scale]) -> Part:
    """Peak memory and speed by number of documents."""
    rows = [
        [f"{n.documents:,}", *(f"{memory[kind]:.0f}" for memory in (n.peak, n.own) for kind in _KINDS),
         f"{n.per_s:,.0f}", f"{n.documents / n.whole_s:,.0f}", f"{n.outcome:,}"]
        for n in nights
    ]  # fmt: skip
    heads = ["documents", *(f"{kind}'s peak, MB" for kind in _KINDS), *(f"{kind}'s own, MB" for kind in _KINDS),
             "documents/s in shards", "documents/s overall", "shard record, bytes"]  # fmt: skip
    text = [
        table(heads, rows),
        f"A night on a tiny random backbone with the check for duplicate ids, {SHARD:,} documents per shard, {WORKERS} "
        "workers of one thread. Peak: the peak resident memory of the process (VmHWM of Linux), of the worker with the "
        "largest; it includes library files and the pages of Ray's object store that the process has touched. Own: "
        "anonymous memory, measured ten times per second. Documents/s in shards: documents per second of the median "
        "shard times the number of workers, of the shards that began after the first had ended, so that the start-up "
        "of a worker is left out. Documents/s overall: from the start of the first shard to the end of the last, work "
        "of the driver between shards included. Shard record: the longest that the driver holds.\n",
    ]
    return "\n".join(text), _judge(nights)


def _judge(nights: Sequence[Scale]) -> list[Verdict]:
    """Whether memory and speed stay flat."""
    measured = {}
    for kind in _KINDS:
        measured[f"{kind}'s peak"] = [n.peak[kind] for n in nights]
        measured[f"{kind}'s own memory"] = [n.own[kind] for n in nights]
    measured["documents/s in shards"] = [n.per_s for n in nights]
    verdicts = []
    for name, values in measured.items():
        spread = max(values) / min(values)
        verdicts.append((spread <= _FLAT, f"{name}: largest {spread:.2f} × the smallest, expected at most {_FLAT} ×"))
    overall = [n.documents / n.whole_s for n in nights]
    slowdown = max(overall) / overall[-1]
    promise = (
        f"documents/s overall: the fastest night's {slowdown:.2f} × the largest night's, expected at most {_FLAT} ×"
    )
    return [*verdicts, (slowdown <= _FLAT, promise)]


_KINDS = ("driver", "worker")
_FLAT = 1.1
"""promise: largest over smallest"""


def prepare(folder: Path, most: int) -> None:
    """Register a classifier on a tiny random backbone and write a corpus of `most` documents."""
    from tests.support import tiny

    prepare_classifier(folder, WIDE, 4 * WIDE)
    texts = [row["text"] for row in tiny.make_documents(FILE)]
    for first in range(0, most, FILE):
        ids = [f"d{number:08d}" for number in range(first, min(first + FILE, most))]
        file = folder / "corpus" / f"{first:08d}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids, "text": texts[: len(ids)]}), file, row_group_size=SHARD)


def night(folder: Path, documents: int) -> Scale:
    """Classify the first documents of the corpus, in whole files, in a fresh process, and measure it."""
    batch, output = folder / f"batch-{documents}", str(folder / f"nights-{documents}")
    batch.mkdir()
    for file in sorted((folder / "corpus").iterdir())[: -(-documents // FILE)]:
        (batch / file.name).hardlink_to(file)
    command = night_command(folder, str(batch), output)
    watch = run_watched(command, f"the night of {documents:,} documents", _is_worker)
    night, shards = read_night(Store(output))
    assert night.rows == documents
    return Scale(
        documents,
        _speed(shards),
        span(shards),
        dict(watch.peak),
        dict(watch.own),
        max(len(json.dumps(shard.to_json())) for shard in shards),
    )


def _speed(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """Documents per second of the median shard times the workers, of the shards begun after the first had ended."""
    first = min(outcome.ended for outcome in outcomes)
    warm = [outcome for outcome in outcomes if outcome.ended - outcome.seconds >= first]
    return float(WORKERS * statistics.median(outcome.counts.rows / outcome.seconds for outcome in warm))


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process is an actor of a stage, by the title that Ray gives it."""
    return any("_Worker" in word for word in process.cmdline()[:1])
