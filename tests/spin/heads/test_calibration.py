"""Temperature, biases, calibration error, thresholds and abstention, against grids and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import log_loss as sklearn_log_loss

import spin.heads.calibration
from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.heads.calibration import (
    calibration_error,
    calibration_error_limit,
    fit_temperature,
    log_loss,
)
from spin.labels.label_space import LabelSpace, Targets
from spin.settings import DecisionSettings

BINARY, MULTICLASS = LabelSpace(("a", "b")), LabelSpace(("a", "b", "c"))
MULTILABEL = LabelSpace(("a", "b", "c"), multilabel=True)
label_spaces = st.sampled_from([BINARY, MULTICLASS, MULTILABEL])


def draw_logits(
    label_space: LabelSpace, seed: int, n: int, overconfidence: float = 1.0
) -> tuple[NDArray[np.floating], Targets]:
    """Logits and targets drawn from them. They are calibrated at 1, overconfident above and underconfident below."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, len(label_space))) * 2
    if label_space.multilabel:
        return (overconfidence * logits).astype(np.float32), draw.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return (overconfidence * logits).astype(np.float32), (logits + draw.gumbel(size=logits.shape)).argmax(1)


@settings(max_examples=60, deadline=None)
@given(label_spaces, st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.1, 1.0, 3.0]))
def test_log_loss_equals_that_of_scikit_learn(
    label_space: LabelSpace, seed: int, n: int, overconfidence: float
) -> None:
    """Summed over the classes in a multi-label task."""
    logits, y = draw_logits(label_space, seed, n, overconfidence)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    if label_space.multilabel:
        clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
        expected = sum(sklearn_log_loss(y[:, k], clipped[:, k], labels=[0, 1]) for k in range(3))
    else:
        expected = sklearn_log_loss(y, probabilities, labels=range(len(label_space)))
    assert log_loss(logits.astype(np.float64), y, label_space) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("label_space", [BINARY, MULTICLASS, MULTILABEL], ids=["binary", "multi-class", "multi-label"])
