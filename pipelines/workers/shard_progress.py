"""Progress within shards: workers tell an actor how much of a shard they have computed, and the driver asks the actor.

Nothing depends on it. A report that is lost, or an actor that dies, only makes the progress coarser: a shard then
counts when it is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 1.0
"""least time between two reports of a worker on a shard"""
_ANSWER_SECONDS = 5.0
"""after which the driver no longer waits for an answer"""
Report = Callable[[str, float], object]
"""takes the name of a shard and the number of its documents that are computed"""


class ShardReports:
    """How many documents of each shard are computed, as workers have reported last. It is an actor in a cluster."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}

    def report(self, shard: str, documents: float) -> None:
        """Note how many documents of a shard are computed."""
        self._done[shard] = documents

    def read(self) -> dict[str, float]:
        """The documents that are computed, by shard."""
        return dict(self._done)


def start_reports() -> Any:
    """Start the actor that takes the reports of all workers. It holds no CPU, and ends with its last handle."""
    import ray

    return ray.remote(num_cpus=0)(ShardReports).remote()


def ask_reports(actor: Any) -> dict[str, float]:
    """What the workers have reported to the actor; raises what Ray raises."""
    import ray

    answer: dict[str, float] = ray.get(actor.read.remote(), timeout=_ANSWER_SECONDS)
    return answer


def report_to(actor: Any) -> Report:
    """The function by which a worker reports to the actor, without waiting for it and without an error."""

    def report(shard: str, documents: float) -> None:
        try:
            actor.report.options(num_returns=0).remote(shard, documents)
        except Exception:
            _log.debug("the progress of shard %s could not be reported", shard, exc_info=True)

    return report


def count_shard(shard: str, report: Report, clock: Callable[[], float] = time.monotonic) -> Callable[[float], None]:
    """A function that takes the number of further documents of a shard and reports their sum now and then."""
    done, reported = 0.0, clock()

    def advance(documents: float) -> None:
        nonlocal done, reported
        done += documents
        if clock() - reported >= _REPORT_SECONDS:
            reported = clock()
            report(shard, done)

    return advance


class StageProgress:
    """How much of a stage is done: the shards that are committed, and of those at work what was reported."""

    def __init__(self, done: float, open_shards: Mapping[str, float]) -> None:
        """`done` is the size of all shards that were committed before, `open_shards` the size of each other shard."""
        self._ended, self._open = done, dict(open_shards)
        self._read: Callable[[], Mapping[str, float]] = dict

    def listen(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Take the reports on shards at work from a function."""
        self._read = read

    def end(self, shard: str, size: float) -> None:
        """Count a shard that is committed."""
        del self._open[shard]
        self._ended += size

    def count(self) -> float:
        """What is done. A shard that is computed again, after a failure, counts at most once."""
        reported = self._read().items()
        return self._ended + sum(min(done, self._open.get(shard, 0.0)) for shard, done in reported)
