"""Thresholds per class: which are tried, that they pay on new documents, and that luck alone rarely adopts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import spin.integrate.class_thresholds
from spin.arrays import Floats
from spin.fitted.decision import apply_thresholds
from spin.heads.calibration import calibration_error
from spin.heads.stack import fit_stack
from spin.integrate.class_thresholds import _half_best_f1, choose_class_thresholds, shared_thresholds
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score

MULTICLASS = LabelSpace(("a", "b", "c"))
MULTILABEL = LabelSpace(("a", "b", "c"), multilabel=True)
LABEL_SPACES = pytest.mark.parametrize("label_space", [MULTICLASS, MULTILABEL], ids=["multi-class", "multi-label"])
_MEANS = np.array([[0.0, 0.0], [1.6, 0.0], [2.4, 0.0]])
"""of the evidence of the classes a, b and c, which is normal"""
PLAIN = 0.5


def draw_documents(label_space: LabelSpace, seed: int, n: int, *, balanced: bool = False) -> tuple[Floats, Targets]:
    """Calibrated logits (n, 3) and targets of classes of shares 0.85, 0.1 and 0.05, in a multi-label task independent.

    Balanced logits take all classes for equally frequent, as a head that was fitted under balanced weights does.
    """
    draw, shares = np.random.default_rng(seed), np.array([0.85, 0.1, 0.05])
    if label_space.multilabel:
        y: Targets = draw.random((n, 3)) < shares
        return 2 * (2 * y - 1.0 + draw.normal(size=(n, 3))) + (not balanced) * np.log(shares / (1 - shares)), y
    y = draw.choice(3, n, p=shares)
    evidence = _MEANS[y] + draw.normal(size=(n, 2))
    densities = -np.square(evidence[:, None] - _MEANS).sum(2) / 2
    return densities + (not balanced) * np.log(shares), y


def choose(logits: Floats, y: Targets, label_space: LabelSpace, metric: str, **options: Any) -> Floats | None:
    return choose_class_thresholds(logits, y, label_space, metric=metric, **{"class_weights": "none", **options})


def calibrate(held_out: Floats, y: Targets, label_space: LabelSpace, logits: Floats) -> Floats:
    """Logits calibrated by held-out ones."""
    return fit_stack({"neurons": held_out}, y, label_space).logits({"neurons": logits})


def measure(label_space: LabelSpace, logits: Floats, y: Targets, metric: str, thresholds: Floats | None) -> float:
    """The metric of the labels under thresholds, None for one half or equal ones."""
    thresholds = np.full(len(label_space), PLAIN) if thresholds is None else thresholds
    return score(metric, y, apply_thresholds(label_space, label_space.probabilities(logits), thresholds))


@LABEL_SPACES
@pytest.mark.parametrize(("metric", "gain"), [("macro_f1", 0.02), ("balanced_accuracy", 0.1)])
def test_chosen_thresholds_pay_on_new_documents(label_space: LabelSpace, metric: str, gain: float) -> None:
    """Rare classes get smaller thresholds; for balanced accuracy they are the shares of the classes."""
    thresholds = choose(*draw_documents(label_space, 0, 3_000), label_space, metric)
    assert thresholds is not None
    logits, y = draw_documents(label_space, 1, 30_000)
    plain, chosen = (measure(label_space, logits, y, metric, each) for each in (None, thresholds))
    assert chosen > plain + gain
    assert thresholds[0] > thresholds[1] > thresholds[2]
    if metric == "balanced_accuracy":
        assert thresholds == pytest.approx([0.85, 0.1, 0.05], abs=0.02)


@LABEL_SPACES
def test_where_the_most_probable_class_is_right_no_thresholds_are_adopted(
    label_space: LabelSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other labels of calibrated probabilities are more accurate; without the guard luck adopts more.

    In a multi-label task accuracy is that of whole lists, whose classes are independent here.
    """

    def share_adopted() -> float:
        documents = (draw_documents(label_space, seed, 200) for seed in range(100))
        return float(np.mean([choose(*drawn, label_space, "accuracy") is not None for drawn in documents]))

    guarded = share_adopted()
    assert guarded <= 0.18
    monkeypatch.setattr(spin.integrate.class_thresholds, "_is_better", lambda *_: True)
    assert share_adopted() >= guarded + 0.05


@LABEL_SPACES
@pytest.mark.parametrize(("documents", "gain"), [(60, 0.009), (200, 0.018)])
def test_gains_that_few_documents_cannot_prove_are_taken(label_space: LabelSpace, documents: int, gain: float) -> None:
    """In the mean of sixty draws: demanding more than one standard error would take two thirds of them at the most."""
    logits, y = draw_documents(label_space, 9_999, 20_000)
    plain = measure(label_space, logits, y, "macro_f1", None)
    chosen = (choose(*draw_documents(label_space, seed, documents), label_space, "macro_f1") for seed in range(60))
    assert np.mean([measure(label_space, logits, y, "macro_f1", each) for each in chosen]) > plain + gain


