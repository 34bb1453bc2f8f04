"""What it costs to read input files in a child process, and a night over files that were made to harm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.limits.input_reads import Rows, to_jsonl
from benchmarks.limits.process_memory import Watch
from benchmarks.limits.tiny_night import night_command, prepare
from benchmarks.section_page import Part, table
from pipelines.data.files import reader_child, reader_process
from pipelines.data.files.input_files import list_files
from pipelines.data.intake import plan_intake, take_in
from pipelines.data.spool import PartSize
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store
from spin.settings import DataSettings

DOCUMENTS, WORDS = 120_000, 40
"""documents of each corpus, and words of each"""
SMALL = 30
"""documents of a small file"""
GOOD, HOSTILE = 500, 40
"""files of the night"""
_ROUNDS = 3
_LEAST = 0.9
"""promise: documents per second in a child, per document per second in the process of the command"""
_MEMORY = 2_000
"""promise: MB of a process that reads files"""


@dataclass(frozen=True)
class Throughput:
    """Documents per second of the intake of sound files."""

    name: str
    """of the corpus"""
    here: float
    """in one process"""
    child: float
    """read in a child"""


@dataclass(frozen=True)
class HostileNight:
    """A night over sound files and files that were made to harm."""

    status: int
    documents: int
    """predicted"""
    expected: int
    """rows of the sound files"""
    named: int
    """hostile files that the table of inputs names, each with a reason"""
    seconds: float
    alone: float
    """seconds of the same night without the hostile files"""
    reader: float
    """peak MB of the largest process that reads files"""
    driver: float
    """peak MB of the process of the command"""


@dataclass(frozen=True)
class IntakeCosts:
    """What the intake takes."""

    throughputs: Sequence[Throughput]
    night: HostileNight


def measure(folder: Path, *, quick: bool) -> IntakeCosts:
    """Take in the same documents in several formats in turns, then run the nights."""
    documents = DOCUMENTS // 100 if quick else DOCUMENTS
    rows, throughputs = _make_rows(documents), []
    for name, write in _CORPORA.items():
        (folder / name).mkdir(parents=True)
        write(folder / name, rows)
        rates: dict[str, list[float]] = {"here": [], "child": []}
        for _ in range(1 if quick else _ROUNDS):
            rates["child"].append(_rate(folder / name, documents))
            with (
                patch.object(reader_process, "_run", lambda job: job()),
                patch.object(reader_child, "_limit_seconds", lambda seconds: None),
            ):
                rates["here"].append(_rate(folder / name, documents))
        throughputs.append(Throughput(name, max(rates["here"]), max(rates["child"])))
    return IntakeCosts(throughputs, _measure_night(folder / "night", quick=quick))


def _rate(folder: Path, documents: int) -> float:
    """Documents per second of taking a folder in, without writing the spool."""
    files, data = list_files(str(folder)), DataSettings(train="unused")
    size, start, rows = PartSize.of(sum(file.size for file in files), 8192), time.perf_counter(), 0
    for task in plan_intake(files):
        rows += sum(file.rows for file in take_in(task, data, size, lambda part: "part").files)
    assert rows == documents
    return documents / (time.perf_counter() - start)


def _make_rows(documents: int) -> Rows:
    draw = np.random.default_rng(0)
    words = np.array([f"{number:05x}" for number in draw.integers(0, 16**5, 5_000)])
    texts = words[draw.integers(0, len(words), (documents, WORDS))]
    return [{"id": f"d{row:07d}", "text": " ".join(text)} for row, text in enumerate(texts)]


def _to_csv(rows: Rows) -> bytes:
    return "".join(["id,text\n", *(f"{row['id']},{row['text']}\n" for row in rows)]).encode()


def _write_small(folder: Path, rows: Rows) -> None:
    for start in range(0, len(rows), SMALL):
        (folder / f"{start:07d}.jsonl").write_bytes(to_jsonl(rows[start : start + SMALL]))


def _write_zstd(path: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)


_CORPORA: dict[str, Callable[[Path, Rows], object]] = {
    "one JSONL file": lambda folder, rows: (folder / "a.jsonl").write_bytes(to_jsonl(rows)),
    "one JSONL file in zstd": lambda folder, rows: _write_zstd(folder / "a.jsonl.zst", to_jsonl(rows)),
    "one CSV file": lambda folder, rows: (folder / "a.csv").write_bytes(_to_csv(rows)),
    "one Parquet file": lambda folder, rows: pq.write_table(pa.Table.from_pylist(list(rows)), folder / "a.parquet"),
    f"JSONL files of {SMALL} documents": _write_small,
}


def _measure_night(folder: Path, *, quick: bool) -> HostileNight:
    from tests.hostile.hostile_file import HostileFile
    from tests.hostile.hostile_files import write_hostile_file
    from tests.hostile.hostile_parquet import parquet_files
    from tests.hostile.hostile_text import csv_files, jsonl_files

    def pick(files: Sequence[HostileFile], count: int) -> list[HostileFile]:
        """Some of the files that must be quarantined, spread over all."""
        bad = [file for file in files if file.expected == "bad"]
        return [bad[at * len(bad) // count] for at in range(count)]

    prepare(folder)
    source, rows = folder / "in", _make_rows(GOOD * SMALL // (10 if quick else 1))
    source.mkdir()
    _write_small(source, rows)
    alone, _, _ = _run_night(folder, "alone")
    hostile = [
        *pick(list(parquet_files()), HOSTILE // 2),
        *pick(list(jsonl_files()), HOSTILE // 4),
        *pick(list(csv_files()), HOSTILE // 4),
    ]
    for file in hostile:
        write_hostile_file(source, file)
    seconds, status, watch = _run_night(folder, "night")
    tables = NightTables(Store(str(folder / "night")))
    inputs = DeltaTable(str(folder / "night" / "inputs")).to_pyarrow_table(columns=["uri", "reason"]).to_pylist()
    named = {Path(row["uri"]).name for row in inputs if row["reason"]}
    return HostileNight(
        status=status,
        documents=sum(night.rows for night in list_nights(tables)),
        expected=len(rows),
        named=sum(Path(file.name).name in named for file in hostile),
        seconds=seconds,
        alone=alone,
        reader=watch.peak["worker"],
        driver=watch.peak["driver"],
    )


def _run_night(folder: Path, output: str) -> tuple[float, int, Watch]:
    """Classify in a fresh process: the seconds, the status, and the memory of the command and of its readers."""
    command = night_command(folder, str(folder / "in"), str(folder / output))
    start = time.perf_counter()
    with subprocess.Popen(command) as process, Watch(process.pid, _is_reader) as watch:
        status = process.wait()
    return time.perf_counter() - start, status, watch


def _is_reader(process: psutil.Process) -> bool:
    """Whether a process reads input files."""
    return any(f"{reader_child.__name__} import serve" in part for part in process.cmdline())


def section(costs: IntakeCosts) -> Part:
    """Documents per second by format, and what became of the night."""
    rows = [
        [each.name, f"{each.here:,.0f}", f"{each.child:,.0f}", f"{each.child / each.here:.2f}"]
        for each in costs.throughputs
    ]
    night = costs.night
    facts = [
        ["status", f"{night.status}"],
        ["rows of the sound files; classified", f"{night.expected:,}; {night.documents:,}"],
        ["hostile files; named with a reason", f"{HOSTILE}; {night.named}"],
        ["seconds; without the hostile files", f"{night.seconds:.0f}; {night.alone:.0f}"],
        ["peak MB of a process that reads files; of the command", f"{night.reader:,.0f}; {night.driver:,.0f}"],
    ]
    text = [
        table(["corpus", "documents/s in one process", "documents/s read in a child", "ratio"], rows),
        f"{DOCUMENTS:,} documents of {WORDS} words in each corpus, checked and divided into parts, which are not "
        "written; the best of three rounds each, in turns. The child works beside the process of the command.\n",
        table([f"a night over {GOOD} sound files and {HOSTILE} that were made to harm", ""], facts),
        "On a tiny random backbone. Of the files that `tests/hostile` builds, the night has some that must be "
        "quarantined, of every kind.\n",
    ]
    ratios = [(each.name, each.child / each.here) for each in costs.throughputs]
    whole = night.status == 0 and night.documents == night.expected and night.named == HOSTILE
    return "\n".join(text), [
        *(
            (ratio >= _LEAST, f"{name}: {ratio:.2f} × the documents per second of one process, at least {_LEAST}")
            for name, ratio in ratios
        ),
        (whole, f"the night ends with status {night.status}, {night.documents:,} rows and {night.named} names"),
        (night.reader <= _MEMORY, f"a process that reads files takes {night.reader:,.0f} MB, at most {_MEMORY:,}"),
    ]
