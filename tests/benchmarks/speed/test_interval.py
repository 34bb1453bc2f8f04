"""Intervals, against scipy and against simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.speed.interval import score_difference, speed_ratio


def test_a_speed_ratio_has_the_t_interval_of_its_logarithms() -> None:
    """Noise that both share within a round cancels."""
    noise = np.array([1.0, 2.0, 0.5, 3.0])
    exact = speed_ratio((3 * noise).tolist(), noise.tolist())
    assert (exact.low, exact.estimate, exact.high) == pytest.approx((3, 3, 3))
    peer, ours = np.array([4.0, 4.4, 3.9, 4.2]), np.array([2.0, 2.1, 2.2, 1.9])
    logs = np.log(peer / ours)
    expected = stats.t.interval(0.9, 3, logs.mean(), stats.sem(logs))
    interval = speed_ratio(peer.tolist(), ours.tolist())
    assert np.log([interval.low, interval.high]) == pytest.approx(expected)
    assert interval.estimate == pytest.approx(stats.gmean(peer / ours))


def test_only_rounds_in_which_both_were_timed_are_compared() -> None:
    """A slow one left after the first rounds."""
    assert speed_ratio([6.0, 6.0], [2.0, 2.0, 1.0, 1.0]).estimate == pytest.approx(3)


def test_a_single_round_shows_nothing() -> None:
    interval = speed_ratio([6.0], [2.0])
    assert (interval.low, interval.high) == (0, np.inf)
    assert interval.estimate == pytest.approx(3)


@pytest.mark.slow
def test_a_lower_end_is_above_the_truth_in_one_of_twenty_runs() -> None:
    """The unfavourable end alone decides a verdict, so it should err with the probability of one tail."""
    draw = np.random.default_rng(0)
    ratios = np.exp(draw.normal(np.log(2), 0.05, (4000, 5)))
    above = np.mean([speed_ratio(ratio.tolist(), np.ones(5).tolist()).low > 2 for ratio in ratios])
    assert above == pytest.approx(0.05, abs=0.015)


def test_a_difference_of_scores_has_the_spread_of_disagreeing_documents() -> None:
    """Of 2,000 documents 100 are right in one alone and 40 in the other: for accuracy the deviation has a formula."""
    y = np.tile([0, 1], 1000)
    ours, other = y.copy(), y.copy()
    ours[:40], other[40:140] = 1 - y[:40], 1 - y[40:140]
    interval = score_difference(y, 0.98, ours, 0.95, other)
    deviation = np.sqrt(140 - 60**2 / 2000) / 2000
    assert interval.estimate == pytest.approx(0.03)
    assert interval.low == pytest.approx(0.03 - 1.645 * deviation, abs=0.002)
    assert interval.high == pytest.approx(0.03 + 1.645 * deviation, abs=0.002)
