"""Bytes that a training reads of its corpus, per byte: by format and number of shards."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.section_page import Part, table
from pipelines.data.spool import SPOOL
from pipelines.storage.input_opener import CountingFile, InputOpener
from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestCounter
from pipelines.training.workflow import run_workflow
from spin.settings import Settings, parse_settings

DOCUMENTS, TEXT = 256, 64_000
"""documents of the corpus, and bytes of text of each: a file is large enough to be read in parts"""
SHARDS = (1, 8, 64)
_MOST = 1.1
"""promise: bytes that all stages together read of the corpus, per byte of it"""
Rows = Sequence[dict[str, str]]


@dataclass(frozen=True)
class CorpusReads:
    """A training on a corpus in one file."""

    name: str
    """of the file"""
    shards: int
    size: int
    """bytes of the file"""
    read: int
    """bytes read of it, by all stages"""
    spool_read: int
    """bytes read of the spool, by all stages"""


@contextmanager
def count_reads() -> Iterator[dict[str, int]]:
    """Count the bytes that are read of input files, and in this process of the spool; they are known at the end."""
    spool, opened = RequestCounter(), InputOpener.open

    def open_counted(opener: InputOpener, uri: str, **options: Any) -> BinaryIO:
        source = opened(opener, uri, **options)
        return cast(BinaryIO, CountingFile(source, spool)) if f"/{SPOOL}/" in uri else source

    read: dict[str, int] = {}
    before = PROCESS_REQUESTS.totals()
    with patch.object(InputOpener, "open", open_counted):
        yield read
    read[SPOOL] = spool.totals().bytes_read
    read["input"] = PROCESS_REQUESTS.totals().since(before).bytes_read - read[SPOOL]


def measure(folder: Path, *, quick: bool) -> list[CorpusReads]:
    """Train on the same documents in every format and in several numbers of shards, in this process."""
    from tests.support import tiny

    rows, draw = tiny.make_documents(DOCUMENTS), np.random.default_rng(0)
    words = [f"{number:07x}" for number in draw.integers(0, 16**7, 2_000)]
    for row in rows:
        row["text"] += " " + " ".join(draw.choice(words, TEXT // 8))
    folder.mkdir(parents=True)
    backbone, results = tiny.save_bert(folder / "backbone"), []
    for name in ("a.csv", "a.jsonl") if quick else _WRITERS:
        file = folder / name
        file.write_bytes(_WRITERS[name](rows))
        for shards in SHARDS[1:2] if quick else SHARDS:
            settings = make_settings(folder / f"{name}-{shards}", backbone, file, DOCUMENTS // shards)
            with count_reads() as read:
                run_workflow(settings)
            size = file.stat().st_size
            results.append(CorpusReads(name, shards, size, read["input"], read[SPOOL]))
            print(results[-1], flush=True)
    return results


def make_settings(folder: Path, backbone: Path, file: Path, shard_documents: int) -> Settings:
    """Settings of a small training that reads the texts in all stages, and in a second pass."""
    folder.mkdir(parents=True)
    return parse_settings(
        {
            "backbone": {"model": str(backbone), "dtype": "float32", "device": "cpu", "max_tokens": 32},
            "data": {"train": str(file)},
            "store": str(folder / "store"),
            "mlflow": {"model": "reads", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
            "ray": {"workers": 0, "shard_documents": shard_documents},
            "sites": ["ffn.01"],
            "probe": {"penalties": 3, "max_extra": 0},
            "search": {"documents": 150, "etas": [0.9], "strengths": [1], "network": "off"},
            "extract": "two_pass",
        }
    )


def section(results: Sequence[CorpusReads]) -> Part:
    """Bytes read of the corpus and of its spool, per byte of the corpus."""
    rows = [
        [r.name, f"{r.shards}", f"{r.size / 1e6:.1f}", f"{r.read / r.size:.2f}", f"{r.spool_read / r.size:.2f}"]
        for r in results
    ]
    text = [
        table(["corpus", "shards", "MB", "read per byte", "read of the spool per byte"], rows),
        f"`spin run` on {DOCUMENTS} documents of {TEXT / 1000:.0f} kB of text, with the second pass of "
        "`extract: two_pass` and the baselines: the bytes that all stages read of the corpus, and of its spool, which "
        "is compressed Parquet. No second reading of the corpus is on purpose.\n",
    ]
    most = max(r.read / r.size for r in results)
    return "\n".join(text), [
        (most <= _MOST, f"`spin run` reads {most:.2f} bytes per byte of the corpus at most, expected at most {_MOST}")
    ]


def to_jsonl(rows: Rows) -> bytes:
    """Rows as lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _to_csv(rows: Rows) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _to_parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=32, compression="none", use_dictionary=False)
    return sink.getvalue()


_WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "a.csv": _to_csv,
    "a.csv.gz": lambda rows: gzip.compress(_to_csv(rows)),
    "a.jsonl.zst": lambda rows: bytes(pa.compress(to_jsonl(rows), codec="zstd", asbytes=True)),
    "a.jsonl": to_jsonl,
    "a.parquet": _to_parquet,
}