@LABEL_SPACES
def test_biases_that_calibrate_balanced_weights_leave_the_labels_as_they_were(label_space: LabelSpace) -> None:
    """The rare classes keep their recall, and the probabilities are calibrated."""
    held_out = draw_documents(label_space, 0, 2_000, balanced=True)
    thresholds = choose(
        calibrate(*held_out, label_space, held_out[0]),
        held_out[1],
        label_space,
        "balanced_accuracy",
        class_weights="balanced",
    )
    assert thresholds is not None
    logits, y = draw_documents(label_space, 1, 20_000, balanced=True)
    calibrated = calibrate(*held_out, label_space, logits)
    probabilities = label_space.probabilities(calibrated)
    given = apply_thresholds(label_space, probabilities, thresholds)
    assert (given == label_space.predict(logits)).mean() > 0.97
    assert calibration_error(probabilities, y, label_space) < 0.02
    assert calibration_error(label_space.probabilities(logits), y, label_space) > 0.05
    plain = score("balanced_accuracy", y, label_space.predict(calibrated))
    assert score("balanced_accuracy", y, given) > plain + 0.1


@LABEL_SPACES
def test_few_documents_do_not_cost_balanced_weights_their_recall(label_space: LabelSpace) -> None:
    """The labels before calibration need not prove that they are better than the most probable class."""
    other, scores = draw_documents(label_space, 99, 10_000, balanced=True), []
    for seed in range(40):
        logits, y = draw_documents(label_space, seed, 100, balanced=True)
        calibrated, new = (calibrate(logits, y, label_space, each) for each in (logits, other[0]))
        thresholds = choose(calibrated, y, label_space, "balanced_accuracy", class_weights="balanced")
        scores.append(measure(label_space, new, other[1], "balanced_accuracy", thresholds))
    assert np.mean(scores) > score("balanced_accuracy", other[1], label_space.predict(other[0])) - 0.015


@LABEL_SPACES
def test_balanced_weights_do_not_keep_labels_that_cost_the_metric(label_space: LabelSpace) -> None:
    """By accuracy the most probable class is better than the labels before calibration, by far more than one error."""
    held_out = draw_documents(label_space, 0, 2_000, balanced=True)
    own = calibrate(*held_out, label_space, held_out[0])
    thresholds = choose(own, held_out[1], label_space, "accuracy", class_weights="balanced")
    logits, y = draw_documents(label_space, 1, 20_000, balanced=True)
    calibrated = calibrate(*held_out, label_space, logits)
    before, after = (
        score("accuracy", y, label_space.predict(logits)),
        score("accuracy", y, label_space.predict(calibrated)),
    )
    assert after > before + 0.05
    assert measure(label_space, calibrated, y, "accuracy", thresholds) > after - 0.005


@pytest.mark.slow
@LABEL_SPACES
def test_predictions_of_one_document_share_a_part(label_space: LabelSpace) -> None:
    """Documents that are predicted seven times, as by cross-validation, decide as they do once.

    Taken for different documents they make standard errors small, and luck adopts thresholds.
    """
    adopted: list[tuple[bool, ...]] = []
    for seed in range(60):
        logits, y = draw_documents(label_space, seed, 150)
        rows = np.repeat(np.arange(150), 7)
        draws = ((np.arange(150), None), (rows, rows), (rows, None))
        adopted.append(
            tuple(choose(logits[r], y[r], label_space, "accuracy", documents=d) is not None for r, d in draws)
        )
    once, as_one, as_many = np.mean(adopted, axis=0)
    assert as_one <= once + 0.05
    assert as_many > as_one + 0.05


def test_half_of_the_best_expected_f1_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.random((40, 3)) ** 2
    for k, actual in enumerate(_half_best_f1(probabilities)):
        best = 0.0
        for threshold in probabilities[:, k]:
            given: NDArray[np.bool_] = probabilities[:, k] >= threshold
            best = max(best, 2 * probabilities[given, k].sum() / (given.sum() + probabilities[:, k].sum()))
        assert actual == pytest.approx(best / 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("documents", "repeats"), [(1, 1), (19, 1), (4, 50)])
def test_fewer_documents_than_parts_show_nothing(documents: int, repeats: int) -> None:
    """The most probable class is always right, but the labels of balanced weights stand; with one for each part not."""

    def thresholds(rows: NDArray[np.int64]) -> Floats | None:
        logits, y = np.tile([0.0, 0.5, 0.0], (len(rows), 1)), np.ones(len(rows), np.int64)
        return choose(logits, y, MULTICLASS, "accuracy", class_weights="balanced", documents=rows)

    rows = np.repeat(np.arange(documents), repeats)
    shares = shared_thresholds(np.ones(len(rows), np.int64), MULTICLASS, 1.0)
    assert thresholds(rows) == pytest.approx(shares)
    assert thresholds(np.arange(20)) is None
