"""A night of many documents on a tiny random backbone: how much memory each process takes, and how fast it is."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.nightly.throughput import span

FILE = 10_000
"""documents of a file of the corpus; their texts are the same in all, their ids are not"""
SHARD = 1_000
WORKERS = 2
_WIDE = 192
"""of the backbone: small, yet a shard takes long against what the clock tells"""
DAY = "2026-01-31"
_EVERY = 0.1
"""seconds from a look at the processes to the next"""
_MB = 1e6


@dataclass(frozen=True)
class Scale:
    """What a night of some documents took."""

    documents: int
    per_s: float
    """documents a second of the median shard, of those begun after the first had ended, times the workers"""
    whole_s: float
    """from the begin of the first shard to the end of the last"""
    peak: dict[str, float]
    """MB by kind of process, of the largest: resident at its peak, library files and shared memory included"""
    own: dict[str, float]
    """MB likewise of anonymous memory, which is the process's own, as the looks saw it"""
    outcome: int
    """bytes of the longest record that the driver keeps of a shard"""


class Watch:
    """Looks at a process and its workers while the context lasts."""

    def __init__(self, pid: int) -> None:
        self.root, self._ended = psutil.Process(pid), threading.Event()
        self.peak: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                found = [(self.root, "driver"), *((p, "worker") for p in self.root.children(True) if _is_worker(p))]
            except psutil.Error:
                continue
            for process, kind in found:
                status = _status(process.pid)
                for kept, field in ((self.peak, "VmHWM"), (self.own, "RssAnon")):
                    kept[kind] = max(kept[kind], status.get(field, 0.0))


def prepare(folder: Path, most: int) -> None:
    """A registered classifier of a tiny random backbone, and a corpus."""
    from tests.support import tiny
    from tests.support.registry_fixture import RegistryFixture

    folder.mkdir(parents=True, exist_ok=True)
    backbone = tiny.bert(folder / "backbone", wide=_WIDE, neurons=4 * _WIDE)
    ray = {"workers": WORKERS, "shard_documents": SHARD}
    registry_fixture = RegistryFixture(folder, backbone, f"sqlite:///{folder}/mlflow.db", ray=ray)
    (folder / "settings.json").write_text(registry_fixture.settings.model_dump_json(), encoding="utf-8")
    texts = [row["text"] for row in tiny.documents(FILE)]
    for first in range(0, most, FILE):
        ids = [f"d{number:08d}" for number in range(first, min(first + FILE, most))]
        file = folder / "corpus" / f"{first:08d}.parquet"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": ids, "text": texts[: len(ids)]}), file, row_group_size=SHARD)


def night(folder: Path, documents: int) -> Scale:
    """Classify the first documents of the corpus, whole files of it, in a process of its own, watched."""
    command = [sys.executable, "-m", "benchmarks.limits.scale", str(folder), str(documents)]
    with subprocess.Popen(command) as process, Watch(process.pid) as watch:
        if process.wait():
            raise SystemExit(f"the night of {documents:,} documents failed")
    manifest = json.loads((_output(folder, documents) / f"_runs/{DAY}-001/manifest.json").read_text(encoding="utf-8"))
    counts = manifest["counts"]
    assert counts["rows"] == counts["predicted"] == documents
    return Scale(
        documents,
        _speed(manifest["shards"]),
        span(manifest["shards"]),
        dict(watch.peak),
        dict(watch.own),
        max(len(json.dumps(shard)) for shard in manifest["shards"]),
    )


def _speed(outcomes: list[dict[str, Any]]) -> float:
    first = min(outcome["ended"] for outcome in outcomes)
    warm = [outcome for outcome in outcomes if outcome["ended"] - outcome["seconds"] >= first]
    return float(WORKERS * statistics.median(outcome["rows"] / outcome["seconds"] for outcome in warm))


def _classify(folder: Path, documents: int) -> None:
    """What the process of a night does."""
    from jobs.cli import silence_libraries

    silence_libraries()
    from pipelines.nightly.classify import run_classify
    from pipelines.registry.versions import Registry
    from spin.settings import Settings

    settings = Settings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    registry, batch = Registry(settings), folder / f"batch-{documents}"
    batch.mkdir(exist_ok=True)
    for file in sorted((folder / "corpus").iterdir())[: -(-documents // FILE)]:
        (batch / file.name).hardlink_to(file)
    output = str(_output(folder, documents))
    run_classify(settings, registry, str(batch), output, model=f"models:/{registry.name}/1", night=DAY)


def _output(folder: Path, documents: int) -> Path:
    return folder / f"nights-{documents}"


def _is_worker(process: psutil.Process) -> bool:
    """An actor of a stage, by the title that Ray gives it."""
    return any("_Worker" in word for word in process.cmdline()[:1])


def _status(pid: int) -> dict[str, float]:
    """MB of each kind of memory; nothing of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): 1024 * int(kilobytes) / _MB for name, kilobytes, _ in words}


if __name__ == "__main__":
    _classify(Path(sys.argv[1]), int(sys.argv[2]))
