"""Map a step over planned shards: an actor reads, computes and commits each shard under a key of the plan."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_before_delay,
    wait_exponential,
    wait_random_exponential,
)

from pipelines.data.shards import Shard
from pipelines.service_errors import StalledError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardLog, ShardOutcome, StepResult
from pipelines.workers.progress import progress
from pipelines.workers.ray_cluster import cluster, configure_worker, least_workers, translate_ray_errors, worker_count
from spin.errors import SpinError, error_types
from spin.settings import RaySettings

_log = logging.getLogger(__name__)
C = TypeVar("C", bound=ShardCounts)


class Step(Protocol[C]):
    """The function that a stage applies to one shard. It must be pure: computing a shard twice gives the same bytes."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[C]: ...


@dataclass(frozen=True)
class ShardWork(Generic[C]):
    """The input of every worker of a stage; it is pickled and sent to the actors."""

    make: Callable[..., Step[C]]
    """class or function that returns the step; each worker calls it once"""
    args: tuple[Any, ...]
    """arguments of `make`"""
    counts_type: type[C]
    """record that the step counts"""
    store: Store
    """where shards are committed"""
    settings: RaySettings


@dataclass(frozen=True)
class WorkerError:
    """A SpinError on its way from an actor to the driver."""

    kind: str
    """name of its class"""
    message: str

    @classmethod
    def of(cls, error: SpinError) -> WorkerError:
        return cls(type(error).__name__, str(error))

    def rebuild(self) -> SpinError:
        """The error as the worker raised it."""
        return error_types()[self.kind](self.message)


@dataclass(frozen=True)
class WorkerAnswer:
    """The result of an actor for one shard: its outcome or an error, as JSON in the one column of a Ray dataset."""

    name: str
    """of the shard"""
    outcome: Mapping[str, Any] | None = None
    """JSON of the ShardOutcome"""
    error: WorkerError | None = None

    def to_row(self) -> dict[str, str]:
        return {"answer": json.dumps(asdict(self))}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> WorkerAnswer:
        answer = json.loads(row["answer"])
        error = answer["error"]
        return cls(answer["name"], answer["outcome"], None if error is None else WorkerError(**error))


def map_shards(
    make: Callable[..., Step[C]],
    args: tuple[Any, ...],
    shards: Sequence[Shard],
    store: Store,
    settings: RaySettings,
    *,
    counts_type: type[C],
    stage: str,
    documents: int,
    lease: Lease,
    here: bool = False,
) -> list[ShardOutcome[C]]:
    """Run `make(*args)` in an actor pool over the shards that are not yet committed; all outcomes in order of shards.

    `here` runs the step in this process instead, for so little work that starting actors would take longer; so does a
    stage without workers (`ray.workers: 0`).

    Whatever kills a worker or the driver, a shard that is not committed is computed again. A shard whose store does
    not answer is retried for `retry_seconds`. Raises the error of a step, after the shards that were committed before
    it are safe, and StalledError if no shard ends for `stall_seconds`.
    """
    outcomes = ShardLog(store).outcomes(counts_type)
    waiting = [shard for shard in shards if shard.name not in outcomes]
    if not waiting:
        return [outcomes[shard.name] for shard in shards]
    work = ShardWork(make, args, counts_type, store, settings)
    done = sum(outcome.counts.rows for outcome in outcomes.values())
    with progress(stage, documents, "documents", done=done) as advance:
        for name, outcome in (
            _run_here(work, waiting) if here or settings.workers == 0 else _run_in_actors(work, waiting, stage)
        ):
            lease.check()
            outcomes[name] = outcome
            advance(outcome.counts.rows, dead=outcome.counts.dead_letters, retried=outcome.tries - 1)
    return [outcomes[shard.name] for shard in shards]


def _run_here(work: ShardWork[C], shards: Sequence[Shard]) -> Iterator[tuple[str, ShardOutcome[C]]]:
    step = work.make(*work.args)
    for shard in shards:
        yield shard.name, _commit_with_retries(step, shard, ShardLog(work.store), work.settings.retry_seconds)


def _run_in_actors(work: ShardWork[C], shards: Sequence[Shard], stage: str) -> Iterator[tuple[str, ShardOutcome[C]]]:
    with cluster(work.settings), translate_ray_errors(stage):
        for answer in _within_stall_limit(_answers(work, shards), work.settings.stall_seconds, stage, work.store):
            if answer.error is not None:
                raise answer.error.rebuild()
            assert answer.outcome is not None
            yield answer.name, ShardOutcome.from_json(answer.outcome, work.counts_type)


