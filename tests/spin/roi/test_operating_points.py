"""Costs at operating points equal those of plain loops, and intervals hold on documents that they have not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.labels.label_space import LabelSpace
from spin.roi.cost_interval import Interval, predict_interval
from spin.roi.error_costs import ErrorCosts
from spin.roi.operating_points import (
    BANDS,
    Operation,
    Outcome,
    Prices,
    best_point,
    weigh_points,
    with_interval,
)
from spin.settings import DecisionSettings

SPACE = LabelSpace(("ham", "scam", "spam"))
COSTS = ErrorCosts.of(SPACE, 0.4, {"spam": {"ham": 2.0}, "ham": {"spam": 5.0}})
PRICES = Prices(COSTS, review=0.25, cpu_hour=0.05)


def draw_operation(count: int, seed: int = 0) -> tuple[Operation, np.ndarray]:
    """Calibrated probabilities of documents at every band, and labels drawn from them."""
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet([0.6, 0.3, 0.4], size=count)
    y = (probabilities.cumsum(axis=1) < draw.random((count, 1))).sum(axis=1)
    outcomes = []
    for band in BANDS:
        given, abstains = Decision.of(SPACE, DecisionSettings(abstain=band)).decide(probabilities)
        outcomes.append(Outcome(band, given, abstains, probabilities, 0.002))
    return Operation("balanced", True, 2, tuple(outcomes)), y


def take_rows(operation: Operation, rows: np.ndarray) -> Operation:
    """The operation on some of the documents."""
    outcomes = [
        Outcome(of.abstain, of.given[rows], of.abstains[rows], of.probabilities[rows], of.seconds)
        for of in operation.outcomes
    ]
    return replace(operation, outcomes=tuple(outcomes))


def test_errors_cost_what_the_matrix_says() -> None:
    y, given = np.array([0, 0, 2, 2, 1]), np.array([0, 2, 0, 1, 0])
    assert COSTS.realised(y, given).tolist() == [0, 5, 2, 0.4, 0.4]
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], size=5)
    by_loop = [sum(probabilities[i, k] * COSTS.matrix[k, given[i]] for k in range(3)) for i in range(5)]
    assert COSTS.expected(probabilities, given) == pytest.approx(by_loop)
    mix = np.array([0.5, 0.2, 0.3])
    assert COSTS.mean(mix) == pytest.approx((0.5 * (0.4 + 5) + 0.2 * 0.8 + 0.3 * (2 + 0.4)) / 2)
    assert ErrorCosts.of(SPACE, 0.4).mean(mix) == pytest.approx(0.4)
    assert COSTS.largest == 5


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"spam": {"eggs": 1}}, "the model has no class 'eggs'; it has ham, scam, spam"),
        ({"spam": {"ham": -1}}, "spam → ham costs -1; expected a number from 0 on"),
        ({"spam": {"ham": float("nan")}}, "spam → ham costs nan; expected a number from 0 on"),
        ({"spam": {"ham": float("inf")}}, "spam → ham costs inf; expected a number from 0 on"),
        ({"spam": {"spam": 1}}, "spam → spam costs 1; expected 0, as for every right label"),
    ],
)
def test_costs_that_make_no_sense_are_refused(pairs: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ErrorCosts.of(SPACE, 1, pairs)


def test_a_document_of_several_classes_is_right_or_wrong_as_a_whole() -> None:
    space = LabelSpace(("a", "b"), multilabel=True)
    costs = ErrorCosts.of(space, 2.0)
    y, given = np.array([[True, False], [True, True]]), np.array([[True, False], [True, False]])
    assert costs.realised(y, given).tolist() == [0, 2]
    probabilities = np.array([[0.9, 0.2], [0.7, 0.4]])
    assert costs.expected(probabilities, given) == pytest.approx([2 * (1 - 0.9 * 0.8), 2 * (1 - 0.7 * 0.6)])
    with pytest.raises(UserError, match="lists of classes"):
        ErrorCosts.of(space, 2.0, {"a": {"b": 1}})


@pytest.mark.parametrize("mixed", [False, True])
def test_the_figures_of_a_point_equal_those_of_a_plain_loop(mixed: bool) -> None:
    """With the mix of the documents, and with another one, in which each document counts by its class."""
    operation, y = draw_operation(300)
    mix = np.array([0.2, 0.1, 0.7]) if mixed else None
    weights = np.ones(300) if mix is None else np.array([mix[k] / np.mean(y == k) for k in y])
    for point in weigh_points(operation, y, PRICES, mix):
        reviewed = errors = realised = 0.0
        for row in range(300):
            probabilities = operation.outcomes[0].probabilities[row]
            odds, given = sorted(probabilities), int(probabilities.argmax())
            if odds[-1] - odds[-2] < point.abstain:
                reviewed += weights[row]
            elif given != y[row]:
                errors += weights[row]
                realised += weights[row] * COSTS.matrix[y[row], given]
        total = weights.sum()
        assert point.reviewed == pytest.approx(reviewed / total)
        assert point.errors == pytest.approx(errors / total)
        assert point.realised == pytest.approx(1000 * realised / total)
        assert point.review == pytest.approx(250 * reviewed / total)
        assert point.compute == pytest.approx(1000 * 2 / 500 / 3600 * 0.05)
        assert point.total == pytest.approx(point.compute + point.review + point.realised)


@pytest.mark.slow
def test_calibrated_probabilities_give_the_cost_by_labels_also_under_another_mix() -> None:
    """On many documents; the mix weights probabilities without a look at the labels of single documents."""
    operation, y = draw_operation(200_000)
    mixes = None, np.array([0.2, 0.7, 0.1])
    for mix in mixes:
        for point in weigh_points(operation, y, PRICES, mix)[:10:4]:
            assert point.expected == pytest.approx(point.realised, rel=0.03)
    plain, shifted = (weigh_points(operation, y, PRICES, mix)[0].expected for mix in mixes)
    assert abs(shifted - plain) > 0.1 * plain, "the mix matters"


def test_the_best_point_is_chosen_without_a_look_at_the_labels() -> None:
    operation, y = draw_operation(400)
    best = best_point(weigh_points(operation, y, PRICES))
    shuffled = best_point(weigh_points(operation, np.random.default_rng(1).permutation(y), PRICES))
    assert best.abstain == shuffled.abstain
    assert best.expected_total == min(p.expected_total for p in weigh_points(operation, y, PRICES))
    free = replace(PRICES, review=0.0)
    assert best_point(weigh_points(operation, y, free)).abstain == max(BANDS)
    dear = replace(PRICES, review=100.0)
    assert best_point(weigh_points(operation, y, dear)).abstain == 0


@pytest.mark.slow
def test_the_interval_holds_the_cost_of_the_other_half_in_88_of_100_splits() -> None:
    """The point is chosen on one half; half of the interval holds far fewer, so it is not merely wide."""
    operation, y = draw_operation(2000, seed=3)
    inside, inside_half, draw = 0, 0, np.random.default_rng(4)
    for split in range(100):
        rows = draw.permutation(2000)
        known, unknown = rows[:1000], rows[1000:]
        best = best_point(weigh_points(take_rows(operation, known), y[known], PRICES))
        interval = with_interval(best, take_rows(operation, known), y[known], PRICES, volume=1000, seed=split).interval
        assert interval is not None
        others = weigh_points(take_rows(operation, unknown), y[unknown], PRICES)
        [other] = [point.total for point in others if point.abstain == best.abstain]
        inside += other in interval
        inside_half += abs(other - (interval.low + interval.high) / 2) < (interval.high - interval.low) / 4
    assert inside >= 88
    assert inside_half < 88


def test_an_interval_is_that_of_the_normal_approximation_for_many_documents() -> None:
    """Of the sample, and of a future that is as large; weights that are all equal change nothing."""
    costs = np.random.default_rng(0).exponential(size=4000)
    for future in (4000.0, 1e12):
        interval = predict_interval(costs, np.full(4000, 3.0), future, seed=0)
        half = 1.96 * costs.std() * np.sqrt(1 / 4000 + 1 / future)
        assert interval.low == pytest.approx(costs.mean() - half, abs=0.1 * half)
        assert interval.high == pytest.approx(costs.mean() + half, abs=0.1 * half)
    assert predict_interval(np.zeros(10), np.ones(10), 5, seed=0) == Interval(0, 0)


@pytest.mark.parametrize("count", [75, 1000])
def test_a_sample_without_errors_does_not_promise_that_there_are_none(count: int) -> None:
    """The upper end is that of three to four errors, as the rule of three says: 3.7 / n at 97.5 %."""
    interval = predict_interval(np.zeros(count), np.ones(count), 1e12, seed=0, largest=2.0)
    groups = np.repeat(np.arange(count, dtype=np.uint64), 20)
    of_groups = predict_interval(np.zeros(20 * count), np.ones(20 * count), 1e12, seed=0, largest=2.0, groups=groups)
    assert of_groups.high == pytest.approx(interval.high, rel=0.05)
    assert interval.low == 0
    assert 3 * 2.0 / (count + 1) <= interval.high <= 4 * 2.0 / (count + 1)


@pytest.mark.slow
def test_the_interval_holds_for_documents_in_groups() -> None:
    """Of groups of ten that are right or wrong together; as if documents stood for themselves, it often misses."""
    draw, groups, inside = np.random.default_rng(0), np.repeat(np.arange(100, dtype=np.uint64), 10), np.zeros(2, int)
    for seed in range(60):
        costs, to_come = (np.repeat(draw.random(100) < 0.2, 10).astype(float) for _ in range(2))
        for at, each in enumerate((groups, None)):
            inside[at] += to_come.mean() in predict_interval(costs, np.ones(1000), 1000, seed, largest=1.0, groups=each)
    assert inside[0] >= 52  # fewer have a probability of 0.3 %
    assert inside[1] < 46
