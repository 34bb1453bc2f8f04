"""What the demos share: tweets on an S3 server, a project with its commands, a night with a loss, and times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console

from jobs.quickstart import BACKBONE, read_tweets
from pipelines.nightly.night_date import parse_date
from pipelines.nightly.steps.counts import ClassifyCounts
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.nightly.tables.night_records import RUNS, run_name
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardLog
from pipelines.workers.job_client import JobServer

TRAIN, NIGHT = 2_000, 3_000
"""number of documents"""
_BEFORE_THE_LOSS = 4
"""shards of the night to finish before a node is lost"""
out = Console(highlight=False)


class DemoProject:
    """A working directory and a prefix on the S3 server, whose commands run on the cluster of a job server.

    `tracking_uri` is MLflow's address for jobs. `backbone` is a model that jobs find, or a folder of the working
    directory, which is sent to them.
    """

    def __init__(self, folder: Path, address: str, tracking_uri: str, backbone: str = BACKBONE) -> None:
        self.folder, self.address = folder, address
        self.base = f"s3://spin/demo-{uuid.uuid4().hex[:8]}"
        self.nights = f"{self.base}/nights"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # has `spin`, as if activated
        self.environment = {**os.environ, "PATH": path, "RAY_API_SERVER_ADDRESS": address, "COLUMNS": "100"}
        tweets = read_tweets().sample(TRAIN + NIGHT, random_state=0)
        self._write("train.parquet", tweets[:TRAIN])
        self._write("inbox/tweets.parquet", tweets[TRAIN:][["id", "text"]])
        self.ids = Counter(tweets[TRAIN:]["id"])
        settings = {
            "backbone": {"model": backbone, "max_tokens": 64},
            "data": {"train": f"{self.base}/train.parquet"},
            "store": f"{self.base}/store",
            "mlflow": {"model": "tweets", "tracking_uri": tracking_uri},
            "ray": {"shard_documents": 200},
            "probe": {"penalties": 6, "max_extra": 0},
            "search": {"etas": [0.5, 0.7], "strengths": [0.3, 1, 3], "network": "off"},
            "promote": {"max_regression": 0.05},
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _write(self, key: str, frame: pd.DataFrame) -> None:
        Store(self.base).write(key, frame.to_parquet(index=False, row_group_size=200))

    def spin(self, *arguments: str) -> None:
        """Run a command in the working directory and show its output. Raises CalledProcessError if it fails."""
        out.print(f"\n[bold]$ spin {' '.join(arguments)}[/bold]")
        subprocess.run(["spin", *arguments], cwd=self.folder, env=self.environment, check=True)

    def night(self, lose: Callable[[], object], *, workers: int, options: Sequence[str] = ()) -> None:
        """Classify a night, call `lose` in the middle of it, and print how many of its shards were tried twice.

        It is called once some shards are finished and all workers have begun another. `options` are those of
        `spin submit`. Every id must occur once in the published predictions, which are read from here.
        """
        locations = ("--input", f"{self.base}/inbox/", "--output", self.nights)
        self.spin("submit", "classify", "settings.yaml", *locations, *options, "--detach")
        server = JobServer(self.address)
        job = next(job.id for job in server.jobs() if job.id.startswith("classify-tweets-"))  # the newest
        layout = LogLayout(f"{RUNS}/{run_name(parse_date(None), 'tweets', 1)}")
        shard_log = ShardLog(Store(self.nights), claim=1, layout=layout)
        done: set[str] = set()
        working: set[str] = set()
        while len(done) < _BEFORE_THE_LOSS or len(working) < workers:
            if server.job(job).over:
                sys.exit(f"{job} ended before a node could be lost:\n{server.logs(job)}")
            time.sleep(0.2)
            working = {*shard_log.begun()} - {*shard_log.committed()}
            done = {*shard_log.committed()}
        lose()
        out.print(f"          a node was lost: {len(done)} shards finished, {len(working)} begun")
        self.spin("logs", job, "--follow")
        assert Counter(row["id"] for row in read_predictions(self.nights)) == self.ids
        self.spin("nights", "list", "--output", self.nights)
        shards = shard_log.outcomes(ClassifyCounts).values()
        tried = sum(shard.tries > 1 for shard in shards)
        out.print(f"          every id occurs once; {tried} of {len(shards)} shards were tried twice")


class Steps:
    """The steps of a demo with the seconds that each takes."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, float]] = []

    def add(self, step: str, seconds: float) -> None:
        """Record a step and print it."""
        self._steps.append((step, seconds))
        out.print(f"[green]{seconds:8.1f} s[/green]  {step}")

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Record and print the seconds that the body takes."""
        start = time.perf_counter()
        yield
        self.add(step, time.perf_counter() - start)

    def summarize(self, total: float) -> None:
        """Print all steps again, and the seconds in total."""
        out.print("\n" + "\n".join(f"{seconds:8.1f} s  {step}" for step, seconds in self._steps))
        out.print(f"{total:8.1f} s  in total")


def require_variables(environment: Mapping[str, str], names: Sequence[str], target: str) -> None:
    """Exit with a message if variables are missing that `make target` sets."""
    missing = [name for name in names if name not in environment]
    if missing:
        sys.exit(f"{', '.join(missing)}: not set; start it by `make {target}`, which sets up what the demo needs")
