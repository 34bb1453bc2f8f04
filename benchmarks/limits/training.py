"""Memory, time and storage of a training by its number of labelled documents."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.limits.scale import read_status
from spin.settings import Settings, parse_settings

FILE = 100_000
"""documents per file of the corpus"""
WORKERS = 2
_EVERY = 0.1
"""seconds between two measurements of the processes"""


@dataclass(frozen=True)
class TrainingCost:
    """A training from extraction to registration."""

    name: str
    """of backbone and corpus"""
    documents: int
    seconds: Mapping[str, float]
    """by stage"""
    peak: Mapping[str, float]
    """peak resident memory in MB of the driver, and of the largest other process"""
    own: Mapping[str, float]
    """peak anonymous memory in MB, likewise; as measured at intervals"""
    stored: float
    """GB of features that were written"""
    whole: float
    """GB that the features of all columns of all documents would take"""


class Watch:
    """Measures the memory of a process and of all processes that it starts while the context lasts."""

    def __init__(self, pid: int) -> None:
        self.root, self._ended = psutil.Process(pid), threading.Event()
        self.peak: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self._thread = threading.Thread(target=self._measure, daemon=True, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._ended.wait(_EVERY):
            try:
                processes = [(self.root, "driver"), *((child, "worker") for child in self.root.children(True))]
            except psutil.Error:
                continue
            for process, kind in processes:
                status = read_status(process.pid)
                for maximum, field in ((self.peak, "VmHWM"), (self.own, "RssAnon")):
                    maximum[kind] = max(maximum[kind], status.get(field, 0.0))


def train(name: str, settings: Settings, folder: Path, documents: int) -> TrainingCost:
    """Train in a fresh process and measure it."""
    (folder / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.limits.training", str(folder)]
    with subprocess.Popen(command) as process, Watch(process.pid) as watch:
        if process.wait():
            raise SystemExit(f"the training on {documents:,} documents failed")
    store = Path(settings.store)
    plan = json.loads((store / "features" / "plan.json").read_text(encoding="utf-8"))["detail"]
    row = sum(width * np.dtype(plan["types"][column]).itemsize for column, width in plan["widths"].items())
    stored = sum(file.stat().st_size for part in ("features", "kept") for file in (store / part).rglob("*.parquet"))
    seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    return TrainingCost(
        name, documents, seconds, dict(watch.peak), dict(watch.own), stored / 1e9, row * documents / 1e9
    )


def prepare_tiny(folder: Path, documents: int) -> Settings:
    """A corpus of texts that all differ, of three classes, and the settings of a tiny random backbone."""
    from tests.support import tiny

    classes = ("good", "bad", "plain")
    (folder / "corpus").mkdir(parents=True)
    backbone = tiny.save_bert(folder / "backbone")
    rows = tiny.make_documents(10_000, classes)
    for first in range(0, documents, FILE):
        numbers = range(first, min(first + FILE, documents))
        table = {
            "id": [f"d{number:08d}" for number in numbers],
            "text": [f"{rows[number % len(rows)]['text']} {number}" for number in numbers],
            "label": [rows[number % len(rows)]["label"] for number in numbers],
        }
        pq.write_table(pa.table(table), folder / "corpus" / f"{first:08d}.parquet", row_group_size=10_000)
    return make_settings(folder, str(backbone))


def make_settings(folder: Path, backbone: str) -> Settings:
    return parse_settings(
        {
            "backbone": {"model": backbone, "device": "cpu"},
            "data": {"train": str(folder / "corpus")},
            "store": str(folder / "store"),
            "mlflow": {"model": "scale", "tracking_uri": f"sqlite:///{folder}/mlflow.db"},
            "ray": {"workers": WORKERS},
        }
    )


def _train(folder: Path) -> None:
    """Run a training; this is what the fresh process does."""
    from jobs.cli import silence_libraries

    silence_libraries()
    from pipelines.training.workflow import run_workflow

    settings = Settings.model_validate_json((folder / "settings.json").read_text(encoding="utf-8"))
    seconds: dict[str, float] = {}
    run_workflow(settings, on_stage=lambda event: seconds.update({event.stage: event.seconds}))
    (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
