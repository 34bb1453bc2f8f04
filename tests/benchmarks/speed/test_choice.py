"""The choice among our settings by validation."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.speed.choice import Validation, best_setting, chosen_settings, distinct, fastest_reaching, frontier
from benchmarks.speed.contender import OurSetting

FULL = OurSetting("openvino", "bfloat16")
SMALL_LOSS = OurSetting("openvino", "bfloat16", max_loss=0.005)
LARGE_LOSS = OurSetting("openvino", "bfloat16", max_loss=0.02)
INT8 = OurSetting("openvino", "int8", max_loss=0.02)
TRIED = {
    FULL: Validation(0.760, 4.0),
    SMALL_LOSS: Validation(0.758, 2.0),
    LARGE_LOSS: Validation(0.745, 1.5),
    INT8: Validation(0.745, 1.0),
}


def test_the_fastest_setting_that_reaches_a_score_is_chosen() -> None:
    """A score that is just reached counts, and no setting stands for one that none reaches."""
    assert fastest_reaching(TRIED, 0.745) == INT8
    assert fastest_reaching(TRIED, 0.7451) == SMALL_LOSS
    assert fastest_reaching(TRIED, 0.76) == FULL
    assert fastest_reaching(TRIED, 0.7601) is None
    assert fastest_reaching({}, 0.5) is None


def test_a_higher_target_never_gives_a_faster_setting() -> None:
    chosen = [fastest_reaching(TRIED, target) for target in (0.7, 0.745, 0.75, 0.758, 0.759, 0.76)]
    seconds = [TRIED[setting].seconds for setting in chosen if setting is not None]
    assert len(seconds) == 6
    assert all(first <= second for first, second in pairwise(seconds))


def test_every_chosen_setting_is_named_once_beside_the_best() -> None:
    assert chosen_settings(TRIED, [0.7, 0.745, 0.9, 0.75]) == [INT8, SMALL_LOSS, FULL]
    assert chosen_settings({}, [0.7]) == []
    slow = {OurSetting("torch", "float32"): Validation(0.76, 9.0)}
    assert best_setting(slow | TRIED) == FULL
    assert best_setting({}) is None


def test_settings_with_one_classifier_are_tried_once() -> None:
    """A larger loss may give the same exits."""
    fitted = {FULL: "a", SMALL_LOSS: "b", LARGE_LOSS: "b", INT8: "c"}
    assert distinct(list(fitted), fitted) == [FULL, SMALL_LOSS, INT8]


def test_the_frontier_has_what_nothing_beats_in_score_and_speed() -> None:
    """Of equal scores the fastest."""
    assert frontier(TRIED) == [FULL, SMALL_LOSS, INT8]
    assert frontier({}) == []
    worse = {OurSetting("torch", "float32"): Validation(0.759, 5.0)}
    assert frontier(worse | TRIED) == frontier(TRIED)
