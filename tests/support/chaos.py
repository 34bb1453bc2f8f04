"""Steps that raise, kill their process or hang, and drivers that run them; actors import this module by name."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import ray

from jobs import cli
from pipelines.data.files.shards import Piece, Shard
from pipelines.nightly import classify, classify_pass
from pipelines.nightly.steps.classify_job import ClassifyJob
from pipelines.nightly.steps.classify_step import ClassifyStep
from pipelines.nightly.steps.counts import PassCounts
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, StepResult
from pipelines.workers.map_shards import ShardWork, map_shards
from pipelines.workers.train_group import GroupWork, run_group
from spin.errors import SpinError, UserError
from spin.settings import RaySettings, Settings, parse_settings

RAISE, KILL, KILL_ONCE = "film raise", "film kill", "film once "
"""prefixes of texts; after KILL_ONCE comes the path of the file that marks that its process was killed already"""
LOG = "SPIN_TEST_LOG"
"""environment variable with the file in which `CountingStep` writes the shards"""


class ChaosStep(ClassifyStep):
    """Raises, kills its process, or kills its process once, on texts with the prefixes above."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        backbone = self.classifiers[0].backbone
        tokenize = backbone.tokenize

        def chaos(texts: list[str]) -> Any:
            if any(text.startswith(RAISE) for text in texts):
                raise RuntimeError(f"cannot be computed: {texts}")
            if any(text.startswith(KILL) for text in texts):
                os.kill(os.getpid(), signal.SIGKILL)
            for marker in (Path(text.removeprefix(KILL_ONCE)) for text in texts if text.startswith(KILL_ONCE)):
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return tokenize(texts)

        backbone.tokenize = chaos  # type: ignore[method-assign,assignment]


class CountingStep(ClassifyStep):
    """Writes a line for every shard that it has computed."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[PassCounts]:
        result = super().__call__(shard, attempt)
        with open(os.environ[LOG], "a", encoding="utf-8") as log:
            log.write(f"{shard.name}\n")
        return result


class NodeStep(ClassifyStep):
    """Writes its node and shard into the file LOG of `data.train`, then waits until the file `LOG.go` exists."""

    def __init__(self, job: ClassifyJob, settings: Settings) -> None:
        super().__init__(job, settings)
        self.log = settings.data.train

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[PassCounts]:
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {shard.name}\n")
        while not Path(f"{self.log}.go").exists():
            threading.Event().wait(0.05)
        return super().__call__(shard, attempt)


class SleepingStep:
    """Never finishes shard 1."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 1:
            threading.Event().wait()
        return StepResult({"txt": b""}, ShardCounts(rows=1))


class FolderRegistry:
    """A registry in a folder: each subfolder is a version, and an alias is a file that holds a version number."""

    name = "tiny"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, model: str | None = None) -> str:
        _, _, alias = (model or "models:/tiny@champion").partition("@")
        number = (self.folder / alias).read_text() if alias else str(model).rpartition("/")[2]
        if not (self.folder / number).is_dir():
            raise UserError(f"{model} does not exist")
        return number

    def log_night(self, tags: dict[str, str], *_: object) -> None:
        (self.folder / f"{tags['spin.run']}.json").write_text(tags["spin.version"])

    def download(self, number: str, folder: Path) -> None:
        for file in (self.folder / number).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


def run_night(
    tree: dict[str, Any],
    registry_folder: str,
    source: str,
    output: str,
    date: str,
    step: type[ClassifyStep] = CountingStep,
) -> None:
    """Run a night as the driver; print a SpinError and exit with its status."""
    try:
        with patch.object(classify_pass, "ClassifyStep", step):
            settings, registry = parse_settings(tree), FolderRegistry(Path(registry_folder))
            classify.run_classify(settings, registry, source, output, night=date)  # type: ignore[arg-type]
    except SpinError as error:
        print(error)
        raise SystemExit(error.status) from None


def run_hanging_stage(output: str) -> None:
    """Run a stage one of whose shards never finishes, as the driver."""
    try:
        _hang(output, stall_seconds=40)  # on a busy machine a worker takes long to start
    except SpinError as error:
        print(error)
        raise SystemExit(error.status) from None


def run_hanging_command(output: str) -> None:
    """Run the same stage as a `spin` command, with a temporary folder in the output."""

    @cli.app.command()
    def hang() -> None:
        with TemporaryDirectory(dir=output):
            _hang(output, stall_seconds=120)  # on a busy machine the second worker starts long after the first

    with patch.object(sys, "argv", ["spin", "hang"]):
        cli.main()


def _hang(output: str, stall_seconds: int) -> None:
    shards = [Shard(n, (Piece("nowhere", "jsonl", n, n + 1),)) for n in range(3)]
    settings = RaySettings(workers=2, stall_seconds=stall_seconds)
    with Lease(Store(output)) as lease:
        work = ShardWork(SleepingStep, (), ShardCounts, Store(output), settings, stage="trial", claim=lease.number)
        map_shards(work, shards, lease, documents=3)


def run_group_worker(log: str, device: str) -> None:
    """Write the node and the size of the training group into `log`, then wait until the file `LOG.go` exists."""
    from ray.train import get_context

    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()} {get_context().get_world_size()}\n")
    while not Path(f"{log}.go").exists():
        threading.Event().wait(0.05)


def run_training_group(address: str, log: str) -> None:
    """Run a training group with as many workers as the cluster has room for, as the driver."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    settings = RaySettings(address=address)
    ray.init(address, log_to_driver=False)
    # Ray Train asks this actor how many workers fit, and it looks at the nodes only every 20 seconds
    ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True))
    work = GroupWork(run_group_worker, log, settings)
    run_group("trial", work, most_workers=9, total=1, unit="fits", count_done=lambda: 0)
