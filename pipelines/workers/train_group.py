"""A Ray Train group: workers that run one function together; progress is read from what they write to the store."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.telemetry.json_lines import WorkerLog
from pipelines.workers.progress import polled_progress
from pipelines.workers.ray_cluster import (
    call_in_thread,
    cluster,
    configure_worker,
    least_workers,
    runs_here,
    translate_ray_errors,
    worker_count,
)
from spin.settings import RaySettings

J = TypeVar("J")
DOCUMENTS_PER_WORKER = 10_000
"""at least; with fewer, workers take longer to start and to wait for each other than they save"""
_LONGEST_WAIT = 24 * 3600
"""seconds that a worker waits for the others"""


@dataclass(frozen=True)
class GroupWork(Generic[J]):
    """The function that every worker of a group runs. It is pickled and sent to the workers."""

    run: Callable[[J, str], None]
    """called in every worker with the job and the device; results go to a store, so that a restart can skip them"""
    job: J
    """record of what the function needs"""
    settings: RaySettings
    """of the stage"""
    log: WorkerLog = field(default_factory=WorkerLog.of_driver)
    """what the log of the workers takes over from the driver"""

    @property
    def device(self) -> str:
        """Device of a worker's matrices: `cuda` where workers are given GPUs, else `cpu`."""
        return "cuda" if self.settings.gpus_per_worker else "cpu"


def run_group(
    stage: str, work: GroupWork[J], *, most_workers: int, total: int, unit: str, count_done: Callable[[], int]
) -> None:
    """Call `work.run` in every worker of a group; as many workers as the cluster holds, at most `most_workers`.

    A stage without workers (`ray.workers: 0`) calls it once, in this process. So does one on this machine for which a
    single worker is enough, unless the settings give a number of workers or a GPU.
    The progress bar shows `count_done()`, which counts results in the store, of `total`. If a worker dies, the whole
    group starts again, at most three times, with fewer workers where nodes are lost. Raises SpinError, naming the
    stage, or the SpinError that a worker raised.
    """
    with polled_progress(stage, total, unit, count_done):
        if runs_here(work.settings, few=most_workers == 1):
            work.run(work.job, work.device)
        else:
            _run_workers(stage, work, most_workers)


def _run_workers(stage: str, work: GroupWork[Any], most_workers: int) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = work.settings
    with cluster(settings), tempfile.TemporaryDirectory() as scratch, translate_ray_errors(stage):
        most = worker_count(settings, most_workers)
        least = least_workers(settings, most)
        resources = {"CPU": float(settings.cpus_per_worker)}
        if settings.gpus_per_worker:
            resources["GPU"] = settings.gpus_per_worker
        trainer = TorchTrainer(
            _run_worker,
            train_loop_config={"work": ray.put(work)},  # a reference, or Ray would keep three copies
            # gloo also reduces tensors on a CPU; a member waits for the slowest, whose sites may take hours
            torch_config=TorchConfig(backend="gloo", timeout_s=_LONGEST_WAIT),
            scaling_config=ScalingConfig(
                num_workers=least if least == most else (least, most),
                elastic_resize_monitor_interval_s=math.inf,  # a running group is not restarted for more workers
                use_gpu=bool(settings.gpus_per_worker),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(storage_path=scratch, name=stage, failure_config=FailureConfig(max_failures=3)),
        )
        call_in_thread(trainer.fit)


def _run_worker(config: dict[str, Any]) -> None:
    import ray

    work: GroupWork[Any] = ray.get(config["work"])
    configure_worker(work.settings)
    with work.log.entered():
        work.run(work.job, work.device)
