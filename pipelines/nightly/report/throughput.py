"""Documents per second of a run, from the times at which its shards were computed; a resumed run has pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.storage.shard_log import ShardOutcome


def busy_seconds(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """The seconds in which at least one shard was being computed."""
    total, until = 0.0, -np.inf
    for outcome in sorted(outcomes, key=_start_time):
        total += max(0.0, outcome.ended - max(until, _start_time(outcome)))
        until = max(until, outcome.ended)
    return float(total)


def span(outcomes: Sequence[ShardOutcome[Any]]) -> float:
    """The seconds from the start of the first shard to the end of the last."""
    return float(max(outcome.ended for outcome in outcomes) - min(map(_start_time, outcomes)))


def pace(outcomes: Sequence[ShardOutcome[Any]], buckets: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Documents per second in B equal intervals of time, and their borders (B + 1,) in seconds since 1970.

    The documents of a shard are spread evenly over the time in which it was computed.
    """
    first = min(map(_start_time, outcomes))
    borders = np.linspace(first, first + span(outcomes), buckets + 1)
    rates = np.zeros(buckets)
    for outcome in outcomes:
        seconds = max(outcome.seconds, 1e-3)
        done = np.clip((borders - _start_time(outcome)) / seconds, 0, 1)
        rates += outcome.counts.rows * np.diff(done)
    return rates / np.diff(borders), borders


def _start_time(outcome: ShardOutcome[Any]) -> float:
    return float(outcome.ended - max(outcome.seconds, 1e-3))
