"""Thresholds of early exits: they keep the allowed loss, on new documents too, and stop what is worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from spin.arrays import Floats
from spin.fitted.decision import Decision
from spin.fitted.early_exit import DISABLED, confidence, find_stops
from spin.integrate.exit_thresholds import (
    THRESHOLDS,
    ExitOffer,
    ExpectedLoss,
    choose_exit_thresholds,
    disable_costly,
    mean_cost,
    offered_depths,
)
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.settings import CascadeSettings, DecisionSettings

MULTICLASS = LabelSpace(("a", "b", "c"))
MULTILABEL = LabelSpace(("a", "b", "c"), multilabel=True)
ARGMAX = Decision.of(MULTICLASS, DecisionSettings())


def draw_exit_logits(seed: int, n: int = 300, noise: tuple[float, ...] = (2.0, 1.0, 0.3)) -> tuple[Any, ...]:
    """Logits of exits that get better with depth, those of full depth, all calibrated, and the true classes."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 3, n)
    # of evidence with unit means and this noise, the log odds are the evidence over the variance
    *exits, final = ((np.eye(3)[y] + draw.normal(0, sd, (n, 3))) / sd**2 for sd in noise)
    return exits, final, y


def choose(
    exits: Sequence[Floats], *args: Any, costs: Sequence[float] = (0.3, 0.6, 1.0), **options: Any
) -> list[float]:
    """Choose thresholds for exits of these costs; passing one costs 0.03."""
    offers = [ExitOffer(logits, cost, 0.03) for logits, cost in zip(exits, costs, strict=False)]
    return choose_exit_thresholds(offers, *args, cost=costs[-1], **options)


def lose(exits: Any, final: Any, y: Any, thresholds: Any) -> tuple[float, float]:
    """Lost accuracy and the accuracy that full depth expects to lose, one document after another.

    To the expected loss 1.73 standard errors are added, from leaving out every twentieth document, and one document.
    """
    probabilities = [MULTICLASS.probabilities(np.asarray(logits)) for logits in (*exits, final)]
    correct, correct_at_full_depth, terms = 0, 0, []
    for row in range(len(y)):
        leads = [np.diff(np.sort(of_exit[row])[-2:])[0] for of_exit in probabilities]
        exit_index = next((i for i, t in enumerate(thresholds) if leads[i] >= t), len(exits))
        full, predicted = probabilities[-1][row].argmax(), probabilities[exit_index][row].argmax()
        correct, correct_at_full_depth = correct + (predicted == y[row]), correct_at_full_depth + (full == y[row])
        terms.append(probabilities[-1][row][full] - probabilities[-1][row][predicted])
    without = [np.mean([t for row, t in enumerate(terms) if row % 20 != part]) for part in range(20)]
    expected = float(np.mean(terms) + 1.73 * np.sqrt(19 * np.var(without)) + 1 / len(y))
    return (correct_at_full_depth - correct) / len(y), expected


