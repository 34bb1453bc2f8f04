"""Map a step over planned shards: each is read, computed and published by one actor, under a key of the plan."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from pipelines.data.readers import Shard
from pipelines.service_errors import StalledError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardLog
from pipelines.workers.progress import progress
from pipelines.workers.ray_cluster import cluster, configure_worker, least_workers, translate_ray_errors, worker_count
from spin.errors import SpinError, error_types
from spin.settings import RaySettings


class Step(Protocol):
    """What a stage computes of one shard: pure, so that doing it twice gives the same bytes."""

    def __call__(self, shard: Shard, attempt: Attempt) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The files to publish, by ending, and the counts that go into the manifest."""
        ...


def map_shards(
    make: Callable[..., Step],
    args: tuple[Any, ...],
    shards: Sequence[Shard],
    store: Store,
    settings: RaySettings,
    *,
    stage: str,
    documents: int,
    lease: Lease,
    here: bool = False,
) -> list[dict[str, Any]]:
    """Run `make(*args)` in an actor pool over the shards that the store does not have, giving all outcomes in order.

    `here` runs it in this process instead: for little work, before which actors would only have to start.

    Whatever kills a worker or the driver, a shard that is not committed is computed again. One whose store does not
    answer is tried again for `retry_seconds`. Raises what the step raised, after the shards that were committed
    before are safe, and StalledError where no shard ends for `stall_seconds`.
    """
    outcomes = ShardLog(store).committed()
    waiting = [shard for shard in shards if shard.name not in outcomes]
    if not waiting:
        return [outcomes[shard.name] for shard in shards]
    done = sum(outcome["rows"] for outcome in outcomes.values())
    with progress(stage, documents, "documents", done=done) as advance:
        for name, outcome in (
            _here(make, args, waiting, store, settings) if here else _there(make, args, waiting, store, settings, stage)
        ):
            lease.check()
            outcomes[name] = outcome
            advance(outcome["rows"], dead=outcome.get("dead", 0), retried=outcome["tries"] - 1)
    return [outcomes[shard.name] for shard in shards]


def _here(
    make: Callable[..., Step], args: tuple[Any, ...], shards: Sequence[Shard], store: Store, settings: RaySettings
) -> Iterator[tuple[str, dict[str, Any]]]:
    step = make(*args)
    for shard in shards:
        yield shard.name, _patiently(step, shard, ShardLog(store), settings.retry_seconds)


def _there(
    make: Callable[..., Step],
    args: tuple[Any, ...],
    shards: Sequence[Shard],
    store: Store,
    settings: RaySettings,
    stage: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    with cluster(settings), translate_ray_errors(stage):
        answers = _answers(make, args, shards, store, settings)
        for answer in _in_time(answers, settings.stall_seconds, stage, store):
            if answer["error"] is not None:
                raise _rebuild(answer["error"])
            yield answer["name"], answer["outcome"]


def commit_shard(step: Step, shard: Shard, shard_log: ShardLog) -> dict[str, Any]:
    """Compute a shard and commit it, giving its outcome."""
    start = time.perf_counter()
    with shard_log.attempt(shard.name) as attempt:
        files, outcome = step(shard, attempt)
        outcome |= {
            "tries": attempt.begun,
            "seconds": round(time.perf_counter() - start, 3),
            "ended": round(time.time(), 3),
        }
        return shard_log.commit(shard.name, files, outcome)


def _patiently(step: Step, shard: Shard, shard_log: ShardLog, patience: float) -> dict[str, Any]:
    """Commit a shard, with further tries while the store does not answer and patience (seconds) lasts."""
    start, pause = time.monotonic(), 1.0
    while True:
        try:
            return commit_shard(step, shard, shard_log)
        except UnavailableError:
            if time.monotonic() - start + pause > patience:
                raise
            time.sleep(pause * random.uniform(0.5, 1))  # workers that were refused together come back apart
            pause *= 2


def _answers(
    make: Callable[..., Step], args: tuple[Any, ...], shards: Sequence[Shard], store: Store, settings: RaySettings
) -> Iterator[dict[str, Any]]:
    """What the actors say of each shard, in the order in which they end."""
    import ray

    rows = [asdict(shard) for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,
        fn_constructor_args=(make, args, store, settings),
        compute=_pool(settings, len(rows)),
        num_cpus=settings.cpus_per_worker,
        num_gpus=settings.gpus_per_worker or None,
    )
    for row in dataset.iter_rows():
        yield json.loads(row["answer"])


def _pool(settings: RaySettings, work: int) -> Any:
    """The workers that the cluster holds now; where their number is open, more as it grows and fewer as it shrinks."""
    from ray.data import ActorPoolStrategy

    now = worker_count(settings, work)
    most = work if settings.address is not None and settings.workers is None else now
    least = least_workers(settings, most)
    return ActorPoolStrategy(min_size=least, max_size=most, initial_size=max(least, now))


def _in_time(answers: Iterator[dict[str, Any]], seconds: float, stage: str, store: Store) -> Iterator[dict[str, Any]]:
    """The answers, as long as the next one comes within some seconds of the last."""
    waiting: queue.Queue[Any] = queue.Queue()

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
            done = ShardLog(store).committed()
            begun = [name for name in ShardLog(store).begun() if name not in done]
            raise StalledError(
                f"{stage}: no shard has ended for {seconds:g} s (ray.stall_seconds); begun and not ended: "
                f"{', '.join(begun[:8]) or 'none'} in {store.uri}. Look at these, then run it again to resume"
            ) from None
        if answer is None:
            return
        if isinstance(answer, BaseException):
            raise answer
        yield answer


class _Worker:
    """One actor: builds the step once and publishes what it gives."""

    def __init__(self, make: Callable[..., Step], args: tuple[Any, ...], store: Store, settings: RaySettings) -> None:
        self.shard_log, self.patience = ShardLog(store), settings.retry_seconds
        self.failure: dict[str, str] | None = None
        try:
            configure_worker(settings)
            self.step = make(*args)
        except SpinError as error:  # an actor that fails to start is started again and again
            self.failure = _pack(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        shard = Shard(**row)
        answer: dict[str, Any] = {"name": shard.name, "outcome": None, "error": self.failure}
        if self.failure is None:
            try:
                answer["outcome"] = _patiently(self.step, shard, self.shard_log, self.patience)
            except SpinError as error:
                answer["error"] = _pack(error)
        return {"answer": json.dumps(answer)}


def _pack(error: SpinError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}


def _rebuild(packed: dict[str, str]) -> SpinError:
    return error_types()[packed["kind"]](packed["message"])