@pytest.mark.parametrize("overconfidence", [0.3, 1.0, 4.0])
def test_the_temperature_has_the_smallest_log_loss_of_a_grid(label_space: LabelSpace, overconfidence: float) -> None:
    """It also recovers the factor by which the logits were overconfident."""
    logits, y = draw_logits(label_space, 0, 4000, overconfidence)
    temperature = fit_temperature(logits, y, label_space)
    grid = np.geomspace(1 / 20, 20, 1001)
    losses = [log_loss(logits.astype(np.float64) / t, y, label_space) for t in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    assert log_loss(logits.astype(np.float64) / temperature, y, label_space) <= min(losses) + 1e-6
    assert temperature == pytest.approx(overconfidence, rel=0.15)


def test_the_temperature_stays_at_most_twenty() -> None:
    """It stays bounded where every prediction is wrong."""
    y = np.arange(60) % 3
    wrong_logits = 9 * np.eye(3)[(y + 1) % 3].astype(np.float32)
    assert 15 < fit_temperature(wrong_logits, y, MULTICLASS) < 21


@pytest.mark.parametrize("label_space", [BINARY, MULTICLASS, MULTILABEL], ids=["binary", "multi-class", "multi-label"])
def test_held_out_documents_without_an_error_do_not_make_all_others_certain(label_space: LabelSpace) -> None:
    """Of 60 documents none is wrong; then about one in 60 others may be (Laplace's rule of succession)."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, len(label_space), 60)
    signs = 2 * label_space.indicator(y) - 1.0
    logits = signs * draw.uniform(0.5, 2, (60, 1))
    targets = signs > 0 if label_space.multilabel else y
    probabilities = label_space.probabilities(logits / fit_temperature(logits, targets, label_space))
    given = np.where(signs > 0, probabilities, 1 - probabilities) if label_space.multilabel else probabilities.max(1)
    assert 1 / 150 < 1 - given.mean() < 1 / 40
    assert given.max() < 0.9999


# Calibration error


@pytest.mark.parametrize("label_space", [BINARY, MULTILABEL], ids=["binary", "multi-label"])
@pytest.mark.parametrize("n", [50, 2000])
def test_the_calibration_error_limit_holds_for_calibrated_probabilities(label_space: LabelSpace, n: int) -> None:
    """About one in twenty sets of targets drawn from the probabilities exceeds it.

    It shrinks with more documents and is 0 for certain predictions.
    """
    logits, _ = draw_logits(label_space, 0, n)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    limit = calibration_error_limit(probabilities, label_space, 0.05)
    draw, errors = np.random.default_rng(1), []
    for _ in range(200):
        y = (
            draw.random(probabilities.shape) < probabilities
            if label_space.multilabel
            else (draw.random(n) < probabilities[:, 1]).astype(int)
        )
        errors.append(calibration_error(probabilities, y, label_space))
    assert 0.01 <= np.mean(np.array(errors) > limit) <= 0.12
    assert calibration_error_limit(np.tile(probabilities, (9, 1)), label_space, 0.05) < limit / 2
    assert calibration_error_limit(np.eye(len(label_space))[[0, 1] * 20], label_space, 0.05) == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_calibration_error_limit_holds_for_groups_that_are_right_or_wrong_together(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if documents stood for themselves, exact probabilities of groups of five exceed it in most sets."""
    monkeypatch.setattr(spin.heads.calibration, "_DRAWS", 500)
    draw, exceeded = np.random.default_rng(0), np.zeros(2, int)
    groups = np.arange(600, dtype=np.uint64) // size
    for _ in range(100):
        p = np.repeat(draw.uniform(0.5, 1, 600 // size), size)
        y = np.repeat(draw.random(600 // size), size) < p
        probabilities = np.stack([1 - p, p], axis=1)
        error = calibration_error(probabilities, y.astype(int), BINARY)
        limits = [
            calibration_error_limit(probabilities, BINARY),
            calibration_error_limit(probabilities, BINARY, y=y.astype(int), groups=groups),
        ]
        exceeded += error > np.array(limits)
    assert exceeded[1] <= 15, exceeded
    assert size == 1 or exceeded[0] > 70, exceeded
    wrong = calibration_error_limit(probabilities, BINARY, y=1 - y.astype(int), groups=groups)
    assert wrong < calibration_error(probabilities, 1 - y.astype(int), BINARY), "groups hide no gross error"


def test_classes_that_no_document_has_do_not_hide_the_error_of_the_given_labels() -> None:
    """A hundred classes, of which each document is given one, with probability 0.9, and half of these are wrong."""
    label_space = LabelSpace(tuple(f"class {k}" for k in range(100)), multilabel=True)
    draw = np.random.default_rng(0)
    given = label_space.indicator(draw.integers(0, 100, 500))
    y = given & (draw.random((500, 1)) < 0.5)
    probabilities = np.where(given, 0.9, 0.001)
    assert calibration_error(probabilities, y, label_space) == pytest.approx(0.4, abs=0.05)


@settings(max_examples=100, deadline=None)
@given(label_spaces, st.integers(0, 1000), st.integers(0, 40), st.sampled_from([0.1, 1.0, 30.0]))
def test_calibration_error_equals_a_plain_loop(
    label_space: LabelSpace, seed: int, n: int, overconfidence: float
) -> None:
    """Fifteen bins of equal width over documents, or over all predicted classes in a multi-label task."""
    logits, y = draw_logits(label_space, seed, n, overconfidence)
    probabilities = label_space.probabilities(logits.astype(np.float64))
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row in range(n):
        outcomes = [(float(probabilities[row].max()), probabilities[row].argmax() == y[row])]
        if label_space.multilabel:
            pairs = zip(probabilities[row], y[row], strict=True)
            outcomes = [(float(p), bool(has)) for p, has in pairs if p >= 0.5]
        for confidence, correct in outcomes:
            bins[min(int(confidence * 15), 14)].append((confidence, correct))
    count = sum(map(len, bins))
    expected = sum(
        len(members)
        / count
        * abs(
            sum(correct for _, correct in members) / len(members)
            - sum(confidence for confidence, _ in members) / len(members)
        )
        for members in bins
        if members
    )
    assert calibration_error(probabilities, y, label_space) == pytest.approx(expected, abs=1e-9)


def test_calibrated_probabilities_have_a_small_error() -> None:
    """Overconfident ones have a large error, and certain correct ones none."""
    for label_space in (BINARY, MULTICLASS, MULTILABEL):
        logits, y = draw_logits(label_space, 1, 20_000)
        assert calibration_error(label_space.probabilities(logits), y, label_space) < 0.02
        assert calibration_error(label_space.probabilities(logits * 4), y, label_space) > 0.08
        assert calibration_error(label_space.indicator(y).astype(float), y, label_space) == 0


# Labels from probabilities


def decide_labels(
    label_space: LabelSpace, probabilities: list[list[float]], **decision_settings: object
) -> list[object]:
    """The label of each document, None where the decision abstains."""
    decision = Decision.of(label_space, DecisionSettings(**decision_settings))  # type: ignore[arg-type]
    y, abstained = decision.decide(np.array(probabilities))
    return [None if no_label else name for name, no_label in zip(label_space.names(y), abstained, strict=True)]


@settings(max_examples=100, deadline=None)
@given(label_spaces, st.integers(0, 1000))
def test_without_thresholds_the_largest_probability_wins(label_space: LabelSpace, seed: int) -> None:
    """In a multi-label task, every class of at least one half is predicted; no document is left without a decision."""
    logits, _ = draw_logits(label_space, seed, 20)
    y, abstained = Decision.of(label_space, DecisionSettings()).decide(label_space.probabilities(logits))
    assert not abstained.any()
    np.testing.assert_array_equal(y, label_space.predict(logits))


@settings(max_examples=100, deadline=None)
@given(st.floats(0.02, 0.98), st.floats(0.001, 0.999))
def test_a_binary_threshold_applies_to_either_class(t: float, p: float) -> None:
    """The threshold t of one class is the threshold 1 - t of the other."""
    if abs(p - t) < 1e-6:
        return
    expected = ["b" if p > t else "a"]
    assert decide_labels(BINARY, [[1 - p, p]], thresholds={"b": t}) == expected
    assert decide_labels(BINARY, [[1 - p, p]], thresholds={"a": 1 - t}) == expected


def test_a_class_with_a_higher_threshold_is_predicted_less_often() -> None:
    """Probabilities are divided by the thresholds.

    Classes without a threshold share what the given ones leave below 1.
    """
    probabilities = [[0.6, 0.3, 0.1], [0.85, 0.1, 0.05], [0.2, 0.2, 0.6]]
    assert decide_labels(MULTICLASS, probabilities) == ["a", "a", "c"]
    assert decide_labels(MULTICLASS, probabilities, thresholds={"a": 0.8}) == ["b", "a", "c"]
    assert Decision.of(MULTICLASS, DecisionSettings(thresholds={"a": 0.8})).thresholds.tolist() == pytest.approx(
        [0.8, 0.1, 0.1]
    )
    thresholds = {"a": 0.8, "b": 0.7, "c": 0.9}  # with a threshold for every class the sum is free
    assert decide_labels(MULTICLASS, probabilities, thresholds=thresholds) == ["a", "a", "c"]


def test_each_class_of_a_multilabel_task_has_its_own_threshold() -> None:
    """One half by default; a class is predicted from its threshold on."""
    probabilities = [[0.5, 0.4, 0.9], [0.2, 0.2, 0.2], [0.95, 0.3, 0.49]]
    assert decide_labels(MULTILABEL, probabilities) == [["a", "c"], [], ["a"]]
    assert decide_labels(MULTILABEL, probabilities, thresholds={"a": 0.9, "b": 0.3}) == [["b", "c"], [], ["a", "b"]]


def test_the_decision_abstains_near_a_threshold() -> None:
    """The best class leads by less than the band.

    In a multi-label task, some class lies within the band of its threshold.
    """
    assert decide_labels(BINARY, [[0.55, 0.45], [0.4, 0.6], [0.9, 0.1]], abstain=0.15) == [None, "b", "a"]
    assert decide_labels(MULTICLASS, [[0.5, 0.4, 0.1], [0.5, 0.25, 0.25]], abstain=0.2) == [None, "a"]
    # thresholds move the border: odds of 0.8/0.4 and 0.2/0.6 are shares of 0.857 and 0.143
    assert decide_labels(BINARY, [[0.8, 0.2], [0.4, 0.6]], thresholds={"a": 0.4}, abstain=0.2) == ["a", None]
    assert decide_labels(MULTILABEL, [[0.45, 0.1, 0.9], [0.3, 0.1, 0.9]], abstain=0.1) == [None, ["c"]]


def test_a_distance_that_no_probability_of_a_class_has_is_refused() -> None:
    """A night would publish no label: 0.6 is a lead that a single class may have, and no distance from one half."""
    Decision.of(MULTICLASS, DecisionSettings(abstain=0.6))
    with pytest.raises(UserError, match="no document would get a label.* expected less than 0.5 for"):
        Decision.of(MULTILABEL, DecisionSettings(abstain=0.5, thresholds={"a": 0.2}))
    thresholds = {"a": 0.2, "b": 0.7, "c": 0.3}
    with pytest.raises(UserError, match="expected less than 0.7 for"):
        Decision.of(MULTILABEL, DecisionSettings(abstain=0.7, thresholds=thresholds))
    assert decide_labels(MULTILABEL, [[0.9, 0.001, 0.999]], thresholds=thresholds, abstain=0.69) == [["a", "c"]]
    assert decide_labels(MULTILABEL, [[0.45, 0.1, 0.9], [0.75, 0.1, 0.9]], thresholds={"a": 0.8}, abstain=0.1) == [
        ["c"],
        None,
    ]


@pytest.mark.parametrize(
    ("label_space", "thresholds", "message"),
    [
        (MULTICLASS, {"d": 0.5}, "decision.thresholds: the model has no class 'd'; it has a, b, c"),
        (MULTILABEL, {"a": 0.5, "zz": 0.1}, "the model has no class 'zz'"),
        (MULTICLASS, {"a": 0.5, "b": 0.5}, "they sum to 1; leave something below 1 for the others"),
        (MULTICLASS, {"a": 0.7, "b": 0.8}, "they sum to 1.5; leave something"),
    ],
)
def test_impossible_thresholds_are_refused(label_space: LabelSpace, thresholds: dict[str, float], message: str) -> None:
    """An unknown class, or nothing left for the classes without a threshold. In a multi-label task the sum is free."""
    with pytest.raises(UserError, match=message):
        Decision.of(label_space, DecisionSettings(thresholds=thresholds))
    assert Decision.of(MULTILABEL, DecisionSettings(thresholds={"a": 0.9, "b": 0.8})).thresholds.tolist() == [
        0.9,
        0.8,
        0.5,
    ]


CHOSEN = {"a": 0.2, "b": 0.6, "c": 0.2}


def test_chosen_thresholds_are_the_defaults_of_the_settings() -> None:
    """Without thresholds in the settings the chosen ones decide; the abstention band is that of the settings."""
    for label_space in (MULTICLASS, MULTILABEL):
        decision = Decision.of(label_space, DecisionSettings(abstain=0.1), CHOSEN)
        assert decision.thresholds == pytest.approx([0.2, 0.6, 0.2])
        assert decision.abstain == 0.1
    y, _ = Decision.of(MULTICLASS, DecisionSettings(), CHOSEN).decide(np.array([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]]))
    assert y.tolist() == [2, 1]


def test_a_threshold_of_the_settings_replaces_the_chosen_one_of_its_class() -> None:
    """The others keep theirs in a multi-label task, else they keep their proportion within what is left below 1."""
    settings = DecisionSettings(thresholds={"a": 0.6})
    assert Decision.of(MULTILABEL, settings, CHOSEN).thresholds == pytest.approx([0.6, 0.6, 0.2])
    assert Decision.of(MULTICLASS, settings, CHOSEN).thresholds == pytest.approx([0.6, 0.3, 0.1])
    every = DecisionSettings(thresholds={"a": 0.7, "b": 0.7, "c": 0.9})
    assert Decision.of(MULTICLASS, every, CHOSEN).thresholds == pytest.approx([0.7, 0.7, 0.9])
    with pytest.raises(UserError, match="the model has no class 'd'"):
        Decision.of(MULTICLASS, DecisionSettings(thresholds={"d": 0.5}), CHOSEN)
