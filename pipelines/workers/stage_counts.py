"""The counts of a stage while its shards are computed, which its progress shows.

A shard counts when it is committed, and before by what its worker has reported: workers tell an actor how much of a
shard they have computed, and the driver asks the actor. Nothing depends on it. A report that is lost, or an actor that
dies, only makes the progress coarser.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.data.files.shards import Shard
from pipelines.storage.shard_log import ShardOutcome

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 1.0
"""least time between two reports of a worker on a shard"""
_ANSWER_SECONDS = 5.0
"""after which the driver no longer waits for an answer"""
Report = Callable[[str, float], object]
"""takes the name of a shard and the number of its documents that are computed"""


class StageCounts:
    """The documents of a stage that are done, or megabytes where their number is not known, and its dead letters."""

    def __init__(
        self, shards: Sequence[Shard], outcomes: Mapping[str, ShardOutcome[Any]], documents: int | None
    ) -> None:
        """Begin with the outcomes of earlier commands by shard; `documents` is the number of all, None if unknown."""
        self.unit = "MB" if documents is None else "documents"
        """of `total` and `done`"""
        sizes = {shard.name: shard.bytes / 1e6 if documents is None else shard.documents for shard in shards}
        self.total: float = sum(sizes.values()) if documents is None else documents
        """all that is to be done"""
        self.others = Counter(dead=0, retried=0)
        """dead letters, and tries that came before the last one, of the shards that this command has committed"""
        self._open = dict(sizes)
        self._ended = sum(self._close(name, outcome) for name, outcome in outcomes.items())
        self._read: Callable[[], Mapping[str, float]] = dict

    def listen(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Take the reports on shards at work from a function."""
        self._read = read

    def shard_ended(self, name: str, outcome: ShardOutcome[Any]) -> None:
        """Count a shard that is committed."""
        self._ended += self._close(name, outcome)
        self.others.update(dead=outcome.counts.dead_letters, retried=outcome.tries - 1)

    def done(self) -> float:
        """Return what is done. A shard that is computed again, after a failure, counts at most once."""
        reported = self._read().items()
        return self._ended + sum(min(done, self._open.get(shard, 0.0)) for shard, done in reported)

    def _close(self, name: str, outcome: ShardOutcome[Any]) -> float:
        """Return the size of a committed shard, which is no longer at work."""
        planned = self._open.pop(name, 0.0)
        return planned if self.unit == "MB" else outcome.counts.rows


class ShardReports:
    """The number of computed documents of each shard, as workers have reported last. It is an actor in a cluster."""

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
    """The last reports of the workers to the actor; raises what Ray raises, and ConnectionError once it has ended."""
    import ray

    if not ray.is_initialized():
        raise ConnectionError("Ray has ended, and a call would start it again")
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
