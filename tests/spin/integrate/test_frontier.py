"""The frontier and the three choices, against brute force over any candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from spin.fitted.candidate import Candidate
from spin.heads.stack import Stack
from spin.integrate.frontier import best_candidate, best_per_depth, choose_candidates, one_standard_error_choice
from spin.labels.cross_validation import Fold, make_folds, score_folds
from spin.labels.label_space import LabelSpace
from spin.settings import Choice, SearchSettings

LOSSES = st.sampled_from([0.0, 0.003, 0.02, 0.1])
ONE_FOLD = [Fold(np.arange(80), np.arange(80, 100))]
pytestmark = pytest.mark.usefixtures("all_folds")
FIVE_FOLDS = [Fold(np.arange(80), np.arange(80, 100))] * 5


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[Candidate]:
    """Candidates with few distinct values, so that ties are common; compute grows with depth and kind of site."""
    grid, loss_grid = st.sampled_from([0.5, 0.597, 0.6, 0.603, 0.62]), st.sampled_from([0.9, 0.95, 0.96, 1.2])
    drawn = []
    for _ in range(draw(st.integers(1, 12))):
        depth, kind = draw(st.integers(0, 3)), draw(st.booleans())
        scores, losses = (tuple(draw(values) for _ in range(5)) for values in (grid, loss_grid))
        drawn.append(
            Candidate(
                draw(st.sampled_from([0.3, 0.7])),
                depth,
                ("ffn",) if kind else (),
                compute=max(depth - 0.3 * kind, 0) / 3,
                strength=draw(st.sampled_from([0.1, 1.0])),
                neurons=draw(st.integers(1, 3)),
                valid_score=float(np.mean(scores)),
                stack=draw(st.sampled_from([Stack((), 1.0), Stack((), 0.5, 0.5)])),
                resampled=scores,
                valid_loss=float(np.mean(losses)),
                resampled_losses=losses,
            )
        )
    return drawn


@pytest.mark.slow
@settings(deadline=None)
@given(candidate_lists())
def test_no_candidate_beats_the_best_one(candidates: list[Candidate]) -> None:
    """The least loss; ties go to less compute, then to fewer neurons, then to stronger regularisation."""
    best = best_candidate(candidates)
    assert best in candidates
    for other in candidates:
        if other.valid_loss != best.valid_loss:
            assert other.valid_loss > best.valid_loss
        elif other.compute != best.compute:
            assert other.compute > best.compute
        elif other.neurons != best.neurons:
            assert other.neurons > best.neurons
        else:
            assert other.strength >= best.strength


@pytest.mark.slow
@settings(deadline=None)
@given(candidate_lists())
def test_the_frontier_holds_the_best_candidate_of_each_depth(candidates: list[Candidate]) -> None:
    """Every depth that was tried appears once, shallow first."""
    frontier = best_per_depth(candidates)
    assert [point.depth for point in frontier] == sorted({c.depth for c in candidates})
    for point in frontier:
        assert point == best_candidate([c for c in candidates if c.depth == point.depth])


def standard_error(values: Sequence[float], others: Sequence[float], folds: Sequence[Fold]) -> float:
    """The standard error of a difference of two resampled values.

    It is over five folds of 80 and 20 rows, or a jackknife over five parts of one.
    """
    differences = [a - b for a, b in zip(values, others, strict=True)]
    mean = sum(differences) / 5
    squares = sum((d - mean) ** 2 for d in differences)
    return float(((1 / 5 + 20 / 80) * squares / 4) ** 0.5 if len(folds) > 1 else (4 / 5 * squares) ** 0.5)


def is_within(candidate: Candidate, reference: Candidate, folds: Sequence[Fold], errors: float) -> bool:
    """Whether the loss of a candidate is above that of the reference by at most so many standard errors."""
    error = standard_error(candidate.resampled_losses, reference.resampled_losses, folds)
    return candidate.valid_loss - reference.valid_loss <= errors * error + 1e-12


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(candidate_lists(), st.sampled_from([ONE_FOLD, FIVE_FOLDS]))
def test_the_accuracy_choice_is_the_fullest_within_one_standard_error(
    candidates: list[Candidate], folds: list[Fold]
) -> None:
    """The fullest candidate near the best one, not the luckiest, which may be smaller."""
    best = best_candidate(candidates)
    near = [c for c in candidates if is_within(c, best, folds, 1)]
    fullest = max((c.compute, int(c.reads_words), int(not c.part), c.eta, -c.valid_loss) for c in near)
    c = choose_candidates(candidates, SearchSettings(), folds)["accuracy"]
    assert c is one_standard_error_choice(candidates, folds)
    assert (c.compute, int(c.reads_words), int(not c.part), c.eta, -c.valid_loss) == pytest.approx(fullest)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(candidate_lists(), LOSSES, LOSSES, st.sampled_from([ONE_FOLD, FIVE_FOLDS]))
def test_choices_have_the_least_compute_within_their_loss(
    candidates: list[Candidate], balanced: float, cheapest: float, folds: list[Fold]
) -> None:
    """The best up to each depth is tested from the deepest on, up to the first that fails.

    The metric must lose at most the limit with 95 % confidence, and the log loss must not be clearly larger.
    """
    chosen = choose_candidates(candidates, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), folds)
    assert list(chosen) == ["accuracy", "balanced", "cheapest"]
    accurate = chosen["accuracy"]
    cheaper = [c for c in best_per_depth(candidates) if c.compute < accurate.compute]
    falling = [min(cheaper[:end], key=lambda c: (c.valid_loss, c.compute)) for end in range(len(cheaper), 0, -1)]
    limits: dict[Choice, float] = {"balanced": balanced, "cheapest": cheapest}
    for name, limit in limits.items():
        expected = accurate
        for candidate in falling:
            error = standard_error(accurate.resampled, candidate.resampled, ONE_FOLD)
            quantile = t.ppf(0.95, len(candidate.resampled) - 1)
            lost = accurate.valid_score - candidate.valid_score + quantile * error
            if lost > limit + 1e-9 or not is_within(candidate, accurate, folds, 2):
                break
            expected = candidate
        assert chosen[name] == expected
        assert chosen[name].compute <= accurate.compute
    if balanced <= cheapest:
        assert chosen["cheapest"].compute <= chosen["balanced"].compute


def simulate_candidates(n: int, accuracies: Sequence[float], seed: int) -> tuple[list[Candidate], tuple[Fold, ...]]:
    """Ten candidates of each depth, deepest last, judged on n documents of two classes, most of their luck shared."""
    draw = np.random.default_rng(seed)
    y = draw.permutation(np.arange(n) % 2)
    folds = make_folds(LabelSpace(("a", "b")), y, np.arange(n - n // 6), np.arange(n - n // 6, n), seed)
    rows = np.concatenate([fold.valid for fold in folds])
    common, candidates = draw.normal(size=n), []
    for depth, accuracy in enumerate(accuracies):
        for number in range(10):
            margin = norm.ppf(accuracy) + 0.8 * common + 0.6 * draw.normal(size=n)  # of variance 1
            predicted, losses = np.where(margin > 0, y, 1 - y), np.log1p(np.exp(-2 * margin))
            of_folds = [float(losses[fold.valid].mean()) for fold in folds]
            score, resampled = score_folds("macro_f1", y[rows], predicted[rows], folds)
            candidates.append(
                replace(
                    FULL,
                    depth=depth,
                    compute=depth / (len(accuracies) - 1),
                    neurons=number,
                    valid_score=score,
                    resampled=resampled,
                    valid_loss=float(np.mean(of_folds)),
                    resampled_losses=tuple(of_folds),
                )
            )
    return candidates, folds


@pytest.mark.slow
@pytest.mark.parametrize("n", [48, 192, 768])
def test_the_losses_that_are_promised_hold_in_nine_of_ten_trainings(n: int) -> None:
    """Though 60 candidates of less compute lose four points, so that chance makes some of them look good."""
    accuracies = [0.71] * 6 + [0.75]
    kept: dict[Choice, int] = {"balanced": 0, "cheapest": 0}
    for seed in range(40):
        candidates, folds = simulate_candidates(n, accuracies, seed)
        chosen = choose_candidates(candidates, SearchSettings(), folds)
        for name in kept:
            kept[name] += accuracies[chosen[name].depth] >= accuracies[chosen["accuracy"].depth]
    assert min(kept.values()) >= 0.9 * 40


@pytest.mark.slow
def test_compute_is_saved_where_it_costs_nothing() -> None:
    """Of candidates that are all as good, `cheapest` takes one of less compute in most trainings on 3,000 documents."""
    cheaper = 0
    for seed in range(20):
        candidates, folds = simulate_candidates(3000, [0.75] * 3, seed)
        cheaper += choose_candidates(candidates, SearchSettings(), folds)["cheapest"].compute < 1
    assert cheaper > 10


FULL = Candidate(
    0.7,
    3,
    compute=1.0,
    strength=1.0,
    stack=Stack((), 1.0),
    neurons=9,
    valid_score=0.6,
    resampled=(0.6,) * 5,
    valid_loss=0.9,
    resampled_losses=(0.9,) * 5,
)


@pytest.mark.parametrize("folds", [ONE_FOLD, FIVE_FOLDS])
def test_a_shallow_candidate_with_lucky_folds_is_not_preferred(folds: list[Fold]) -> None:
    """A candidate that is ahead in three parts and far behind in two does not replace the full one."""
    lucky = replace(FULL, depth=1, compute=0.3, valid_loss=0.88, resampled_losses=(1.1, 1.0, 0.9, 0.7, 0.7))
    assert choose_candidates([FULL, lucky], SearchSettings(), folds)["accuracy"] is FULL
    better = replace(lucky, resampled_losses=(0.882, 0.88, 0.88, 0.88, 0.878))
    assert choose_candidates([FULL, better], SearchSettings(), folds)["accuracy"] is better


@pytest.mark.parametrize("folds", [ONE_FOLD, FIVE_FOLDS])
def test_less_compute_is_not_bought_with_a_lucky_metric(folds: list[Fold]) -> None:
    """Neither clearly worse probabilities nor too large a loss of the metric are accepted for less compute."""
    losses = (1.0, 1.01, 0.99, 1.0, 1.0)
    lucky = replace(FULL, depth=1, compute=0.3, valid_score=0.62, resampled=(0.62,) * 5, resampled_losses=losses)
    lucky = replace(lucky, valid_loss=1.0)
    assert choose_candidates([FULL, lucky], SearchSettings(), folds)["cheapest"] is FULL
    sound = replace(lucky, valid_loss=0.905, resampled_losses=(0.85, 0.95, 0.9, 0.9, 0.925))
    assert choose_candidates([FULL, sound], SearchSettings(), folds)["cheapest"] is sound
    worse = replace(sound, valid_score=0.55, resampled=(0.55,) * 5)
    assert choose_candidates([FULL, worse], SearchSettings(), folds)["cheapest"] is FULL
    assert choose_candidates([FULL, worse], SearchSettings(cheapest_loss=0.06), folds)["cheapest"] is worse


def test_a_document_that_validates_twice_is_one_document() -> None:
    """One wrong one of 100 has a loss of 0.046, one of 200 would have 0.026."""
    folds = make_folds(LabelSpace(("a", "b")), np.arange(100) % 2, np.arange(80), np.arange(80, 100), 0)
    assert len(folds) == 10
    full = replace(FULL, valid_loss=0.036, resampled_losses=(0.036,) * 10)
    words = replace(full, compute=0.0, depth=0, valid_loss=0.005, resampled_losses=(0.005,) * 10)
    assert one_standard_error_choice([full, words], folds) is full


def test_losses_below_that_of_one_wrong_document_tell_nothing() -> None:
    """Where all documents are right, the fullest candidate is taken although its loss is three times the least."""
    folds = make_folds(LabelSpace(("a", "b")), np.arange(100) % 2, np.arange(80), np.arange(80, 100), 0)
    full = replace(FULL, valid_loss=0.018, resampled_losses=(0.018,) * 5)
    words = replace(full, compute=0.0, depth=0, valid_loss=0.005, resampled_losses=(0.005,) * 5)
    assert one_standard_error_choice([full, words], folds[:5]) is full
    assert (
        one_standard_error_choice([replace(full, valid_loss=0.08, resampled_losses=(0.08,) * 5), words], folds[:5])
        is words
    )
