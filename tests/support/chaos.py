"""Steps that do to their process what documents and machines do; actors import this module by name."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray

from pipelines.data.readers import Shard
from pipelines.nightly import classify
from pipelines.nightly.classify_step import ClassifyStep
from pipelines.nightly.run_records import ClassifyCounts
from pipelines.registry.night_summary import NightSummary
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, StepResult
from pipelines.workers.map_shards import map_shards
from pipelines.workers.train_group import GroupWork, run_group
from spin.errors import SpinError, UserError
from spin.settings import RaySettings, parse_settings

RAISE, KILL, KILL_ONCE = "film raise", "film kill", "film once "
"""beginnings of texts; after the last one comes the file that says that it has killed"""
LOG = "SPIN_TEST_LOG"
"""environment variable with the file in which shards are counted"""


class ChaosStep(ClassifyStep):
    """Fails on some texts: raises, is killed always, is killed the first time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        tokenize = self.spin.backbone.tokenize

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

        self.spin.backbone.tokenize = chaos  # type: ignore[method-assign,assignment]


class CountingStep(ClassifyStep):
    """Writes a line for every shard whose forward pass it has made."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        answer = super().__call__(shard, attempt)
        with open(os.environ[LOG], "a", encoding="utf-8") as log:
            log.write(f"{shard.name}\n")
        return answer


class NodeStep(ClassifyStep):
    """Writes the node and the shard it begins into the file `data.train`, then waits for one with `.go` at its end."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ClassifyCounts]:
        log = self.data.train
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {shard.name}\n")
        while not Path(f"{log}.go").exists():
            threading.Event().wait(0.05)
        return super().__call__(shard, attempt)


class SleepingStep:
    """Never ends on one shard."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        if shard.index == 1:
            threading.Event().wait()
        return StepResult({"txt": b""}, ShardCounts(rows=1))


class RegistryFixture:
    """A registry of one folder: versions are its folders, an alias is a file that names one."""

    name = "tiny"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, model: str | None = None) -> str:
        _, _, alias = (model or "models:/tiny@champion").partition("@")
        number = (self.folder / alias).read_text() if alias else str(model).rpartition("/")[2]
        if not (self.folder / number).is_dir():
            raise UserError(f"{model} does not exist")
        return number

    def log_night(self, number: str, night: NightSummary, reports: dict[str, bytes]) -> None:
        (self.folder / f"{night.run}.json").write_text(number)

    def download(self, number: str, folder: Path) -> None:
        for file in (self.folder / number).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


def night(
    tree: dict[str, Any],
    registry_fixture: str,
    source: str,
    output: str,
    date: str,
    step: type[ClassifyStep] = CountingStep,
) -> None:
    """Run a night as the driver of a process of its own; print a SpinError and exit with its status."""
    try:
        with patch.object(classify, "ClassifyStep", step):
            classify.run_classify(
                parse_settings(tree), RegistryFixture(Path(registry_fixture)), source, output, night=date
            )  # type: ignore[arg-type]
    except SpinError as error:
        print(error)
        raise SystemExit(error.status) from None


def sleep(output: str) -> None:
    """A driver one of whose shards never ends."""
    shards = [Shard(n, "nowhere", "jsonl", n, n + 1) for n in range(3)]
    settings = RaySettings(workers=2, stall_seconds=20)
    with Lease(Store(output)) as lease:
        try:
            map_shards(
                SleepingStep,
                (),
                shards,
                Store(output),
                settings,
                counts_type=ShardCounts,
                stage="trial",
                documents=3,
                lease=lease,
            )
        except SpinError as error:
            print(error)
            raise SystemExit(error.status) from None


def group_loop(log: str, device: str) -> None:
    """A worker of a group: writes how many they are, then waits for a file of the same name with `.go` at its end."""
    from ray.train import get_context

    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()} {get_context().get_world_size()}\n")
    while not Path(f"{log}.go").exists():
        threading.Event().wait(0.05)


def group(address: str, log: str) -> None:
    """A driver with a group of as many workers as there are."""
    settings = RaySettings(address=address)
    work = GroupWork(group_loop, log, settings)
    run_group("trial", work, most_workers=9, total=1, unit="fits", count_done=lambda: 0)