@pytest.mark.parametrize("max_loss", [0.02, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_losses_are_kept_and_the_next_threshold_would_not_keep_them(seed: int, max_loss: float) -> None:
    """By a plain loop; and every threshold before keeps them too."""
    exits, final, y = draw_exit_logits(seed, noise=(0.7, 0.6, 0.5), n=600)
    thresholds = choose(exits, final, y, ARGMAX, metric="accuracy", max_loss=max_loss)
    offers = [ExitOffer(logits, cost, 0.03) for logits, cost in zip(exits, (0.3, 0.6), strict=True)]
    confidences = np.stack([confidence(ARGMAX, MULTICLASS.probabilities(logits)) for logits in exits])
    sequence = [disable_costly(each, offers, confidences, 1.0) for each in THRESHOLDS]
    losses = (max(lose(exits, final, y, each)) for each in sequence)
    kept = next(at for at, lost in enumerate(losses) if lost > max_loss)
    assert kept > 0
    assert thresholds == sequence[kept - 1]
    assert mean_cost(thresholds, offers, confidences, 1.0) < 1


def test_the_first_threshold_that_fails_ends_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower one may pass by luck, and would stop more documents."""
    exits, final, y = draw_exit_logits(0, noise=(0.7, 0.6, 0.5))
    bounds = iter([0.0, 0.0, 1.0, *[0.0] * 100])
    monkeypatch.setattr(ExpectedLoss, "__call__", lambda *_: next(bounds))
    offers = [ExitOffer(logits, cost, 0.0) for logits, cost in zip(exits, (0.3, 0.6), strict=True)]
    chosen = choose_exit_thresholds(offers, final, y, ARGMAX, metric="accuracy", cost=1.0, max_loss=0.9)
    confidences = np.stack([confidence(ARGMAX, MULTICLASS.probabilities(logits)) for logits in exits])
    assert chosen == disable_costly(THRESHOLDS[1], offers, confidences, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("max_loss", [0.005, 0.02])
def test_the_promise_is_kept_on_new_documents(max_loss: float) -> None:
    """In nine of ten trainings on 1,000 documents, and where more may be lost more is saved."""
    kept, costs = [], []
    for seed in range(60):
        exits, final, y = draw_exit_logits(seed, 1_000, noise=(0.7, 0.6, 0.5))
        thresholds = choose(exits, final, y, ARGMAX, metric="accuracy", max_loss=max_loss)
        exits, final, y = draw_exit_logits(1000 + seed, 50_000, noise=(0.7, 0.6, 0.5))
        stops = find_stops(exits, thresholds, ARGMAX, len(y))
        given = np.stack([*exits, final])[stops, np.arange(len(y))].argmax(1)
        kept.append((final.argmax(1) == y).mean() - (given == y).mean() <= max_loss)
        costs.append(np.array([0.3, 0.6, 1.0])[stops].mean())
    assert np.mean(kept) >= 0.9
    assert np.mean(costs) < {0.005: 1, 0.02: 0.92}[max_loss]


@pytest.mark.parametrize(("metric", "most"), [("macro_f1", 0.0025), ("balanced_accuracy", 0.004)])
def test_a_rare_class_does_not_pay_for_the_exits(metric: str, most: float) -> None:
    """One document in fifty is of a class that the exit hardly sees; a loss of 0.002 is allowed.

    The loss on new documents is 0.006 if only the measured loss and the expected loss of accuracy are limited.
    """
    losses = []
    for seed in range(20):
        exits, final, y = draw_rare_class(seed, 2_000)
        thresholds = choose(exits, final, y, ARGMAX, metric=metric, costs=(0.3, 1), max_loss=0.002)
        exits, final, y = draw_rare_class(100 + seed, 40_000)
        at = find_stops(exits, thresholds, ARGMAX, len(y))
        given = np.stack([*exits, final])[at, np.arange(len(y))].argmax(1)
        losses.append(score(metric, y, final.argmax(1)) - score(metric, y, given))
    assert np.mean(losses) <= most


def draw_rare_class(seed: int, n: int) -> tuple[Any, ...]:
    """Logits of an exit and of full depth, which are calibrated, and the classes, the last of which is rare."""
    draw = np.random.default_rng(seed)
    y = draw.choice(3, n, p=[0.49, 0.49, 0.02])
    evidence = 2.2 * np.eye(3)[y] + draw.normal(size=(n, 3))
    prior = np.log([0.49, 0.49, 0.02])
    final = 2.2 * evidence + prior
    early = np.where(np.arange(3) == 2, 0.6, 1.9) * (evidence + 0.4 * draw.normal(size=(n, 3))) + prior
    return [early], final, y


@pytest.mark.parametrize("label_space", [MULTICLASS, MULTILABEL], ids=["multi-class", "multi-label"])
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "balanced_accuracy"])
def test_the_expected_loss_is_the_mean_loss_over_drawn_labels(metric: str, label_space: LabelSpace) -> None:
    """Labels are drawn from the probabilities of full depth; at most 3 points are added to their mean loss."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(3_000, 3)) * 2
    decision = Decision.of(label_space, DecisionSettings())
    probabilities, given = label_space.probabilities(final), label_space.predict(final + draw.normal(size=final.shape))
    expected = ExpectedLoss(metric, decision, final)
    losses = []
    for _ in range(40):
        y = draw.random(final.shape) < probabilities
        if not label_space.multilabel:
            y = (final + draw.gumbel(size=final.shape)).argmax(1)
        losses.append(score(metric, y, label_space.predict(final)) - score(metric, y, given))
    error = expected(given) - np.mean(losses)
    assert 0 < error < 0.03
    assert 0 < expected(label_space.predict(final)) == expected.one_more < 0.002


def test_repeated_predictions_of_a_document_do_not_shrink_the_standard_error() -> None:
    """Each document is predicted twice, as by repeated cross-validation."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(510, 3)) * 2
    given = (final + draw.normal(size=final.shape)).argmax(1)
    twice = np.tile(np.arange(510), 2)
    once, as_one, as_two = (
        ExpectedLoss("macro_f1", ARGMAX, final[rows], documents)
        for rows, documents in ((np.arange(510), None), (twice, twice), (twice, None))
    )
    assert as_one(given[twice]) == pytest.approx(once(given))
    assert as_two(given[twice]) < once(given)


def test_exits_are_judged_by_the_labels_under_thresholds() -> None:
    """The threshold of a class moves the border; an exit that argmax would keep changes labels there."""
    draw = np.random.default_rng(0)
    final = draw.normal(size=(4_000, 3)) * 4
    y = (final + draw.gumbel(size=final.shape)).argmax(1)
    exits = [final / 2]  # the same argmax, too unsure
    strict = Decision.of(MULTICLASS, DecisionSettings(thresholds={"c": 0.9}))
    options: Any = {"metric": "accuracy", "costs": (0.3, 1), "max_loss": 0.002}
    for decision, lost in ((ARGMAX, 0.0), (strict, 0.002)):
        thresholds = choose(exits, final, y, decision, **options)
        at = find_stops(exits, thresholds, decision, len(y))
        given = np.stack([*exits, final])[at, np.arange(len(y))]
        full, early = (decision.decide(MULTICLASS.probabilities(logits))[0] for logits in (final, given))
        assert score("accuracy", y, full) - score("accuracy", y, early) <= lost + 1e-9
    by_argmax = choose(exits, final, y, ARGMAX, **options)
    assert thresholds != by_argmax, "or nothing was tested"


def test_exits_with_random_logits_are_disabled() -> None:
    exits, final, y = draw_exit_logits(0, noise=(0.1, 0.1))
    random_logits = [np.random.default_rng(1).normal(0, 5, final.shape)]
    assert len(exits) == 1
    assert choose(random_logits, final, y, ARGMAX, metric="macro_f1", costs=(0.3, 1), max_loss=0.0) == [DISABLED]


def test_an_exit_that_is_right_by_luck_is_disabled() -> None:
    """It is right only where full depth is certain and wrong. The metric gains, but the expected loss is too large."""
    y = np.zeros(100, np.int64)
    final = np.tile([0.0, 4.0, 0.0], (100, 1))
    lucky_exit = [np.tile([9.0, 0.0, 0.0], (100, 1))]
    assert score("accuracy", y, MULTICLASS.predict(lucky_exit[0])) == 1
    assert choose(lucky_exit, final, y, ARGMAX, metric="accuracy", costs=(0.3, 1), max_loss=0.1) == [DISABLED]


def test_an_exit_that_costs_more_than_it_saves_is_disabled() -> None:
    """One document of five stops there, and the others pay for passing it."""
    confidences = np.array([[0.1, 0.3, 0.5, 0.7, 0.9]])
    for passing, expected in ((0.1, 0.8), (0.2, DISABLED)):
        offers = [ExitOffer(np.zeros((5, 3)), 0.3, passing)]
        assert disable_costly(0.8, offers, confidences, 1.0) == [expected]
        assert mean_cost([0.8], offers, confidences, 1.0) == pytest.approx((0.3 + 4 * (1 + passing)) / 5)


@pytest.mark.parametrize(("depth", "expected"), [(6, [1, 2, 4]), (3, [1, 2]), (1, []), (30, [5, 10, 20])])
def test_offered_exits_lie_below_full_depth(depth: int, expected: list[int]) -> None:
    assert offered_depths(CascadeSettings().depths, depth) == expected
