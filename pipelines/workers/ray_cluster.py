"""Connect to the Ray cluster that the stages run on, or start Ray on this machine, when there is work."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, TypeVar, get_args

from tenacity import (
    RetryCallState,
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from pipelines.service_errors import UnavailableError
from spin.errors import SpinError, UserError, shorten_message
from spin.settings import RaySettings, Stage
from spin_neurons import find_conflict

_log = logging.getLogger(__name__)
T = TypeVar("T")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # a thread that still calls Ray after the end of a session would start another one by itself, with a dashboard,
    # and the process could end with the status of Ray's core instead of its own
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""variables by which users say how the processes of Ray know each other; without a mode, Ray looks at no token"""
_LOOPBACK = "127.0.0.1"

_shared: ContextVar[ExitStack | None] = ContextVar("shared", default=None)


@contextmanager
def shared_ray_session() -> Iterator[None]:
    """Let all stages within the context share one Ray session, which the first stage with work starts."""
    with ExitStack() as ending:
        token = _shared.set(ending)
        try:
            yield
        finally:
            _shared.reset(token)


@contextmanager
def cluster(settings: RaySettings) -> Iterator[None]:
    """Connect to the cluster of the settings, or start Ray here, until this or the shared context ends.

    A session that the process already has is used and left open. Raises UnavailableError if Ray does not answer.
    Raises UserError if its workers, which look into the working directory, would find other packages in place of ours.
    """
    if conflict := find_conflict([os.getcwd()], ("spin", "pipelines")):
        raise UserError(f"Ray's workers look for modules in the working directory first: {conflict}")
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
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
            "_node_ip_address": _LOOPBACK,
            "num_cpus": max(4, wanted + 2, os.cpu_count() or 1),
            "include_dashboard": False,
            # `ray start` has an option for it, `ray.init` has only this
            "_metrics_export_port": _choose_metrics_port(settings.metrics_port),
        }
    with ExitStack() as own:
        ending = _shared.get() or own
        ending.enter_context(_sudden_end_reported())
        if settings.address is None:
            ending.enter_context(_token_required())
        ending.callback(_shut_down)  # before Ray starts: a signal may interrupt the start
        try:
            with (
                _silenced_stderr(),
                signal_handlers_kept(),
                _loopback_kept() if settings.address is None else nullcontext(),
            ):
                _connect(options)
        except (ConnectionError, RuntimeError) as error:
            raise UnavailableError(
                f"Ray cluster {settings.address or 'here'}: {shorten_message(str(error), keep_end=True)}; try again"
            ) from None
        _silence_ray()
        yield


@contextmanager
def _token_required() -> Iterator[None]:
    """Let the processes of Ray on this machine serve those alone that know a token, unless the environment decides it.

    Whoever reaches Ray's ports can run code with the rights of this process. The token is in the environment of Ray's
    processes, which other users cannot read, and in no file. It ends with the context.
    """
    if _MODE in os.environ:
        yield
        return
    # guarded by test_ray_on_this_machine_serves_no_stranger; broken by:
    #   added = {_MODE: "disabled"}
    added = {_MODE: "token"}
    if _TOKEN not in os.environ and _TOKEN_PATH not in os.environ:
        added[_TOKEN] = secrets.token_hex(32)
    os.environ.update(added)
    _reread_authentication()
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        _reread_authentication()


def _reread_authentication() -> None:
    """Let Ray's core take its mode and token from the environment, which it has read when it was imported."""
    from ray import _raylet

    core: Any = _raylet
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback_kept() -> Iterator[None]:
    """Let Ray start on the loopback address, in place of which it takes that of the machine on Linux."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    # guarded by test_ray_on_this_machine_serves_no_stranger
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _choose_metrics_port(wanted: int | None) -> int | None:
    """The port for metrics, None for any: Ray would not start on one that another program listens on."""
    if wanted is None:
        return None
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", wanted))
        except OSError as error:
            _log.warning("ray.metrics_port %d: %s; metrics are served on another port", wanted, error.strerror)
            return None
    return wanted


def _shut_down() -> None:
    """End the session. Ray's processes and threads may write to standard error meanwhile, which is not shown."""
    import ray

    with _silenced_stderr():
        _end_ray_data()
        ray.shutdown()


def _end_ray_data() -> None:
    """End what Ray Data still executes in threads of this process, as after a signal.

    A thread that lets go of Ray's core after its processes have ended holds this process up for a minute, until the
    core gives up and ends it without a report.
    """
    # Ray Data has no public way to end a dataset that another thread reads
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor):
            try:
                thread.shutdown(force=True)
            except Exception:  # its actors may be gone, and Ray has to end all the same
                _log.debug("Ray Data did not end in order", exc_info=True)


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Ray replaces, after the context.

    Meanwhile Ray's handler of SIGTERM raises SystemExit, which becomes the call of the handler that was there before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    terminated = False
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        terminated = True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


_SUDDEN_END = (
    "error: the process of this command ended without a report: it was killed, or Ray lost its head or this node; run "
    "it again to resume"
)


@contextmanager
def _sudden_end_reported() -> Iterator[None]:
    """Write one line to standard error if this process ends within the context.

    A driver that loses its node or the head of its cluster is ended by Ray's core, without an exception. A shell waits
    for a line from this process; without one at the end of its input it writes the line in its place.
    """
    command = ["/bin/sh", "-c", 'read -r word || printf "%s\\n" "$0" >&2', _SUDDEN_END]
    try:
        reporter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    except OSError:
        _log.debug("there is no shell to report a sudden end", exc_info=True)
        yield
        return
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            reporter.communicate(b"over\n")


