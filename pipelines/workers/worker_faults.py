"""Faults of workers: processes that die while they load the model, and that fail on what is known to be good."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.service_errors import WorkerFaultError
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json
from pipelines.storage.retrying import retry_unavailable
from pipelines.storage.shard_log import LogLayout
from spin.errors import SpinError, describe_error

_log = logging.getLogger(__name__)
KNOWN_GOOD_TEXT = "The train to the coast leaves at nine, and the weather is fine."
"""text that every backbone can compute, for the known-good check of a step"""
MAX_DEADLY_STARTS = 3
"""processes of a worker that may die in a row while they load the model, before the run ends"""
MAX_REPLACEMENTS = 3
"""faults of the workers of a host before the run ends; after each but the last the worker is replaced"""
_CUDA_MESSAGES = ("CUDA error", "CUDA out of memory", "CUDA driver error", "CUBLAS", "cuBLAS", "CUDNN", "cuDNN", "NCCL")
"""a RuntimeError whose message holds one of these comes from a GPU, in versions of torch without a class for it"""


def is_fault_of_worker(error: BaseException) -> bool:
    """Whether an error is never the fault of a document: memory, files and GPUs of the worker's machine.

    Errors of a store are SpinErrors, which the caller treats first.
    """
    import torch

    gpu = (torch.OutOfMemoryError, torch.cuda.CudaError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, OSError, *gpu)):
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in _CUDA_MESSAGES):
            return True
        cause = cause.__cause__
    return False


@contextmanager
def faults_of_worker() -> Iterator[None]:
    """Turn errors that are the fault of the worker's machine into WorkerFaultError."""
    try:
        yield
    except SpinError:
        raise
    except Exception as error:
        if not is_fault_of_worker(error):
            raise
        raise WorkerFaultError(
            f"the worker on {describe_worker()} is at fault, not a document: {describe_error(error)}; replace it, or "
            "give it more memory, then run it again to resume"
        ) from error


def describe_worker() -> str:
    """The host of this process, and the GPU that it was given, if any."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"{socket.gethostname()} (GPU {gpu})" if gpu else socket.gethostname()


@dataclass(frozen=True)
class _Fault:
    """A worker that failed on what is known to be good, or for lack of memory, files or a GPU."""

    worker: str
    """as `describe_worker` names it"""
    reason: str


class WorkerFaults:
    """The faults of a stage's workers under one driver, in objects of the store that outlive their processes."""

    def __init__(self, store: Store, layout: LogLayout, claim: int) -> None:
        self.store, self.worker = store, describe_worker()
        self._starts = layout.key("starts", f"{claim:06d}")
        self._faults = layout.key("faults", f"{claim:06d}")

    @contextmanager
    def watch_start(
        self, actor: str, node: str, lost_nodes: Callable[[], Collection[str]], backbone: str | None
    ) -> Iterator[None]:
        """Write down that a process of an actor makes its step, which the context does, until that ends.

        A process that dies natively meanwhile stays written down, and Ray starts the actor again. Raises SpinError if
        the last processes of the actor died so; the message names `backbone`, the engine and the precision. A process
        whose node was lost does not count.
        """
        key = f"{self._starts}/{actor}.json"
        dead: list[str] = self._retry(self.store.read_json, key) or []  # node of each process
        lost = lost_nodes() if dead else ()
        dead = [earlier for earlier in dead if earlier not in lost]
        if len(dead) >= MAX_DEADLY_STARTS:
            what = f"the model ({backbone})" if backbone else "its step"
            raise SpinError(
                f"{len(dead)} processes of a worker in a row died while they loaded {what}, the last on {self.worker}; "
                "no document is blamed. Set another backbone.engine or backbone.dtype, or give workers more memory, "
                "then run it again to resume"
            )
        self._retry(self.store.write_json, key, [*dead, node])
        try:
            yield
        finally:
            self._retry(self.store.write_json, key, [])

    @contextmanager
    def replacing_worker(self) -> Iterator[None]:
        """End this process after a fault of the worker in the context, so that Ray starts another one in its place.

        Raises WorkerFaultError, which then ends the run, if the workers of this host have had too many faults.
        """
        try:
            with faults_of_worker():
                yield
        except WorkerFaultError as error:
            if self._count_fault(error) >= MAX_REPLACEMENTS:
                raise
            _log.warning("%s; the worker is replaced", error)
            os._exit(1)

    def _count_fault(self, error: WorkerFaultError) -> int:
        """Write down a fault; return how many the workers of this host have had."""
        key = f"{self._faults}/{uuid.uuid4().hex}.json"
        self._retry(self.store.write_json, key, _Fault(self.worker, str(error)))
        stored = [self._retry(self.store.read_json, key) for key in self._retry(self.store.list, self._faults)]
        faults = [from_json(_Fault, fault) for fault in stored if fault is not None]
        return sum(fault.worker == self.worker for fault in faults)

    def _retry(self, operation: Callable[..., Any], *args: Any) -> Any:
        return retry_unavailable(self.store)(operation, *args)
