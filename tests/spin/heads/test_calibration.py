"""Temperature, calibration error, thresholds and abstention, against grids and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss as sklearn_log_loss

from spin.errors import UserError
from spin.heads.calibration import calibration_error, calibration_error_limit, fit_temperature, log_loss
from spin.heads.decision import Decision
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import DecisionSettings

TWO, THREE = LabelSpace(("a", "b")), LabelSpace(("a", "b", "c"))
LISTS = LabelSpace(("a", "b", "c"), multilabel=True)
tasks = st.sampled_from([TWO, THREE, LISTS])


def drawn(label_space: LabelSpace, seed: int, n: int, heat: float = 1.0) -> tuple[NDArray[np.floating], Targets]:
    """Logits, and targets drawn from them: at a heat of 1 they mean what they say, above they say too much."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, len(label_space))) * 2
    if label_space.multilabel:
        return (heat * logits).astype(np.float32), draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return (heat * logits).astype(np.float32), (logits + draw.gumbel(size=logits.shape)).argmax(1)


@settings(max_examples=60, deadline=None)
@given(tasks, st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.1, 1.0, 3.0]))
def test_log_loss_is_that_of_scikit_learn(label_space: LabelSpace, seed: int, n: int, heat: float) -> None:
    """Of one class a document, and summed over the classes of a list."""
    logits, y = drawn(label_space, seed, n, heat)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    if label_space.multilabel:
        clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
        expected = sum(sklearn_log_loss(y[:, k], clipped[:, k], labels=[0, 1]) for k in range(3))
    else:
        expected = sklearn_log_loss(y, probabilities, labels=range(len(label_space)))
    assert log_loss(logits.astype(np.float64), y, label_space) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("label_space", [TWO, THREE, LISTS], ids=["two", "three", "lists"])
@pytest.mark.parametrize("heat", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_best_of_a_grid(label_space: LabelSpace, heat: float) -> None:
    """None of a fine grid has a smaller log loss, and it undoes the heat that logits were given."""
    logits, y = drawn(label_space, 0, 4000, heat)
    found = fit_temperature(logits, y, label_space)
    grid = np.geomspace(1 / 20, 20, 1001)
    losses = [log_loss(logits.astype(np.float64) / t, y, label_space) for t in grid]
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    assert log_loss(logits.astype(np.float64) / found, y, label_space) <= min(losses) + 1e-6
    assert found == pytest.approx(heat, rel=0.15)


def test_a_temperature_has_bounds() -> None:
    """Where every answer is right it stays above a twentieth, where they say nothing below twenty-one."""
    y = np.arange(60) % 3
    right = np.eye(3)[y].astype(np.float32)
    assert 1 / 21 < fit_temperature(right, y, THREE) < 0.06
    assert 15 < fit_temperature(right * 9, (y + 1) % 3, THREE) < 21


@pytest.mark.parametrize("label_space", [TWO, LISTS], ids=["two", "lists"])
@pytest.mark.parametrize("n", [50, 2000])
def test_the_error_by_chance_is_what_right_probabilities_show(label_space: LabelSpace, n: int) -> None:
    """Passed by about one in twenty of targets drawn from them; smaller on more documents; 0 where all is sure."""
    logits, _ = drawn(label_space, 0, n)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    limit = calibration_error_limit(probabilities, label_space, 0.05, 0)
    draw, errors = np.random.default_rng(1), []
    for _ in range(200):
        y = (
            draw.random(probabilities.shape) < probabilities
            if label_space.multilabel
            else (draw.random(n) < probabilities[:, 1]).astype(int)
        )
        errors.append(calibration_error(probabilities, y, label_space))
    assert 0.01 <= np.mean(np.array(errors) > limit) <= 0.12
    assert calibration_error_limit(np.tile(probabilities, (9, 1)), label_space, 0.05, 0) < limit / 2
    assert calibration_error_limit(np.eye(len(label_space))[[0, 1] * 20], label_space, 0.05, 0) == 0


@settings(max_examples=100, deadline=None)
@given(tasks, st.integers(0, 1000), st.integers(0, 40), st.sampled_from([0.1, 1.0, 30.0]))
def test_calibration_error_equals_a_plain_loop(label_space: LabelSpace, seed: int, n: int, heat: float) -> None:
    """Fifteen bins of equal width, one document (or one class of one document) after another."""
    logits, y = drawn(label_space, seed, n, heat)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row in range(n):
        pairs = [(float(probabilities[row].max()), probabilities[row].argmax() == y[row])]
        if label_space.multilabel:
            pairs = [(float(p), bool(has)) for p, has in zip(probabilities[row], y[row], strict=True)]
        for sure, right in pairs:
            bins[min(int(sure * 15), 14)].append((sure, right))
    count = sum(map(len, bins))
    expected = sum(
        len(of) / count * abs(sum(right for _, right in of) / len(of) - sum(sure for sure, _ in of) / len(of))
        for of in bins
        if of
    )
    assert calibration_error(probabilities, y, label_space) == pytest.approx(expected, abs=1e-9)


def test_what_means_what_it_says_has_no_error() -> None:
    """Calibrated answers err by little, heated ones by much, certain and right ones not at all."""
    for label_space in (TWO, THREE, LISTS):
        logits, y = drawn(label_space, 1, 20_000)
        assert calibration_error(label_space.probabilities(logits), y, label_space) < 0.02
        assert calibration_error(label_space.probabilities(logits * 4), y, label_space) > 0.08
        assert calibration_error(label_space.indicator(y).astype(float), y, label_space) == 0


# Decisions


def decide(label_space: LabelSpace, probabilities: list[list[float]], **given: object) -> list[object]:
    """Labels, None where there is none."""
    decision = Decision.of(label_space, DecisionSettings(**given))  # type: ignore[arg-type]
    y, near = decision.decide(np.array(probabilities))
    return [None if close else name for name, close in zip(label_space.names(y), near, strict=True)]


@settings(max_examples=100, deadline=None)
@given(tasks, st.integers(0, 1000))
def test_without_thresholds_the_largest_probability_wins(label_space: LabelSpace, seed: int) -> None:
    """Or in a list each of a half and more; every document gets an answer."""
    logits, _ = drawn(label_space, seed, 20)
    y, near = Decision.of(label_space, DecisionSettings()).decide(label_space.probabilities(logits))
    assert not near.any()
    np.testing.assert_array_equal(y, label_space.predict(logits))


@settings(max_examples=100, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.001, 0.999))
def test_of_two_classes_the_second_is_given_above_its_threshold(t: float, p: float) -> None:
    """Named by the one class's threshold or by the other's."""
    if abs(p - t) < 1e-6:
        return
    expected = ["b" if p > t else "a"]
    assert decide(TWO, [[1 - p, p]], thresholds={"b": t}) == expected
    assert decide(TWO, [[1 - p, p]], thresholds={"a": 1 - t}) == expected