def call_in_thread(function: Callable[[], T]) -> T:
    """Call a function in another thread and return or raise what it does; a signal interrupts the wait.

    In the main thread some functions of Ray replace the handler of SIGINT by one that ends with status 0.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name="call").start()
    # in short waits: a signal that arrives just before a wait is handled only after it
    while not wait([future], timeout=1).done:
        pass
    return future.result()


def _check_gpus(settings: RaySettings) -> None:
    """Raise UserError if the workers of a stage need more GPUs than this machine has: they would wait forever."""
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
    """Connect to Ray or start it here.

    A busy cluster may not answer at once, and Ray gives up if it does not start on a busy machine within 30 seconds:
    both are retried. Raises ConnectionError or RuntimeError if that does not help.
    """
    import ray

    def shut_down(state: RetryCallState) -> None:
        before_sleep_log(_log, logging.DEBUG, exc_info=True)(state)
        ray.shutdown()

    retrying = Retrying(
        retry=retry_if_exception_type((ConnectionError, RuntimeError)),
        wait=wait_exponential(multiplier=1),
        stop=stop_after_attempt(3 if options["address"] == "local" else 5),
        before_sleep=shut_down,
        reraise=True,
    )
    retrying(_init_ray, options)


def _init_ray(options: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise RuntimeError(str(error)) from error  # Ray has no class for a node that does not start in time


def configure_worker(settings: RaySettings) -> None:
    """Give the process of a worker as many threads as it has CPUs, and its share of a GPU or none.

    Raises UserError if the worker was given a GPU that its torch cannot use.
    """
    import torch

    torch.set_num_threads(settings.cpus_per_worker)  # Ray does not set it
    if not settings.gpus_per_worker:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the GPUs of the node visible
    elif not torch.cuda.is_available():
        raise UserError(
            "ray.gpus_per_worker: a worker was given a GPU that its torch does not see; install a build of torch with "
            "CUDA and the driver on its node, or set 0"
        )
    else:
        torch.cuda.set_per_process_memory_fraction(settings.gpus_per_worker)


def current_node() -> str:
    """The id of the node of this worker."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def current_actor() -> str:
    """The id of the actor of this worker, which stays when Ray starts the actor in another process."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())


def lost_nodes() -> set[str]:
    """The ids of the nodes that the cluster has lost."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def worker_count(settings: RaySettings, work: int | None) -> int:
    """The number of workers of a stage: as set, else as many as the cluster can hold now; from 1 to `work`."""
    if settings.workers is not None:
        count = settings.workers
    else:
        cpus, gpus = _available_resources(settings)
        count = max(1, cpus // settings.cpus_per_worker)
        if settings.gpus_per_worker:
            count = max(1, min(count, math.floor(gpus / settings.gpus_per_worker)))
    return max(1, count if work is None else min(count, work))


def _available_resources(settings: RaySettings) -> tuple[int, float]:
    """CPUs and GPUs of the cluster, or of this machine if the settings name no cluster."""
    if settings.address is None:
        import torch

        return os.cpu_count() or 1, torch.cuda.device_count()
    import ray

    total = ray.cluster_resources()
    return int(total.get("CPU", 1)), total.get("GPU", 0)


def runs_here(settings: RaySettings, *, few: bool) -> bool:
    """Whether this process computes what the workers of a stage would.

    It does without workers (`ray.workers: 0`), and where `few` documents take less time than workers to start, unless
    the settings give a number of workers, a cluster or a GPU.
    """
    if settings.workers is not None:
        return settings.workers == 0
    return few and settings.address is None and not settings.gpus_per_worker


def least_workers(settings: RaySettings, most: int) -> int:
    """The least number of workers that a stage continues with after nodes are lost.

    As set, else `most`; one on a cluster if the settings leave the number of workers open.
    """
    if settings.min_workers is not None:
        return min(settings.min_workers, most)
    return 1 if settings.address is not None and settings.workers is None else most


@contextmanager
def translate_ray_errors(stage: str) -> Iterator[None]:
    """Raise the SpinError that a worker raised; any other error of Ray becomes a SpinError that names the stage."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        _log.debug("%s: Ray raised an error", stage, exc_info=True)
        worker_error = _spin_error(error)
        if worker_error is not None:
            raise worker_error from None
        root = _root_cause(error)
        reason = f"{type(root).__name__}: {shorten_message(str(root), keep_end=True)}"
        raise SpinError(f"{stage}: a worker failed again and again: {reason}; run it again to resume") from error


def _root_cause(error: BaseException) -> BaseException:
    """The innermost cause of a Ray error that has a message."""
    root = error
    while isinstance(cause := getattr(error, "cause", None) or error.__cause__, BaseException):
        error = cause
        root = error if str(error) else root
    return root


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
    """Whether this is the class of a worker's error; Ray derives another from it and from its own RayTaskError."""
    from ray.exceptions import RayError

    return issubclass(kind, SpinError) and not issubclass(kind, RayError)


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Redirect the file descriptor of standard error to nowhere: Ray's core writes to it despite all settings."""
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _silence_ray() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
