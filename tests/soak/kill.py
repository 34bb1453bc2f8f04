"""`make soak-kill`: nights on an S3 server whose drivers, workers and server are killed; prints a summary.

The input is 200,000 documents in mixed formats. One night is classified without disturbance. Then the same command is
run again and again while processes are killed at random moments: the driver by SIGKILL and by SIGTERM, workers by
SIGKILL, and the server is stopped and started. Every night must hold every document once, as a prediction or a dead
letter, and the predictions of the undisturbed night. `--documents 2000 --kills 4 --shard 50` is a trial of minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, PREDICTIONS, NightTables, read_rows
from pipelines.storage.object_store import Store
from spin.errors import SpinError
from tests.soak.corpus import Corpus, write_corpus
from tests.support import tiny
from tests.support.registry_fixture import RegistryFixture
from tests.support.repository import ROOT
from tests.support.s3_server import S3Server, run_s3_server

KINDS = ("worker", "driver, SIGKILL", "driver, SIGTERM", "server, 8 s", "worker", "server, until status 5")
"""what is killed, in turn"""
_ENDS = {0: "0", 5: "5", 143: "143", -signal.SIGKILL: "killed"}
"""exit statuses that are right under these disturbances"""
_WORKERS = 2
_SCORES = 1e-3
"""by which a probability may differ from that of the undisturbed night"""
_WAIT = 900.0
"""seconds after which a driver without progress fails the soak"""


@dataclass
class Soak:
    """A corpus on the server, and the nights that classify it."""

    folder: Path
    server: S3Server
    corpus: Corpus
    shard: int
    """documents per shard"""
    model: str
    """name of the registered model"""
    base: str = "s3://spin/soak"
    ends: Counter[str] = field(default_factory=Counter)
    """how drivers have ended"""
    kills: Counter[str] = field(default_factory=Counter)
    """what was killed"""

    def start(self, output: str, date: str) -> subprocess.Popen[bytes]:
        """Start a driver."""
        command = [sys.executable, "-m", "jobs.cli", "classify", str(self.folder / "settings.json")]
        options = ["--input", f"{self.base}/in", "--output", f"{self.base}/{output}", "--date", date]
        model = ["--model", f"models:/{self.model}/1"]
        return subprocess.Popen(
            [*command, *options, *model], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def run(self, output: str, date: str, kinds: list[str], every: int) -> None:
        """Run a night until it is published; after every few committed shards, something of `kinds` is killed."""
        seen = self.committed(output, date)
        while True:
            process = self.start(output, date)
            try:
                while kinds and self._wait_for_shards(process, output, date, seen + every):
                    time.sleep(random.uniform(0, 1))
                    self._kill(kinds.pop(0), process)
                    seen = self.committed(output, date)
                status = process.wait(_WAIT)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            self.ends[_ENDS.get(status, f"{status}, unexpected")] += 1
            if status == 0:
                return
            if self.ends.total() > 200:
                raise SystemExit("the night does not end")

    def committed(self, output: str, date: str) -> int:
        """Shards of all stages of a night that are committed."""
        keys = Store(f"{self.base}/{output}").list("_runs")
        return sum(key.startswith(f"_runs/{date}-") and "/parts/" in key and key.endswith(".json") for key in keys)

    def _wait_for_shards(self, process: subprocess.Popen[bytes], output: str, date: str, shards: int) -> bool:
        """Wait until so many shards are committed; False if the driver ends first."""
        deadline = time.monotonic() + _WAIT
        while process.poll() is None:
            if self.committed(output, date) >= shards:
                return True
            if time.monotonic() > deadline:
                raise SystemExit(f"no shard was committed for {_WAIT:.0f} s")
            time.sleep(0.2)
        return False

    def _kill(self, kind: str, process: subprocess.Popen[bytes]) -> None:
        self.kills[kind] += 1
        print(f"{self.kills.total()}: {kind}", flush=True)
        if kind == "worker":
            with suppress(psutil.NoSuchProcess, IndexError):
                random.choice(_find_workers(process.pid)).kill()
        elif kind.startswith("driver"):
            process.send_signal(getattr(signal, kind.rpartition(" ")[2]))
            process.wait(_WAIT)
        else:
            self.server.stop()
            if kind == "server, 8 s":
                time.sleep(8)
            else:
                process.wait(_WAIT)
            self.server.start()

    def read(self, output: str, date: str) -> tuple[dict[str, Any], Counter[str], Counter[str]]:
        """The rows of the predictions by id, and the ids of predictions and of dead letters with their numbers."""
        tables = NightTables(Store(f"{self.base}/{output}"))
        [night] = [night for night in list_nights(tables) if night.date == date]
        rows = read_rows(tables.open(PREDICTIONS), {"date": date, "model": self.model}).to_pylist()
        letters = read_rows(tables.open(DEAD_LETTERS), {"date": date, "model": self.model, "run": night.run})
        return {row["id"]: row for row in rows}, Counter(row["id"] for row in rows), Counter(letters["id"].to_pylist())


def _find_workers(pid: int) -> list[psutil.Process]:
    """The actors of a stage, by the titles that Ray gives them."""
    children = psutil.Process(pid).children(recursive=True)
    workers = []
    for child in children:
        with suppress(psutil.Error):
            if any("_Worker" in word for word in child.cmdline()[:1]):
                workers.append(child)
    return workers


def prepare(folder: Path, shard: int) -> str:
    """Register a classifier on a tiny random backbone, and write the settings; return the name of the model."""
    backbone = tiny.save_bert(folder / "backbone")
    ray = {"workers": _WORKERS, "shard_documents": shard, "retry_seconds": 20}
    limits = {"max_dead_fraction": 0.1, "max_bad_files": 0.1}
    fixture = RegistryFixture(folder, backbone, f"sqlite:///{folder}/mlflow.db", ray=ray, classify=limits)
    (folder / "settings.json").write_text(fixture.settings.model_dump_json(), encoding="utf-8")
    return fixture.name


def compare(soak: Soak, date: str) -> dict[str, int]:
    """How a disturbed night differs from what it must hold, and from the undisturbed night; all figures must be 0."""
    calm, _, _ = soak.read("calm", "2026-03-01")
    rows, predicted, dead = soak.read("kills", date)
    expected = soak.corpus
    both = calm.keys() & rows.keys()
    return {
        "lost": (expected.predicted - predicted).total() + (expected.dead - dead).total(),
        "doubled": (predicted - expected.predicted).total() + (dead - expected.dead).total(),
        "with another label": sum(calm[id]["label"] != rows[id]["label"] for id in both),
        f"with a score that differs by more than {_SCORES:g}": sum(
            abs(calm[id]["score"] - rows[id]["score"]) > _SCORES for id in both
        ),
        "whose scores are not bit for bit the same": sum(
            (calm[id]["score"], calm[id]["scores"]) != (rows[id]["score"], rows[id]["scores"]) for id in both
        ),
    }


def summary(soak: Soak, documents: int, differences: dict[str, int], nights: int, seconds: float) -> str:
    """A table in Markdown."""
    rows = {
        "documents": documents,
        "nights": nights,
        "kills": soak.kills.total(),
        **{f"… of {kind}": number for kind, number in sorted(soak.kills.items())},
        **{f"commands that ended with status {end}": number for end, number in sorted(soak.ends.items())},
        **{f"rows {name}": number for name, number in differences.items()},
    }
    lines = [f"| {name} | {number:,} |" for name, number in rows.items()]
    return "\n".join([f"\n{seconds / 60:.0f} minutes\n", "|  |  |", "| --- | ---: |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--shard", type=int, default=1_000, help="documents per shard")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="spin-soak."))
    try:
        with run_s3_server() as server:
            model = prepare(folder, options.shard)
            corpus = write_corpus(Store("s3://spin/soak/in"), options.documents)
            soak = Soak(folder, server, corpus, options.shard, model)
            nights, differences = run_soak(soak, options.kills)
    finally:
        shutil.rmtree(folder)
    print(summary(soak, options.documents, differences, nights, time.monotonic() - began))
    unexpected = [end for end in soak.ends if "unexpected" in end]
    fatal = {name: number for name, number in differences.items() if number and "bit for bit" not in name}
    if fatal or unexpected:
        raise SystemExit(f"does not hold: {fatal} {unexpected}")


def run_soak(soak: Soak, kills: int) -> tuple[int, dict[str, int]]:
    """Run the undisturbed night, then disturbed ones until all is killed; return their number and differences."""
    soak.run("calm", "2026-03-01", [], 0)
    shards = soak.committed("calm", "2026-03-01")
    soak.ends.clear()
    kinds = [KINDS[number % len(KINDS)] for number in range(kills)]
    every = max(1, shards // (kills + 2))
    differences: Counter[str] = Counter()
    nights = 0
    while kinds or not nights:
        nights += 1
        date = f"2026-03-{nights:02d}"
        soak.run("kills", date, kinds, every)
        differences.update(compare(soak, date))
    return nights, dict(differences)


if __name__ == "__main__":
    try:
        main()
    except SpinError as error:
        raise SystemExit(str(error)) from None
