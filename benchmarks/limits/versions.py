"""A night of a million documents in ten files, by this version and by another one that is installed elsewhere."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits import tiny_night
from benchmarks.limits.tiny_night import DAY, WIDE
from benchmarks.section_page import Part, table

FILES = 10
THIS, OTHER = "this version", "the other version"
_TEXTS = 10_000
"""different texts; the ids of all documents differ"""
_ROUNDS = 3


def measure(folder: Path, *, quick: bool, other: str) -> list[dict[str, float]]:
    """Seconds of a night per version, in rounds in which the versions take turns.

    `other` is the Python in whose environment the other version is installed. Each night is a command in a fresh
    process; its seconds include its start.
    """
    model = prepare(folder, 20_000 if quick else 1_000_000)
    pythons, rounds = {THIS: sys.executable, OTHER: other}, []
    for number in range(_ROUNDS):
        order = list(pythons.items())[:: 1 if number % 2 == 0 else -1]
        rounds.append({version: _classify(folder, python, model) for version, python in order})
        print(" | ".join(f"{version}: {seconds:.1f} s" for version, seconds in rounds[-1].items()), flush=True)
    return rounds


def section(rounds: Sequence[Mapping[str, float]]) -> Part:
    """Seconds of a night by this version and by another one."""
    rows = [
        [version, f"{statistics.median(times[version] for times in rounds):.1f}",
         ", ".join(f"{times[version]:.1f}" for times in rounds)]
        for version in (THIS, OTHER)
    ]  # fmt: skip
    text = [
        table(["", "median, s", "rounds, s"], rows),
        "Parquet files on a disk, a tiny random backbone, 2 workers, the check for duplicate ids; seconds of the whole "
        "command. The versions take turns.\n",
    ]
    ratio = statistics.median(times[OTHER] / times[THIS] for times in rounds)
    return "\n".join(text), [
        (ratio >= _AS_FAST, f"this version is {ratio:.2f} × as fast as the other, expected at least {_AS_FAST} ×")
    ]


_AS_FAST = 0.95
"""promise: speed over that of the other version"""


def prepare(folder: Path, documents: int) -> str:
    """Register a classifier on a tiny random backbone and write the corpus; returns the name of the model."""
    from tests.support import tiny

    (folder / "in").mkdir(parents=True)
    fixture = tiny_night.prepare(folder, WIDE, 4 * WIDE)
    settings = fixture.settings.model_dump(mode="json", exclude_unset=True)  # the other version may not know them all
    settings["store"] = fixture.settings.store.uri  # nor that it may be a section
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = [row["text"] for row in tiny.make_documents(_TEXTS)]
    size = documents // FILES
    for number in range(FILES):
        ids = [f"d{row:08d}" for row in range(number * size, (number + 1) * size)]
        table = pa.table({"id": ids, "text": (texts * (size // _TEXTS + 1))[:size]})
        pq.write_table(table, folder / f"in/{number}.parquet", row_group_size=_TEXTS)
    return fixture.registry.name


def _classify(folder: Path, python: str, model: str) -> float:
    """Seconds of a night by the version of a Python."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    options: Mapping[str, str | Path] = {
        "--input": folder / "in",
        "--output": out,
        "--model": f"models:/{model}/1",
        "--date": DAY,
    }
    words = [str(word) for pair in options.items() for word in pair]
    command = [python, "-P", "-m", "jobs.cli", "classify", str(folder / "settings.json"), *words]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - start
