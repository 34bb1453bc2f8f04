"""The accuracy of many labels by a few that were checked, over many draws of these."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from spin.arrays import Floats
from spin.monitor.spot_check import LEAST_DOUBT, MOST_DOUBT, CheckedSample, estimate_accuracy, measure_doubt


def sample_uniformly(right: np.ndarray, documents: int, drawn: int | None = None) -> CheckedSample:
    """A uniform sample of checked documents whose scores say nothing."""
    drawn = drawn or len(right)
    return CheckedSample(drawn, np.full(len(right), drawn / documents), np.full(len(right), 0.5), right)


def check(draw: np.random.Generator, doubt: Floats, count: int, chances: Floats, right: np.ndarray) -> CheckedSample:
    """Draw documents by their doubt, by priority sampling, and check all of them."""
    keys = draw.random(len(doubt)) / doubt
    first = np.argpartition(keys, count)[: count + 1]
    first = first[np.argsort(keys[first])]
    drawn, limit = first[:-1], keys[first[-1]]
    return CheckedSample(count, np.minimum(1, limit * doubt[drawn]), chances[drawn], right[drawn])


def test_a_label_is_in_doubt_as_far_as_its_score_leaves_open_whether_it_is_right() -> None:
    doubt = measure_doubt(np.array([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]))
    np.testing.assert_allclose(doubt, [LEAST_DOUBT, 0.3, MOST_DOUBT, 0.3, LEAST_DOUBT, LEAST_DOUBT])


def test_the_estimate_is_that_of_prediction_powered_inference() -> None:
    """The textbook's formulas, one document at a time; intervals differ by what small samples need.

    The part of the chances is found by trying a hundred of them.
    """
    draw = np.random.default_rng(0)
    chances = 0.5 + 0.5 * draw.random(100_000)
    right = draw.random(len(chances)) < 0.4 + 0.5 * chances
    sample = check(draw, measure_doubt(chances), 3000, chances, right)
    found = estimate_accuracy(len(chances), chances.mean(), [sample])
    weights = [1 / probability for probability in sample.probabilities]
    scale = len(weights) / sum(weights)
    tried = []
    for part in np.linspace(0, 1, 101):
        pairs = zip(weights, sample.right, sample.chances, strict=True)
        differences = [(scale * w, r - part * p) for w, r, p in pairs]
        mean = sum(w * d for w, d in differences) / len(differences)
        variance = sum((w * (d - mean)) ** 2 for w, d in differences) / len(differences) ** 2
        tried.append((variance, part * sum(chances) / len(chances) + mean, part))
    variance, value, part = min(tried)
    assert 0.1 < part < 0.9
    assert found is not None
    assert found.value == pytest.approx(value, abs=1e-4)
    assert found.width == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.03)


MISTAKEN: dict[str, Callable[[Floats], Floats]] = {
    "calibrated": lambda p: p,
    "promise too much": lambda p: p**0.6 / (p**0.6 + (1 - p) ** 0.6),
    "promise too little": lambda p: p**1.5 / (p**1.5 + (1 - p) ** 1.5),
    "one in twenty is wrong whatever its score": lambda p: 0.95 * p,
    "say hardly anything": lambda p: 1 - 0.1 * (1 - p),
}
"""how often labels are right, by the chance that scores give them"""


@pytest.mark.slow
@pytest.mark.parametrize("scores", MISTAKEN)
@pytest.mark.parametrize("mean", [0.8, 0.95])
def test_of_a_thousand_nights_the_interval_holds_the_accuracy_of_95_percent(mean: float, scores: str) -> None:
    """It is narrower than that of as many documents drawn uniformly, and the estimate is right on average."""
    draw, nights, documents, count = np.random.default_rng(1), 1000, 4000, 200
    held, widths, uniform_widths, errors = 0, 0.0, 0.0, []
    for _ in range(nights):
        chances = draw.beta(5 * mean, 5 * (1 - mean), documents).clip(0.01, 0.9999)
        right = draw.random(documents) < MISTAKEN[scores](chances)
        found = estimate_accuracy(
            documents, chances.mean(), [check(draw, measure_doubt(chances), count, chances, right)]
        )
        uniform = sample_uniformly(right[draw.choice(documents, count, replace=False)], documents)
        compared = estimate_accuracy(documents, 0.5, [uniform])
        assert found is not None
        assert compared is not None
        held += found.low <= right.mean() <= found.high
        widths, uniform_widths = widths + found.width, uniform_widths + compared.width
        errors.append(found.value - right.mean())
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / nights) < held / nights < 0.98
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(nights)
    assert widths < uniform_widths


@pytest.mark.slow
def test_four_tenths_of_the_variance_are_saved() -> None:
    """That of a uniform sample of as many checked documents, where scores are calibrated."""
    draw, documents, count = np.random.default_rng(2), 4000, 200
    errors, uniform_errors = [], []
    for _ in range(2000):
        chances = draw.beta(4.5, 0.5, documents).clip(0.01, 0.9999)
        right = draw.random(documents) < chances
        found = estimate_accuracy(
            documents, chances.mean(), [check(draw, measure_doubt(chances), count, chances, right)]
        )
        assert found is not None
        errors.append(found.value - right.mean())
        uniform_errors.append(right[draw.choice(documents, count, replace=False)].mean() - right.mean())
    assert np.var(errors) == pytest.approx(0.6 * np.var(uniform_errors), rel=0.1)


def test_there_is_no_estimate_without_a_sample_that_stands_for_all() -> None:
    right = np.arange(70) % 10 > 0
    assert estimate_accuracy(1000, 0.9, []) is None
    assert estimate_accuracy(1000, 0.9, [sample_uniformly(right[:0], 1000, drawn=70)]) is None
    assert estimate_accuracy(1000, 0.9, [sample_uniformly(right, 1000)]) is not None
    assert estimate_accuracy(3000, 0.9, [sample_uniformly(right, 1000)]) is None
    rest = sample_uniformly(right[:20], 1000, drawn=70)  # as people leave the others blank
    assert estimate_accuracy(1000, 0.9, [rest]) is not None


def test_the_surest_documents_are_missed_where_they_were_left_blank() -> None:
    draw = np.random.default_rng(3)
    chances = draw.beta(4.5, 0.5, 4000).clip(0.01, 0.9999)
    whole = check(draw, measure_doubt(chances), 200, chances, chances > 0.5)
    for part, stands in ((np.arange(200) < 60, True), (whole.chances < 0.9, False)):
        answered = CheckedSample(200, whole.probabilities[part], whole.chances[part], whole.right[part])
        assert answered.stands_for(4000) == stands


def test_independent_samples_count_by_their_documents() -> None:
    """One that does not stand for the night does not count."""
    few, many = sample_uniformly(np.arange(50) < 30, 5000), sample_uniformly(np.arange(150) < 120, 5000)
    other = sample_uniformly(np.zeros(100, bool), 500)
    found, alone = estimate_accuracy(5000, 0.5, [few, other, many]), estimate_accuracy(5000, 0.5, [many])
    assert found is not None
    assert alone is not None
    assert found.value == pytest.approx(150 / 200)
    assert found.width < alone.width


def test_what_was_checked_whole_adds_nothing_to_the_interval() -> None:
    found = estimate_accuracy(50, 0.5, [sample_uniformly(np.arange(50) < 20, 50)])
    assert found is not None
    assert found.low == found.value == found.high == 0.4
    few = estimate_accuracy(1000, 0.5, [sample_uniformly(np.ones(20, bool), 1000)])
    assert few is not None
    assert few.low < 0.98  # although all that were checked are right


@pytest.mark.parametrize("accuracy", [0.9, 0.97, 0.99])
def test_the_interval_holds_near_all_right(accuracy: float) -> None:
    """Of 500 samples of 140 documents at least 92 %."""
    draw = np.random.default_rng(0)
    samples = (sample_uniformly(draw.random(140) < accuracy, 100_000) for _ in range(500))
    estimates = [estimate_accuracy(100_000, 0.5, [sample]) for sample in samples]
    assert sum(each is not None and each.low <= accuracy <= each.high for each in estimates) >= 460
