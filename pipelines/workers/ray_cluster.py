"""The Ray cluster that the stages run on, reached only when there is work."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, get_args

from tenacity import (
    RetryCallState,
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from pipelines.service_errors import UnavailableError
from spin.errors import SpinError, UserError
from spin.settings import RaySettings, Stage

_log = logging.getLogger(__name__)
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}


_shared: ContextVar[ExitStack | None] = ContextVar("shared", default=None)


@contextmanager
def shared_ray_session() -> Iterator[None]:
    """The stages within share a connection: the first that has work makes it, and it ends with the context."""
    with ExitStack() as ending:
        token = _shared.set(ending)
        try:
            yield
        finally:
            _shared.reset(token)


@contextmanager
def cluster(settings: RaySettings) -> Iterator[None]:
    """Connect to the cluster of the settings, or start one here, for as long as the context lasts, or a shared one.

    A connection that the process has already is used and left open. Raises UnavailableError.
    """
    os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        _silence_ray()
        yield
        return
    options: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        _check_gpus(settings)
        # logical CPUs beyond the pool's, or helper actors wait for it for ever on a small machine
        stages = [settings.for_stage(stage) for stage in get_args(Stage)]
        wanted = max(worker_count(stage, None) * stage.cpus_per_worker for stage in stages)
        options = {
            "address": "local",
            "num_cpus": max(4, wanted + 2, os.cpu_count() or 1),
            "include_dashboard": False,
        }
    try:
        with _muted():
            _connect(options)
    except (ConnectionError, RuntimeError) as error:
        raise UnavailableError(f"Ray cluster {settings.address or 'here'}: {_line(error)}; try again") from None
    _silence_ray()
    with ExitStack() as mine:
        (_shared.get() or mine).callback(ray.shutdown)
        yield


def _check_gpus(settings: RaySettings) -> None:
    """Raise UserError where a worker of a stage would wait for ever for a GPU of this machine."""
    import torch

    there = torch.cuda.device_count()
    for ray in map(settings.for_stage, get_args(Stage)):
        wanted = ray.gpus_per_worker * worker_count(ray, None)
        if wanted > there:
            raise UserError(
                f"ray.gpus_per_worker: {ray.gpus_per_worker:g} for {worker_count(ray, None)} workers, and torch sees "
                f"{there} GPUs here; lower it or ray.workers, or name a cluster in ray.address"
            )


def _connect(options: dict[str, Any]) -> None:
    """Connect to Ray or start it here. A busy cluster may not answer at once, so that a connection is retried."""
    import ray

    def shut_down(state: RetryCallState) -> None:
        before_sleep_log(_log, logging.DEBUG, exc_info=True)(state)
        ray.shutdown()

    retrying = Retrying(
        retry=retry_if_exception_type((ConnectionError, RuntimeError)),
        wait=wait_exponential(multiplier=1),
        stop=stop_after_attempt(1 if options["address"] == "local" else 5),
        before_sleep=shut_down,
        reraise=True,
    )
    retrying(ray.init, **options, log_to_driver=False, logging_level=logging.ERROR)


def configure_worker(settings: RaySettings) -> None:
    """What a worker's process does before all else: as many threads as its CPUs, and of GPUs what it was given.

    Raises UserError where it was given one that its torch cannot use.
    """
    import torch

    torch.set_num_threads(settings.cpus_per_worker)  # Ray leaves it to chance
    if not settings.gpus_per_worker:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves those of the node in sight
    elif not torch.cuda.is_available():
        raise UserError(
            "ray.gpus_per_worker: a worker was given a GPU that its torch does not see; install a build of torch with "
            "CUDA and the driver on its node, or set 0"
        )
    else:
        torch.cuda.set_per_process_memory_fraction(settings.gpus_per_worker)


def worker_count(settings: RaySettings, work: int | None) -> int:
    """Workers of a stage: as set, else as many as the cluster holds now, and not more than there is work for."""
    if settings.workers is not None:
        count = settings.workers
    else:
        cpus, gpus = _held(settings)
        count = max(1, cpus // settings.cpus_per_worker)
        if settings.gpus_per_worker:
            count = max(1, min(count, math.floor(gpus / settings.gpus_per_worker)))
    return count if work is None else max(1, min(count, work))


def _held(settings: RaySettings) -> tuple[int, float]:
    """CPUs and GPUs of the cluster, or of this machine where none is named."""
    if settings.address is None:
        import torch

        return os.cpu_count() or 1, torch.cuda.device_count()
    import ray

    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), total.get("GPU", 0)


def least_workers(settings: RaySettings, most: int) -> int:
    """Workers that a stage goes on with when nodes are lost: as set, else all; on a cluster of open size, one."""
    if settings.min_workers is not None:
        return min(settings.min_workers, most)
    return 1 if settings.address is not None and settings.workers is None else most


@contextmanager
def translate_ray_errors(stage: str) -> Iterator[None]:
    """Give back the SpinError that a worker raised; anything else that Ray reports is named by its stage."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        found = _spin_error(error)
        if found is not None:
            raise found from None
        first = _root(error)
        reason = f"{type(first).__name__}: {_line(first)}"
        raise SpinError(f"{stage}: a worker failed again and again: {reason}; run it again to resume") from error


def _root(error: BaseException) -> BaseException:
    """What a Ray error began with, as far as it says something."""
    found = error
    while isinstance(below := getattr(error, "cause", None) or error.__cause__, BaseException):
        error = below
        found = error if str(error) else found
    return found


def _spin_error(error: BaseException | None) -> SpinError | None:
    """The first SpinError among the causes of a Ray error."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        error = waiting.pop()
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, SpinError):
            message = str(getattr(error, "cause", error))
            return next((kind(message) for kind in type(error).__mro__ if _is_original(kind)), None)
        failures = getattr(error, "worker_failures", None)
        waiting += [getattr(error, "cause", None), error.__cause__, *(failures or {}).values()]
    return None


def _is_original(kind: type) -> bool:
    """Whether this is the class that a worker raised; Ray derives from it and from its own RayTaskError."""
    from ray.exceptions import RayError

    return issubclass(kind, SpinError) and not issubclass(kind, RayError)


@contextmanager
def _muted() -> Iterator[None]:
    """Standard error to nowhere, below Python: Ray's core announces there that it was told to be quiet."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _silence_ray() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[-300:]
