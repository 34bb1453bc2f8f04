"""`make cluster-demo`: submit jobs to a cluster, lose a node, promote and roll back versions, all on this machine.

It uses three Ray nodes, MLflow on PostgreSQL and an S3 server. A training run and a night are submitted, a node is
removed in the middle of the night, two versions are promoted and the second is rolled back. It needs the services that
`infra/s3/run.sh infra/mlflow/run.sh` starts, and leaves no process running.
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
from pipelines.nightly.steps.run_records import ClassifyCounts
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.nightly.tables.night_records import RUNS, run_name
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardLog, ShardOutcome
from pipelines.workers.job_client import JobServer

TRAIN, NIGHT = 2_000, 3_000
"""number of documents"""
_BEFORE_THE_LOSS = 4
"""shards of the night to finish before a node is removed"""
out = Console(highlight=False)


class Demo:
    """A working directory and a prefix on the S3 server."""

    def __init__(self, folder: Path, nodes: Nodes, train: int, night: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.base = f"s3://spin/demo-{uuid.uuid4().hex[:8]}"
        self.environment = {**os.environ, "RAY_API_SERVER_ADDRESS": nodes.address, "COLUMNS": "100"}
        self._prepare(read_tweets().sample(train + night, random_state=0), train)

    def _prepare(self, tweets: pd.DataFrame, train: int) -> None:
        """Write the corpus and the night's documents to S3 and the settings to the working directory."""
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

    def spin(self, *arguments: str) -> None:
        """Run a command in the working directory and show its output. Raises CalledProcessError if it fails."""
        out.print(f"\n[bold]$ spin {' '.join(arguments)}[/bold]")
        subprocess.run(["spin", *arguments], cwd=self.folder, env=self.environment, check=True)

    def night(self) -> list[ShardOutcome[ClassifyCounts]]:
        """Classify a night, remove a node halfway through, and return the outcomes of its shards."""
        nights, run = f"{self.base}/nights", run_name(parse_date(None), "tweets", 1)
        locations = ("--input", f"{self.base}/inbox/", "--output", nights)
        self.spin("submit", "classify", "settings.yaml", *locations, "--detach")
        server = JobServer(self.nodes.address)
        job = next(job.id for job in server.jobs() if job.id.startswith("classify-tweets-"))  # the newest
        shard_log = ShardLog(Store(nights), token=1, layout=LogLayout(f"{RUNS}/{run}"))
        done: set[str] = set()
        working: set[str] = set()
        while len(done) < _BEFORE_THE_LOSS or len(working) < self.nodes.workers:
            if server.job(job).over:
                sys.exit(f"{job} ended before a node could be removed:\n{server.logs(job)}")
            time.sleep(0.2)
            working = {*shard_log.begun()} - {*shard_log.committed()}
            done = {*shard_log.committed()}
        self.nodes.lose(self.nodes.last)
        out.print(f"          a node was removed: {len(done)} shards finished, {len(working)} begun")
        self.spin("logs", job, "--follow")
        assert Counter(row["id"] for row in read_predictions(nights)) == self.ids
        self.spin("nights", "list", "--output", nights)
        return list(shard_log.outcomes(ClassifyCounts).values())


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print and record the seconds that a step takes."""
    start = time.perf_counter()
    yield
    STEPS.append((step, time.perf_counter() - start))
    out.print(f"[green]{STEPS[-1][1]:8.1f} s[/green]  {step}")


STEPS: list[tuple[str, float]] = []


def main() -> None:
    """Run the demo and print the time of every step at the end."""
    missing = [name for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI") if name not in os.environ]
    if missing:
        sys.exit(
            f"{', '.join(missing)}: not set; start it by `make cluster-demo`, which starts an S3 server and MLflow"
        )
    begun = float(os.environ.get("DEMO_STARTED", time.time()))
    STEPS.append(("start of an S3 server, and of MLflow on PostgreSQL", time.time() - begun))
    with tempfile.TemporaryDirectory() as folder:
        with timed("start of Ray: a head and two workers"):
            nodes = Nodes(2).__enter__()
        try:
            demo = Demo(Path(folder), nodes, TRAIN, NIGHT)
            with timed(f"a training run on the cluster, of {TRAIN:,} tweets"):
                demo.spin("submit", "run", "settings.yaml")
            with timed("version 1 passes the gate and is champion"):
                demo.spin("promote", "settings.yaml", "--why", "the first")
            with timed(f"a night of {NIGHT:,} tweets, in which a node is lost"):
                shards = demo.night()
            tried = sum(shard.tries > 1 for shard in shards)
            out.print(f"          every id occurs once; {tried} of {len(shards)} shards were tried twice")
            with timed("a second version with fewer neurons, trained on the remaining node"):
                demo.spin("submit", "train", "settings.yaml", "--restart", "--set", "search.max_share=0.05")
            with timed("it passes the gate against the champion"):
                demo.spin("promote", "settings.yaml", "--why", "half the neurons")
            with timed("back to version 1"):
                demo.spin("rollback", "settings.yaml", "--why", "to show it")
            demo.spin("history", "settings.yaml")
        finally:
            with timed("stop of Ray"):
                nodes.__exit__()
    out.print("\n" + "\n".join(f"{seconds:8.1f} s  {step}" for step, seconds in STEPS))
    out.print(f"{time.time() - begun:8.1f} s  in total")


if __name__ == "__main__":
    main()
