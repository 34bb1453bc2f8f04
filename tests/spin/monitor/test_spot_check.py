"""The accuracy of many labels by a few that were checked, over many draws of these."""

from __future__ import annotations

import numpy as np
import pytest

from spin.monitor.spot_check import Stratum, estimate_accuracy


def test_strata_count_by_their_documents() -> None:
    found = estimate_accuracy([Stratum(900, 30, 27), Stratum(100, 20, 10), Stratum(0, 0, 0)])
    assert found is not None
    assert found.value == pytest.approx(0.9 * 27 / 30 + 0.1 * 10 / 20)
    assert found.low < found.value < found.high


def test_there_is_no_estimate_where_a_part_was_not_checked() -> None:
    assert estimate_accuracy([Stratum(900, 30, 27), Stratum(100, 0, 0)]) is None
    assert estimate_accuracy([]) is None


def test_what_was_checked_whole_adds_nothing_to_the_interval() -> None:
    found = estimate_accuracy([Stratum(50, 50, 20)])
    assert found is not None
    assert found.low == found.value == found.high == 0.4
    few = estimate_accuracy([Stratum(1000, 20, 20)])
    assert few is not None
    assert few.low < 0.98  # although all that were checked are right


@pytest.mark.parametrize("accuracy", [0.9, 0.97, 0.99])
def test_the_interval_holds_near_all_right(accuracy: float) -> None:
    """Of 500 samples of 140 documents at least 92 %."""
    draw = np.random.default_rng(0)
    estimates = [estimate_accuracy([Stratum(100_000, 140, int(draw.binomial(140, accuracy)))]) for _ in range(500)]
    assert sum(each is not None and each.low <= accuracy <= each.high for each in estimates) >= 460


def test_the_true_accuracy_lies_in_the_interval() -> None:
    """Of 300 reviews of a night at least 90 %, and the estimates are right on average."""
    draw = np.random.default_rng(0)
    shares = {"uncertain": (60, 0.55), "disputed": (400, 0.7), "random": (9000, 0.93)}
    right = {name: draw.random(count) < share for name, (count, share) in shares.items()}
    true = np.concatenate(list(right.values())).mean()
    inside, values = 0, []
    for _ in range(300):
        strata = []
        for name, count in (("uncertain", 60), ("disputed", 40), ("random", 100)):
            drawn = draw.choice(right[name], count, replace=False)
            strata.append(Stratum(len(right[name]), count, int(drawn.sum())))
        found = estimate_accuracy(strata)
        assert found is not None
        inside += found.low <= true <= found.high
        values.append(found.value)
    assert inside >= 270
    assert np.mean(values) == pytest.approx(true, abs=0.005)