def commit_shard(step: Step[C], shard: Shard, shard_log: ShardLog) -> ShardOutcome[C]:
    """Compute a shard and commit it."""
    start = time.perf_counter()
    with shard_log.attempt(shard.name) as attempt:
        result = step(shard, attempt)
        seconds, ended = round(time.perf_counter() - start, 3), round(time.time(), 3)
        return shard_log.commit(shard.name, result, tries=attempt.begun, seconds=seconds, ended=ended)


def _commit_with_retries(step: Step[C], shard: Shard, shard_log: ShardLog, patience: float) -> ShardOutcome[C]:
    """Commit a shard; while the store does not answer, retry for `patience` seconds.

    The pauses double, and half of each is random, so that workers whose requests failed together do not retry together.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(UnavailableError),
        wait=wait_exponential(multiplier=0.5) + wait_random_exponential(multiplier=0.5),
        stop=stop_before_delay(patience),
        before_sleep=before_sleep_log(_log, logging.DEBUG, exc_info=True),
        reraise=True,
    )
    return retrying(commit_shard, step, shard, shard_log)


def _answers(work: ShardWork[Any], shards: Sequence[Shard]) -> Iterator[WorkerAnswer]:
    """The answers of the actors, in the order in which they end."""
    import ray

    rows = [{"shard": json.dumps(to_json(shard))} for shard in shards]
    settings = work.settings
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(work,),
        compute=_pool(settings, len(rows)),
        num_cpus=settings.cpus_per_worker,
        num_gpus=settings.gpus_per_worker or None,
    )
    for row in dataset.iter_rows():
        yield WorkerAnswer.from_row(row)


def _pool(settings: RaySettings, work: int) -> Any:
    """Actors for the workers that the cluster holds now; if their number is open, it follows the cluster's size."""
    from ray.data import ActorPoolStrategy

    now = worker_count(settings, work)
    most = work if settings.address is not None and settings.workers is None else now
    least = least_workers(settings, most)
    return ActorPoolStrategy(min_size=least, max_size=most, initial_size=max(least, now))


def _within_stall_limit(
    answers: Iterator[WorkerAnswer], seconds: float, stage: str, store: Store
) -> Iterator[WorkerAnswer]:
    """The answers; raises StalledError if the next one does not come within some seconds of the last."""
    waiting: queue.Queue[WorkerAnswer | BaseException | None] = queue.Queue()

    def listen() -> None:
        try:
            for answer in answers:
                waiting.put(answer)
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=listen, daemon=True, name="answers").start()
    while True:
        try:
            answer = waiting.get(timeout=seconds)
        except queue.Empty:
            shard_log = ShardLog(store)
            committed = set(shard_log.committed())
            open_shards = [name for name in shard_log.begun() if name not in committed]
            raise StalledError(
                f"{stage}: no shard has ended for {seconds:g} s (ray.stall_seconds); begun and not ended: "
                f"{', '.join(open_shards[:8]) or 'none'} in {store.uri}. Look at these, then run it again to resume"
            ) from None
        if answer is None:
            return
        if isinstance(answer, BaseException):
            raise answer
        yield answer


class _Worker:
    """One actor: makes the step once, then computes and commits shards."""

    def __init__(self, work: ShardWork[Any]) -> None:
        self.shard_log, self.patience = ShardLog(work.store), work.settings.retry_seconds
        self.failure: WorkerError | None = None
        try:
            configure_worker(work.settings)
            self.step = work.make(*work.args)
        except SpinError as error:  # raised here, it would make Ray start the actor again and again
            _log.debug("the worker cannot start", exc_info=True)
            self.failure = WorkerError.of(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        shard = from_json(Shard, json.loads(row["shard"]))
        if self.failure is not None:
            return WorkerAnswer(shard.name, error=self.failure).to_row()
        try:
            outcome = _commit_with_retries(self.step, shard, self.shard_log, self.patience)
        except SpinError as error:
            _log.debug("shard %s failed", shard.name, exc_info=True)
            return WorkerAnswer(shard.name, error=WorkerError.of(error)).to_row()
        return WorkerAnswer(shard.name, outcome.to_json()).to_row()
