"""A Ray Train group: workers that run one loop together, watched through what they leave in the store."""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from pipelines.workers.progress import progress
from pipelines.workers.ray_cluster import cluster, configure_worker, least_workers, translate_ray_errors, worker_count
from spin.settings import RaySettings

Loop = Callable[[dict[str, Any]], None]


def run_group(
    stage: str,
    loop: Loop,
    config: dict[str, Any],
    settings: RaySettings,
    *,
    work: int,
    total: int,
    unit: str,
    done: Callable[[], int],
) -> None:
    """Run `loop(config)` in each worker, as many as there are and at most `work`.

    The bar shows `done`, which looks into the store, of `total`. The death of a worker starts the whole group again,
    three times at most and with fewer workers where nodes are lost: a loop keeps what it has made. Raises SpinError,
    naming the stage, and a worker's own one.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    before = done()
    with cluster(settings), tempfile.TemporaryDirectory() as scratch, progress(stage, total, unit, done=before) as bar:
        resources = {"CPU": float(settings.cpus_per_worker)}
        if settings.gpus_per_worker:
            resources["GPU"] = settings.gpus_per_worker
        most = worker_count(settings, work)
        least = least_workers(settings, most)
        trainer = TorchTrainer(
            loop,
            train_loop_config={**config, "ray": settings, "device": device_of(settings)},
            torch_config=TorchConfig(backend="gloo"),  # also sums what lies on a CPU
            scaling_config=ScalingConfig(
                num_workers=least if least == most else (least, most),
                elastic_resize_monitor_interval_s=math.inf,  # a group that runs is not started again for more workers
                use_gpu=bool(settings.gpus_per_worker),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(storage_path=scratch, name=stage, failure_config=FailureConfig(max_failures=3)),
        )
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(done, before, bar, ended), daemon=True)
        watcher.start()
        try:
            with translate_ray_errors(stage):
                trainer.fit()
        finally:
            ended.set()
            watcher.join()


def device_of(settings: RaySettings) -> str:
    """Where a worker's matrices lie."""
    return "cuda" if settings.gpus_per_worker else "cpu"


def begin(config: dict[str, Any]) -> None:
    """What every loop does first."""
    configure_worker(config["ray"])


def _watch(done: Callable[[], int], seen: int, advance: Callable[[int], None], ended: threading.Event) -> None:
    """Tell the bar of what appears in the store, the only place that knows of all workers."""
    while not ended.wait(0.5):
        there = done()
        advance(there - seen)
        seen = there
