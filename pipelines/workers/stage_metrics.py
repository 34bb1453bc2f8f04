"""The metrics of a stage, which Ray exports to Prometheus under the prefix `ray_`.

The driver counts committed shards, each of them once; drivers and workers count their requests to the store. Without a
running Ray nothing is exported: `ray.workers: 0` computes in the process of the command.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.storage.lease import Lease, LeaseGroup
from pipelines.storage.shard_log import ShardOutcome, ShardTally
from pipelines.storage.store_requests import PROCESS_REQUESTS
from pipelines.telemetry.current_runs import CurrentRun, current_runs
from pipelines.workers.repeated_calls import repeat

_log = logging.getLogger(__name__)
EXPORT_SECONDS = 5.0
"""between two exports of the counted requests and of the age of the lease"""
SHARD_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""upper bounds of the buckets of the shards' seconds"""


class StageMetrics:
    """The metrics of one stage in one process. `model` is of several models their names, joined by commas."""

    def __init__(self, stage: str, runs: tuple[CurrentRun, ...], lease: Lease | LeaseGroup | None = None) -> None:
        self.lease = lease
        """that the process must hold, None in a worker"""
        self.stage, self.models = stage, {run.name: run.model for run in runs}
        self.all_models = ",".join(self.models.values())
        self._requests = PROCESS_REQUESTS.totals()
        self._instruments: dict[str, Any] = {}
        self._lock = threading.Lock()

    def count(self, outcome: ShardOutcome[Any]) -> None:
        """Count a shard that was committed just now."""
        if not _ray_runs():
            return
        with self._recording():
            for run, tally in outcome.counts.tallies().items():
                self._count_tally(tally, self.all_models if run is None else self.models.get(run, run))
            self._add("shards", "committed shards", 1)
            self._add("retries", "tries at committed shards that came before the last one", outcome.tries - 1)
            self._add("busy_seconds", "seconds that workers took for committed shards", outcome.seconds)
            seconds = self._instrument(
                "Histogram", "shard_seconds", "seconds of the last try at a shard", boundaries=list(SHARD_SECONDS)
            )
            seconds.observe(outcome.seconds, tags=self._tags())

    def _count_tally(self, tally: ShardTally, model: str) -> None:
        self._add("documents", "documents read", tally.documents, model=model)
        self._add("tokens", "tokens that the backbone read", tally.tokens, model=model)
        for reason, count in tally.dead_letters.items():
            self._add("dead_letters", "documents that cannot be classified", count, model=model, reason=reason)
        for depth, count in tally.exits.items():
            self._add("exits", "classified documents by the block of exit", count, model=model, depth=depth)

    def export(self) -> None:
        """Export the requests since the last export, and the age of the lease."""
        if not _ray_runs():
            return
        with self._recording():
            totals = PROCESS_REQUESTS.totals()
            new, self._requests = totals.since(self._requests), totals
            for operation, count in new.requests.items():
                self._add("store_requests", "requests to the store, each attempt", count, operation=operation)
            for (operation, error), count in new.errors.items():
                self._add("store_errors", "requests to the store that failed", count, operation=operation, error=error)
            if self.lease is not None:
                age = self._instrument("Gauge", "lease_age_seconds", "seconds since the lease was found to be held")
                age.set(self.lease.age, tags=self._tags())

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Let one thread record at a time; an error is logged and ends there, since nothing depends on a metric."""
        with self._lock:
            try:
                yield
            except Exception:
                _log.debug("stage %s: metrics could not be recorded", self.stage, exc_info=True)

    def _add(self, name: str, description: str, amount: float, *, model: str | None = None, **labels: str) -> None:
        """Add to a counter; Ray accepts only positive amounts."""
        if amount > 0:
            self._instrument("Counter", name, description, *labels).inc(amount, tags=self._tags(model, **labels))

    def _tags(self, model: str | None = None, **labels: str) -> dict[str, str]:
        return {"model": self.all_models if model is None else model, "stage": self.stage, **labels}

    def _instrument(self, kind: str, name: str, description: str, *labels: str, **options: Any) -> Any:
        """The counter, gauge or histogram of a name, made at its first use."""
        from ray.util import metrics

        if name not in self._instruments:
            keys = ("model", "stage", *labels)
            self._instruments[name] = getattr(metrics, kind)(f"spin_{name}", description, tag_keys=keys, **options)
        return self._instruments[name]


@contextmanager
def export_metrics(stage: str, lease: Lease | LeaseGroup) -> Iterator[StageMetrics]:
    """Export the metrics of a stage of the current runs while the context lasts, and a last time at its end."""
    metrics = StageMetrics(stage, current_runs(), lease)
    try:
        with repeat(metrics.export, EXPORT_SECONDS, "metrics"):
            yield metrics
    finally:
        metrics.export()


def _ray_runs() -> bool:
    """Whether this process is connected to Ray; Ray is not imported to find out, and may be half imported."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())
