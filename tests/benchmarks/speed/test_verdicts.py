"""The verdicts, on constructed timings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.speed import verdicts as module
from benchmarks.speed.contender import OurSetting
from benchmarks.speed.interval import Interval
from benchmarks.speed.row import Row
from benchmarks.speed.verdicts import Limits, Verdict, equal_score, full_depth_in_16_bits, ray, reasons, shipped
from tests.benchmarks.speed.made_rows import (
    CHEAP,
    DEFAULT,
    EXACT,
    FAST,
    FULL,
    GRAPH,
    LOOP,
    OURS,
    PEERS,
    ROWS,
    SCALED,
    TFIDF,
    make_row,
    pairs,
)  # fmt: skip


def verdict(rows: list[Row], name: str) -> Verdict:
    """The verdict whose claim begins with a name."""
    [found] = [v for v in module.verdicts(rows, pairs(rows)) if v.claim.startswith(name)]
    return found


def test_the_unfavourable_end_of_the_interval_decides() -> None:
    """Of speeds the lower end, of seconds the upper one; an estimate beyond a limit is not enough."""
    speeds, seconds = Limits(1.3, 2.0), Limits(1.15, 1.1, at_most=True)
    assert Verdict("", "", speeds, Interval(1.5, 1.3, 1.7)).holds
    assert not Verdict("", "", speeds, Interval(1.5, 1.29, 1.7)).holds
    assert not Verdict("", "", speeds, Interval(2.1, 1.9, 2.3)).reaches_goal
    assert Verdict("", "", speeds, Interval(2.1, 2.0, 2.3)).reaches_goal
    assert Verdict("", "", seconds, Interval(1.1, 1.0, 1.15)).holds
    assert not Verdict("", "", seconds, Interval(1.1, 1.0, 1.16)).holds
    assert not Verdict("", "", seconds, Interval(1.1, 1.0, 1.15)).reaches_goal
    assert not Verdict("", "", speeds, Interval(3, 3, 3), condition=False).holds
    assert Verdict("", "", Limits(None, 2.0), None, condition=False).holds
    assert not Verdict("", "", Limits(1.0, 2.0), None).holds


def test_the_shipped_settings_are_compared_with_the_fastest_transformer_peer() -> None:
    """1.88 ×, of calibrated int8 too; words alone are not a transformer."""
    found = shipped(ROWS)
    assert (found.holds, found.reaches_goal) == (True, False)
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(1.875, rel=0.01)
    assert "against graph, scaled int8" in found.figures
    assert not shipped([LOOP, SCALED, FULL, replace(DEFAULT, seconds=(1.8, 1.9, 2.0))]).holds


def test_the_shipped_settings_may_lose_half_a_point_of_our_own_full_depth() -> None:
    """Full depth is that of the same engine and precision, and of int8 that in 16 bits."""
    assert shipped([SCALED, FULL, replace(DEFAULT, score=FULL.score - 0.005)]).holds
    assert not shipped([SCALED, FULL, replace(DEFAULT, score=FULL.score - 0.0051)]).holds
    in_int8 = replace(DEFAULT, role=replace(DEFAULT.role, precision="int8"))
    full_in_int8 = replace(FULL, role=replace(FULL.role, precision="int8"), score=FULL.score - 0.01)
    assert shipped([SCALED, FULL, full_in_int8, replace(in_int8, score=FULL.score - 0.005)]).holds
    assert not shipped([SCALED, FULL, full_in_int8, replace(in_int8, score=FULL.score - 0.01)]).holds
    assert not shipped([SCALED, EXACT, DEFAULT]).holds
    assert "no row of SPIN as shipped" in shipped([SCALED, EXACT, DEFAULT]).figures


def test_every_peer_meets_the_fastest_of_ours_that_reaches_it_on_validation() -> None:
    """Scores on the test documents choose nothing."""
    by_peer = {pair.peer.key: pair for pair in pairs(ROWS)}
    assert {key: pair.ours for key, pair in by_peer.items()} == {
        "loop float32": FAST, "graph bfloat16": FAST, "graph, scaled int8": FAST, "TF-IDF": CHEAP,
    }  # fmt: skip
    assert by_peer["TF-IDF"].ratio is not None
    assert by_peer["TF-IDF"].ratio.estimate == pytest.approx(0.625, rel=0.01)
    assert by_peer["graph bfloat16"].difference is not None
    assert by_peer["graph bfloat16"].difference.estimate == pytest.approx(0.01)
    lucky = [*PEERS, *OURS[:3], replace(FAST, score=0.9, valid_score=0.755), CHEAP]
    assert {p.peer.key: p.ours for p in pairs(lucky)}["graph bfloat16"] == DEFAULT


def test_equal_score_means_reaching_the_best_transformer_peer_and_beating_the_fastest() -> None:
    """Ours takes 1 s, the fastest peer 3, and the best on validation 5."""
    found = equal_score(pairs(ROWS))
    assert (found.holds, found.reaches_goal) == (True, True)
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(3, rel=0.01)
    high = [replace(GRAPH, valid_score=0.81), *PEERS[2:], *OURS]
    assert not equal_score(pairs(high)).holds
    assert "no row of SPIN that reaches them" in equal_score(pairs(high)).figures


def test_equal_score_does_not_hold_if_the_test_shows_a_lower_one() -> None:
    """A setting that is lucky on validation is found out, beyond what chance explains."""
    unlucky = make_row(FAST.role, 1.0, 0.5, valid_score=0.77)
    rows = [*PEERS, *OURS[:3], unlucky]
    found = equal_score(pairs(rows))
    assert found.interval is not None
    assert found.interval.low > 2.5
    assert not found.holds


def test_words_have_a_goal_and_no_floor() -> None:
    """Within twice the time of the peer at its score; a setting that reaches no peer costs only the goal."""
    found = verdict(ROWS, "at the macro-F1 of TF-IDF")
    assert (found.holds, found.reaches_goal) == (True, True)
    slow = [replace(TFIDF, seconds=(0.3, 0.3, 0.3)) if row is TFIDF else row for row in ROWS]
    assert verdict(slow, "at the macro-F1 of TF-IDF").holds
    assert not verdict(slow, "at the macro-F1 of TF-IDF").reaches_goal
    best = [replace(TFIDF, valid_score=0.9) if row is TFIDF else row for row in ROWS]
    assert verdict(best, "at the macro-F1 of TF-IDF").holds
    assert not verdict(best, "at the macro-F1 of TF-IDF").reaches_goal


def test_full_depth_meets_the_16_bit_peer_in_16_bits() -> None:
    """int8 of a peer does not count, nor do rows with exits or in float32; little may be lost against float32."""
    found = full_depth_in_16_bits(ROWS)
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(1)
    assert (found.holds, "graph bfloat16" in found.figures) == (True, True)
    slower = replace(FULL, seconds=tuple(1.06 * s for s in FULL.seconds))
    assert not full_depth_in_16_bits([GRAPH, EXACT, slower]).holds
    assert full_depth_in_16_bits([GRAPH, EXACT, replace(FULL, score=0.797)]).holds
    assert not full_depth_in_16_bits([GRAPH, EXACT, replace(FULL, score=0.7969)]).holds
    assert not full_depth_in_16_bits(
        [GRAPH, replace(EXACT, role=OurSetting("torch", "float32", "balanced")), FULL]
    ).holds


def test_ray_may_take_a_little_longer_than_a_plain_loop() -> None:
    """The ratio is of seconds, so that it is large when Ray is slow."""
    assert ray([10.0, 10.1], [11.0, 11.1]).holds
    found = ray([10.0, 10.0], [12.0, 12.0])
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(1.2)
    assert not found.holds
    assert ray([10.0, 10.0], [10.5, 10.5]).reaches_goal


def test_reasons_may_take_a_little_longer_than_the_same_setting_without() -> None:
    """Each setting is compared with its own; a row of reasons alone has nothing to be compared with."""
    full, shipped_ = (
        make_row(row.role.with_reasons, tuple(factor * s for s in row.seconds), row.score)
        for row, factor in ((FULL, 1.1), (DEFAULT, 1.2))
        if isinstance(row.role, OurSetting)
    )
    found = reasons([*ROWS, full, shipped_])
    assert [v.interval and round(v.interval.estimate, 3) for v in found] == [1.1, 1.2]
    assert [v.holds for v in found] == [True, False]
    assert "max_loss" in found[1].figures
    assert reasons([*ROWS]) == reasons([full]) == []
    fast = replace(full, seconds=(0.1, 0.1, 0.1))  # is no row of full depth for the peers
    assert full_depth_in_16_bits([*ROWS, fast]) == full_depth_in_16_bits(ROWS)


def test_every_floor_decides_the_exit_status() -> None:
    """Peers alone leave nothing to compare, and the three floors fail."""
    assert [v.holds for v in module.verdicts(ROWS, pairs(ROWS))] == [True] * 4
    assert [v.holds for v in module.verdicts(PEERS, pairs(PEERS))] == [False, False, True, False]
    assert [v.limits.floor for v in module.verdicts(ROWS, pairs(ROWS))] == [1.7, 1.6, None, 0.95]
