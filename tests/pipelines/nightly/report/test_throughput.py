"""Busy seconds and documents per second of a run, computed from the outcomes of its shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.nightly.report.night_report import busy_seconds, pace
from pipelines.storage.shard_log import ShardCounts, ShardOutcome


def make_outcome(*, ended: float, seconds: float, rows: int) -> ShardOutcome[ShardCounts]:
    return ShardOutcome(ShardCounts(rows=rows), {}, tries=1, seconds=seconds, ended=ended)


shards = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 60), st.integers(1, 900)).map(
        lambda shard: make_outcome(ended=1e9 + shard[0] + shard[1], seconds=float(shard[1]), rows=shard[2])
    ),
    min_size=1,
    max_size=12,
)


@given(shards)
def test_busy_seconds_count_every_second_of_work_once(outcomes: list[ShardOutcome[ShardCounts]]) -> None:
    """Seconds in which several shards were computed are not counted twice."""
    seconds = {s for shard in outcomes for s in range(int(shard.ended - shard.seconds), int(shard.ended))}
    assert busy_seconds(outcomes) == len(seconds)


@given(shards, st.integers(1, 80))
def test_the_rates_account_for_every_document(outcomes: list[ShardOutcome[ShardCounts]], buckets: int) -> None:
    """Documents per second times seconds, summed over the time intervals, is the number of documents."""
    rates, borders = pace(outcomes, buckets)
    assert (rates >= 0).all()
    assert (rates * np.diff(borders)).sum() == pytest.approx(sum(shard.counts.rows for shard in outcomes), rel=1e-6)


def test_rates_show_parallel_workers_and_a_pause() -> None:
    """Two shards in parallel, then a pause, then one shard at the same speed per worker."""
    outcomes = [make_outcome(ended=10, seconds=10, rows=100)] * 2 + [make_outcome(ended=30, seconds=10, rows=100)]
    rates, borders = pace(outcomes, 3)
    np.testing.assert_allclose(rates, [20, 0, 10])
    np.testing.assert_allclose(borders, [0, 10, 20, 30])
    assert busy_seconds(outcomes) == 20
