"""How fast a run went, by when its shards were computed; a run that was resumed has pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.storage.shard_log import ShardOutcome


def busy_seconds(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """Seconds in which at least one shard was being computed."""
    total, until = 0.0, -np.inf
    for outcome in sorted(outcomes, key=_began):
        total += max(0.0, outcome.ended - max(until, _began(outcome)))
        until = max(until, outcome.ended)
    return float(total)


def span(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """Seconds from the begin of the first shard to the end of the last."""
    return float(max(outcome.ended for outcome in outcomes) - min(map(_began, outcomes)))


def pace(outcomes: Sequence[ShardOutcome[Any]], buckets: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Documents a second in equal stretches of time, and the borders of these in seconds since 1970.

    A shard's documents are spread evenly over the time in which it was computed.
    """
    first = min(map(_began, outcomes))
    borders = np.linspace(first, first + span(outcomes), buckets + 1)
    rates = np.zeros(buckets)
    for outcome in outcomes:
        seconds = max(outcome.seconds, 1e-3)
        done = np.clip((borders - _began(outcome)) / seconds, 0, 1)
        rates += outcome.counts.rows * np.diff(done)
    return rates / np.diff(borders), borders


def _began(outcome: ShardOutcome[Any]) -> float:
    return float(outcome.ended - max(outcome.seconds, 1e-3))
