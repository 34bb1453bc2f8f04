"""The paired test: the chance of what is better by luck, and of what is better; the bound of a difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

import spin.integrate.bootstrap
from spin.integrate.bootstrap import bootstrap_p_value, lower_bound


def answers(better: int, worse: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, a candidate and a baseline that differ on some documents: the one is right there, or the other."""
    y = np.arange(n) % 2
    candidate, baseline = y.copy(), y.copy()
    baseline[:better] = 1 - baseline[:better]
    candidate[better : better + worse] = 1 - candidate[better : better + worse]
    return y, candidate, baseline


@pytest.mark.parametrize(("better", "worse"), [(30, 10), (12, 8), (20, 20), (8, 12), (5, 0)])
def test_the_chance_is_that_of_the_difference(better: int, worse: int) -> None:
    """Of accuracies: nearly the normal tail of a mean difference of documents that are +1, 0 or -1."""
    y, candidate, baseline = answers(better, worse)
    mean = (better - worse) / 400
    spread = np.sqrt(((better + worse) / 400 - mean**2) / 400)
    # a sample that ties does not score above: half a document is the border between a tie and better
    expected = norm.cdf(1 / 800, mean, spread)
    assert bootstrap_p_value("accuracy", y, candidate, baseline, 0) == pytest.approx(expected, abs=0.07)


def test_equal_answers_are_not_better() -> None:
    """A chance of 1, and so where both err on as many documents; 0 where one is right on all and the other on none."""
    y, candidate, _ = answers(10, 10)
    assert bootstrap_p_value("macro_f1", y, candidate, candidate.copy(), 0) == 1.0
    assert bootstrap_p_value("accuracy", y, y, 1 - y, 0) == 0.0
    assert bootstrap_p_value("accuracy", y, 1 - y, y, 0) == 1.0


def test_a_tie_is_not_better() -> None:
    """Right on one document more: not better in all samples that leave it out, one over e."""
    assert bootstrap_p_value("accuracy", *answers(1, 0), 0) == pytest.approx((1 - 1 / 400) ** 400, abs=0.07)


def macro_f1(y: np.ndarray, predicted: np.ndarray) -> float:
    """By its counts, class by class."""
    right, given, had = (y & predicted).sum(0), predicted.sum(0), y.sum(0)
    return float(np.mean(2 * right / (given + had)))


def test_it_equals_a_plain_loop() -> None:
    """Over bootstrap samples of an own draw, for lists of classes and another metric by its counts."""
    draw = np.random.default_rng(0)
    y = draw.random((150, 3)) < 0.4
    candidate, baseline = y ^ (draw.random(y.shape) < 0.20), y ^ (draw.random(y.shape) < 0.23)
    lost = []
    for _ in range(4000):
        rows = draw.integers(0, 150, 150)
        lost.append(macro_f1(y[rows], candidate[rows]) <= macro_f1(y[rows], baseline[rows]))
    assert 0.02 < np.mean(lost) < 0.98
    assert bootstrap_p_value("macro_f1", y, candidate, baseline, 1) == pytest.approx(np.mean(lost), abs=0.06)


def test_it_is_drawn_by_the_seed() -> None:
    """The same seed gives the same chance, another seed about the same."""
    subject = answers(12, 8)
    first, second, other = (bootstrap_p_value("accuracy", *subject, seed) for seed in (1, 1, 2))
    assert first == second != other
    assert other == pytest.approx(first, abs=0.1)


def test_luck_seldom_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that err alike, one passes at a chance of 0.05 about one time in twenty."""
    monkeypatch.setattr(
        spin.integrate.bootstrap, "score", lambda _, true, predicted: (true == predicted).mean()
    )  # it is faster
    draw = np.random.default_rng(0)
    passed = 0
    for seed in range(60):
        y = draw.integers(0, 2, 100)
        candidate, baseline = (np.where(draw.random(100) < 0.3, 1 - y, y) for _ in range(2))
        passed += bootstrap_p_value("accuracy", y, candidate, baseline, seed) < 0.05
    assert passed <= 8


@pytest.mark.parametrize(("better", "worse"), [(30, 10), (12, 8), (20, 20), (8, 12), (0, 20)])
@pytest.mark.parametrize("significance", [0.05, 0.2])
def test_the_bound_is_that_of_the_difference(better: int, worse: int, significance: float) -> None:
    """Of accuracies: nearly the normal bound of a mean difference of documents that are +1, 0 or -1."""
    mean = (better - worse) / 400
    spread = np.sqrt(((better + worse) / 400 - mean**2) / 400)
    found = lower_bound("accuracy", *answers(better, worse), significance, 0)
    assert found == pytest.approx(norm.ppf(significance, mean, spread), abs=0.005)


def test_equal_answers_lose_nothing() -> None:
    """Exactly 0, also where both err on the same documents; one document more or less is told."""
    y, candidate, _ = answers(10, 10)
    assert lower_bound("macro_f1", y, candidate, candidate.copy(), 0.05, 0) == 0.0
    assert lower_bound("accuracy", y, y, 1 - y, 0.05, 0) == 1.0
    assert lower_bound("accuracy", y, 1 - y, y, 0.05, 0) == -1.0
    assert lower_bound("accuracy", *answers(0, 1), 0.05, 0) < 0 == lower_bound("accuracy", *answers(1, 0), 0.05, 0)


@pytest.mark.parametrize(("better", "worse"), [(40, 10), (25, 10), (16, 12), (12, 12), (10, 25)])
def test_the_bound_agrees_with_mcnemar(better: int, worse: int) -> None:
    """Above 0 just where the exact one-sided test of McNemar says that the candidate errs less."""
    chance = binomtest(better, better + worse, alternative="greater").pvalue
    assert not 0.03 < chance < 0.07  # a case that is clear
    assert (lower_bound("accuracy", *answers(better, worse), 0.05, 0) > 0) == (chance < 0.05)


def test_the_bound_equals_a_plain_loop() -> None:
    """Over bootstrap samples of an own draw, for lists of classes and another metric by its counts."""
    draw = np.random.default_rng(0)
    y = draw.random((150, 3)) < 0.4
    candidate, baseline = y ^ (draw.random(y.shape) < 0.20), y ^ (draw.random(y.shape) < 0.23)
    found = []
    for _ in range(4000):
        rows = draw.integers(0, 150, 150)
        found.append(macro_f1(y[rows], candidate[rows]) - macro_f1(y[rows], baseline[rows]))
    bound = lower_bound("macro_f1", y, candidate, baseline, 0.05, 1)
    assert bound == pytest.approx(sorted(found)[200], abs=0.01)


def test_what_is_worse_seldom_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is worse by just the margin is no worse than it about one time in twenty."""
    monkeypatch.setattr(
        spin.integrate.bootstrap, "score", lambda _, true, predicted: (true == predicted).mean()
    )  # it is faster
    draw = np.random.default_rng(0)
    passed = 0
    for seed in range(60):
        y = draw.integers(0, 2, 100)
        candidate, baseline = (np.where(draw.random(100) < share, 1 - y, y) for share in (0.35, 0.30))
        passed += lower_bound("accuracy", y, candidate, baseline, 0.05, seed) >= -0.05
    assert 1 <= passed <= 8
