"""What `make bench-limits` says of figures: verdicts on made-up ones, nothing timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.limits.overhead import WAYS, Way
from benchmarks.limits.run import memory, page, probes, ray
from benchmarks.limits.saga import Race
from benchmarks.limits.scale import WORKERS, Scale, _speed
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from spin.sites import FeatureColumn

RACE = Race(FeatureColumn.parse("resid.06.mean"), 384, 20.0, 1.0, 2.0, 5e-4, [(0.1, 0.5, 0.4)], True)
ROUND = dict(zip(WAYS, (10.0, 10.5, 5.5, 6.0, 6.3), strict=True))
NIGHT = Scale(10, 1000.0, 0.02, {"driver": 700.0, "worker": 710.0}, {"driver": 450.0, "worker": 460.0}, 600)


@pytest.mark.parametrize(
    ("change", "wanted"), [({}, 3), ({"spin": 3.0}, 2), ({"shipped": 3.0}, 2), ({"reached": False}, 2)]
)
def test_probes_hold_where_they_are_faster_and_as_good(change: dict[str, float], wanted: int) -> None:
    """Ten times, each way, and no objective above; the text extrapolates to all site.poolings."""
    text, verdicts = probes([replace(RACE, **change)], {384: 14})  # type: ignore[arg-type]
    assert sum(holds for holds, _ in verdicts) == wanted
    assert "| all 14, extrapolated | 280 |" in text


@pytest.mark.parametrize(("way", "taken", "missed"), [(1, 11.5, 1), (2, 7.0, 1), (4, 7.0, 1), (0, 10.0, 0)])
def test_ray_is_held_against_its_round(way: int, taken: float, missed: int) -> None:
    """The median of ratios within rounds: one slow round of three changes nothing, two do."""
    slow: dict[Way, float] = {**ROUND, WAYS[way]: taken}
    assert all(holds for holds, _ in ray([ROUND, slow, ROUND])[1])
    assert sum(not holds for holds, _ in ray([slow, slow, ROUND])[1]) == missed


def test_memory_is_flat_or_is_not() -> None:
    """A driver that grows by more than a tenth is named, and so is a night that slows down; the page says so."""
    grown = replace(NIGHT, documents=1000, own={"driver": 500.0, "worker": 460.0}, per_s=850.0, whole_s=2.3)
    part = memory([NIGHT, grown])
    assert [said.partition(":")[0] for holds, said in part[1] if not holds] == [
        "driver's own memory",
        "documents/s in shards",
        "documents/s overall",
    ]
    assert page([part]).count("does not hold") == 3


def test_a_pace_is_that_of_the_median_shard() -> None:
    """Of those that were begun after the first had ended; one that stalled does not count for more than itself."""
    times = ((9.0, 9.0), (9.0, 9.5), (1.0, 10.0), (1.0, 11.0), (50.0, 61.0))
    shards = [ShardOutcome(ShardCounts(rows=100), {}, tries=1, seconds=s, ended=e) for s, e in times]
    assert _speed(shards) == WORKERS * 100
