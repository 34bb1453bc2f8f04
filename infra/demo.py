"""From a laptop to a cluster, from a challenger to a champion, on this machine: what `make cluster-demo` shows.

Three Ray nodes, MLflow on PostgreSQL and an S3 server; a training run and a night are submitted, a node is lost in the
middle of the night, two versions are promoted and the second is rolled back. It wants the services that
`infra/s3/run.sh infra/mlflow/run.sh` start, and leaves nothing running.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from infra.nodes import Nodes
from jobs.quickstart import BACKBONE, read_tweets
from pipelines.nightly.classify import parse_date
from pipelines.nightly.publish import read_manifest, read_predictions
from pipelines.nightly.run_records import RunManifest
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardLog
from pipelines.workers.job_client import JobServer

TRAIN, NIGHT = 2_000, 3_000
"""documents"""
_BEFORE_THE_LOSS = 4
"""shards of the night that are done when a node goes"""
out = Console(highlight=False)


class Demo:
    """A working directory, a prefix of the S3 server, and how long each step took."""

    def __init__(self, folder: Path, nodes: Nodes, train: int, night: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.base = f"s3://spin/demo-{uuid.uuid4().hex[:8]}"
        self.spun = {**os.environ, "RAY_API_SERVER_ADDRESS": nodes.address, "COLUMNS": "100"}
        self._prepare(read_tweets().sample(train + night, random_state=0), train)

    def _prepare(self, tweets: pd.DataFrame, train: int) -> None:
        """The corpus and the night in S3, settings in the working directory."""
        self._write("train.parquet", tweets[:train])
        self._write("inbox/tweets.parquet", tweets[train:][["id", "text"]])
        self.ids = Counter(tweets[train:]["id"])
        settings = {
            "backbone": {"model": BACKBONE, "max_tokens": 64},
            "data": {"train": f"{self.base}/train.parquet"},
            "store": f"{self.base}/store",
            "mlflow": {"model": "tweets", "tracking_uri": os.environ["MLFLOW_TRACKING_URI"]},
            "ray": {"shard_documents": 200},
            "probe": {"penalties": 6, "max_extra": 0},
            "search": {"etas": [0.5, 0.7], "strengths": [0.3, 1, 3], "l1": [], "head": "linear"},
            "promote": {"max_regression": 0.05},
        }
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _write(self, key: str, frame: pd.DataFrame) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, row_group_size=200)
        Store(self.base).write(key, sink.getvalue().to_pybytes())

    def spin(self, *words: str) -> None:
        """The command, as typed in the working directory; what it prints is shown. Ends the demo where it fails."""
        out.print(f"\n[bold]$ spin {' '.join(words)}[/bold]")
        subprocess.run(["spin", *words], cwd=self.folder, env=self.spun, check=True)

    def night(self) -> RunManifest:
        """Classify a night, remove a node halfway through, and return the manifest."""
        places = ("--input", f"{self.base}/inbox/", "--output", f"{self.base}/nights")
        self.spin("submit", "classify", "settings.yaml", *places, "--detach")
        server, job = JobServer(self.nodes.address), f"classify-tweets-{parse_date(None)}"
        shard_log = ShardLog(Store(f"{self.base}/nights/_runs/{parse_date(None)}-001"))
        done: set[str] = set()
        working: set[str] = set()
        while len(done) < _BEFORE_THE_LOSS or len(working) < self.nodes.workers:
            if server.job(job).over:
                sys.exit(f"{job} is over, and no node was lost in its middle:\n{server.logs(job)}")
            time.sleep(0.2)
            working = {*shard_log.begun()} - {*shard_log.committed()}
            done = {*shard_log.committed()}
        self.nodes.lose(self.nodes.last)
        out.print(f"          a node is gone: {len(done)} shards were done, {len(working)} begun")
        self.spin("logs", job, "--follow")
        manifest = read_manifest(f"{self.base}/nights")
        assert Counter(row["id"] for row in read_predictions(f"{self.base}/nights")) == self.ids
        return manifest


@contextmanager
def timed(what: str) -> Iterator[None]:
    """A line with the seconds that a step took."""
    start = time.perf_counter()
    yield
    STEPS.append((what, time.perf_counter() - start))
    out.print(f"[green]{STEPS[-1][1]:8.1f} s[/green]  {what}")


STEPS: list[tuple[str, float]] = []


def main() -> None:
    """The demo, and at its end every step with its time."""
    missing = [name for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI") if name not in os.environ]
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not set; start it by `make cluster-demo`, which starts an S3 server and MLflow"
        )
    begun = float(os.environ.get("DEMO_STARTED", time.time()))
    STEPS.append(("an S3 server, and MLflow on PostgreSQL", time.time() - begun))
    with tempfile.TemporaryDirectory() as folder:
        with timed("Ray: a head and two workers"):
            nodes = Nodes(2).__enter__()
        try:
            demo = Demo(Path(folder), nodes, TRAIN, NIGHT)
            with timed(f"a training run on the cluster, of {TRAIN:,} tweets"):
                demo.spin("submit", "run", "settings.yaml")
            with timed("version 1 passes the gate and is champion"):
                demo.spin("promote", "settings.yaml", "--why", "the first")
            with timed(f"a night of {NIGHT:,} tweets, in whose middle a node is lost"):
                manifest = demo.night()
            tried = sum(shard.tries > 1 for shard in manifest.shards)
            out.print(f"          every id once; of {len(manifest.shards)} shards {tried} begun twice")
            with timed("a second version, of fewer neurons, trained on the node that is left"):
                demo.spin("submit", "train", "settings.yaml", "--restart", "--set", "search.max_share=0.05")
            with timed("it passes the gate against the champion"):
                demo.spin("promote", "settings.yaml", "--why", "half the neurons")
            with timed("back to version 1"):
                demo.spin("rollback", "settings.yaml", "--why", "to show it")
            demo.spin("history", "settings.yaml")
        finally:
            with timed("nothing is left running of Ray"):
                nodes.__exit__()
    out.print("\n" + "\n".join(f"{seconds:8.1f} s  {what}" for what, seconds in STEPS))
    out.print(f"{time.time() - begun:8.1f} s  in all")


if __name__ == "__main__":
    main()