def test_a_class_that_needs_more_wins_less_often() -> None:
    """Probabilities are divided by the thresholds; what is left below 1 is shared by the others."""
    probabilities = [[0.6, 0.3, 0.1], [0.85, 0.1, 0.05], [0.2, 0.2, 0.6]]
    assert decide(THREE, probabilities) == ["a", "a", "c"]
    assert decide(THREE, probabilities, thresholds={"a": 0.8}) == ["b", "a", "c"]
    assert Decision.of(THREE, DecisionSettings(thresholds={"a": 0.8})).thresholds.tolist() == pytest.approx(
        [0.8, 0.1, 0.1]
    )
    given = {"a": 0.8, "b": 0.7, "c": 0.9}  # all named: they need not sum to anything
    assert decide(THREE, probabilities, thresholds=given) == ["a", "a", "c"]


def test_each_class_of_a_list_has_a_threshold_of_its_own() -> None:
    """A half by default, given from the threshold on."""
    probabilities = [[0.5, 0.4, 0.9], [0.2, 0.2, 0.2], [0.95, 0.3, 0.49]]
    assert decide(LISTS, probabilities) == [["a", "c"], [], ["a"]]
    assert decide(LISTS, probabilities, thresholds={"a": 0.9, "b": 0.3}) == [["b", "c"], [], ["a", "b"]]


def test_near_a_border_no_label_is_given() -> None:
    """One class's odds lead by less than the band, or any class of a list lies within it of its threshold."""
    assert decide(TWO, [[0.55, 0.45], [0.4, 0.6], [0.9, 0.1]], abstain=0.15) == [None, "b", "a"]
    assert decide(THREE, [[0.5, 0.4, 0.1], [0.5, 0.25, 0.25]], abstain=0.2) == [None, "a"]
    # the border is where the thresholds put it: odds of 8/4 and 2/6, shares of 0.857 and 0.143
    assert decide(TWO, [[0.8, 0.2], [0.4, 0.6]], thresholds={"a": 0.4}, abstain=0.2) == ["a", None]
    assert decide(LISTS, [[0.45, 0.1, 0.9], [0.3, 0.1, 0.9]], abstain=0.1) == [None, ["c"]]
    assert decide(LISTS, [[0.45, 0.1, 0.9], [0.75, 0.1, 0.9]], thresholds={"a": 0.8}, abstain=0.1) == [["c"], None]


@pytest.mark.parametrize(
    ("label_space", "thresholds", "said"),
    [
        (THREE, {"d": 0.5}, "decision.thresholds: the model has no class 'd'; it has a, b, c"),
        (LISTS, {"a": 0.5, "zz": 0.1}, "the model has no class 'zz'"),
        (THREE, {"a": 0.5, "b": 0.5}, "they sum to 1; leave something below 1 for the others"),
        (THREE, {"a": 0.7, "b": 0.8}, "they sum to 1.5; leave something"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(
    label_space: LabelSpace, thresholds: dict[str, float], said: str
) -> None:
    """A class that is not there, or nothing left for the others; lists may ask for anything."""
    with pytest.raises(UserError, match=said):
        Decision.of(label_space, DecisionSettings(thresholds=thresholds))
    assert Decision.of(LISTS, DecisionSettings(thresholds={"a": 0.9, "b": 0.8})).thresholds.tolist() == [0.9, 0.8, 0.5]
