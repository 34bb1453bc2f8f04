"""Map a step over planned shards: each is read, computed and published by one actor, under a key of the plan."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from pipelines.cluster import cluster, ray_errors, worker_count
from pipelines.documents import Shard
from pipelines.lease import Lease
from pipelines.progress import progress
from pipelines.store import Store
from spin.errors import SpinError
from spin.settings import RaySettings


class Step(Protocol):
    """What a stage computes of one shard: pure, so that doing it twice gives the same bytes."""

    def __call__(self, shard: Shard) -> tuple[dict[str, bytes], dict[str, Any]]:
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
) -> list[dict[str, Any]]:
    """Run `make(*args)` in an actor pool over the shards that the store does not have, giving all outcomes in order.

    A shard is committed by `parts/NAME.json`, written after its files; whatever kills a worker or the driver, a
    shard without it is computed again and writes the same keys. Raises what the step raised, after the
    shards that were committed before are safe.
    """
    outcomes = committed(store)
    waiting = [shard for shard in shards if shard.name not in outcomes]
    if not waiting:
        return [outcomes[shard.name] for shard in shards]
    done = sum(outcome["rows"] for outcome in outcomes.values())
    with cluster(settings), progress(stage, documents, "documents", done=done) as advance:
        import ray
        from ray.data import ActorPoolStrategy

        rows = [asdict(shard) for shard in waiting]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(make, args, store, settings.cpus_per_worker),
            compute=ActorPoolStrategy(size=worker_count(settings, len(rows))),
            num_cpus=settings.cpus_per_worker,
            num_gpus=settings.gpus_per_worker or None,
        )
        with ray_errors(stage):
            for row in dataset.iter_rows():
                answer = json.loads(row["answer"])
                if answer["error"] is not None:
                    raise _rebuild(answer["error"])
                lease.check()
                outcomes[answer["name"]] = answer["outcome"]
                advance(answer["outcome"]["rows"])
    return [outcomes[shard.name] for shard in shards]


def committed(store: Store) -> dict[str, dict[str, Any]]:
    """The outcomes of the shards that a store holds, by name."""
    keys = [key for key in store.list("parts") if key.endswith(".json")]
    return {key.removeprefix("parts/").removesuffix(".json"): store.read_json(key) for key in keys}


class _Worker:
    """One actor: builds the step once and publishes what it gives."""

    def __init__(self, make: Callable[..., Step], args: tuple[Any, ...], store: Store, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.store = store
        self.failure: dict[str, str] | None = None
        try:
            self.step = make(*args)
        except SpinError as error:  # an actor that fails to start is started again and again
            self.failure = _pack(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        shard = Shard(**row)
        answer: dict[str, Any] = {"name": shard.name, "outcome": None, "error": self.failure}
        if self.failure is None:
            try:
                answer["outcome"] = self._publish(shard)
            except SpinError as error:
                answer["error"] = _pack(error)
        return {"answer": json.dumps(answer)}

    def _publish(self, shard: Shard) -> dict[str, Any]:
        start = time.perf_counter()
        files, outcome = self.step(shard)
        outcome["files"] = {}
        for ending, data in files.items():
            key = f"parts/{shard.name}.{ending}"
            self.store.write(key, data)
            outcome["files"][key] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        outcome["seconds"] = round(time.perf_counter() - start, 3)
        self.store.write_json(f"parts/{shard.name}.json", outcome)
        return outcome


def _pack(error: SpinError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": str(error)}


def _rebuild(packed: dict[str, str]) -> SpinError:
    import spin.errors

    kind: type[SpinError] = getattr(spin.errors, packed["kind"])
    return kind(packed["message"])
