"""How fast a run went."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.nightly.throughput import busy_seconds, pace
from pipelines.storage.shard_log import ShardCounts, ShardOutcome


def outcome(*, ended: float, seconds: float, rows: int) -> ShardOutcome[ShardCounts]:
    return ShardOutcome(ShardCounts(rows=rows), {}, tries=1, seconds=seconds, ended=ended)


shards = st.lists(
    st.tuples(st.integers(0, 500), st.integers(1, 60), st.integers(1, 900)).map(
        lambda shard: outcome(ended=1e9 + shard[0] + shard[1], seconds=float(shard[1]), rows=shard[2])
    ),
    min_size=1,
    max_size=12,
)


@given(shards)
def test_busy_seconds_are_those_of_a_clock(found: list[ShardOutcome[ShardCounts]]) -> None:
    """Each whole second in which a shard was computed counts once."""
    clock = {s for shard in found for s in range(int(shard.ended - shard.seconds), int(shard.ended))}
    assert busy_seconds(found) == len(clock)


@given(shards, st.integers(1, 80))
def test_no_document_is_lost_in_the_columns(found: list[ShardOutcome[ShardCounts]], buckets: int) -> None:
    rates, borders = pace(found, buckets)
    assert (rates >= 0).all()
    assert (rates * np.diff(borders)).sum() == pytest.approx(sum(shard.counts.rows for shard in found), rel=1e-6)


def test_two_workers_and_a_pause_are_seen() -> None:
    """Two shards side by side, then nothing, then one alone at the same speed."""
    found = [outcome(ended=10, seconds=10, rows=100)] * 2 + [outcome(ended=30, seconds=10, rows=100)]
    rates, borders = pace(found, 3)
    np.testing.assert_allclose(rates, [20, 0, 10])
    np.testing.assert_allclose(borders, [0, 10, 20, 30])
    assert busy_seconds(found) == 20
