"""The frontier and the three choices, against brute force over any candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.heads.blend import Blend
from spin.heads.candidate import Candidate
from spin.heads.linear_head import Penalty
from spin.integrate.frontier import best_candidate, best_per_depth, choose_candidates, one_standard_error_choice
from spin.labels.cross_validation import Fold
from spin.settings import SearchSettings

LOSSES = st.sampled_from([0.0, 0.003, 0.02, 0.1])
ONE_FOLD = [Fold(np.arange(80), np.arange(80, 100))]
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
                draw(st.sampled_from(["l1", "ridge"])),
                draw(st.sampled_from([0.3, 0.7])),
                depth,
                ("ffn",) if kind else (),
                compute=max(depth - 0.3 * kind, 0) / 3,
                penalty=Penalty(draw(st.sampled_from([0.1, 1.0])), draw(st.sampled_from([0.0, 0.02]))),
                neurons=draw(st.integers(1, 3)),
                valid_score=float(np.mean(scores)),
                blend=draw(st.sampled_from([None, Blend(0.5, 0.5)])),
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
    """The least loss; ties go to less compute, then to fewer neurons, then to the stronger penalties."""
    best = best_candidate(candidates)
    assert best in candidates
    for other in candidates:
        if other.valid_loss != best.valid_loss:
            assert other.valid_loss > best.valid_loss
        elif other.compute != best.compute:
            assert other.compute > best.compute
        elif other.neurons != best.neurons:
            assert other.neurons > best.neurons
        elif other.penalty.strength != best.penalty.strength:
            assert other.penalty.strength > best.penalty.strength
        else:
            assert other.penalty.l1 <= best.penalty.l1


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
    """The fullest candidate near the best one, of its rule, not the luckiest, which may be smaller."""
    best = best_candidate(candidates)
    near = [c for c in candidates if c.rule == best.rule and is_within(c, best, folds, 1)]
    fullest = max(
        (c.compute, int(c.blend is not None), int(not c.part), c.eta, -c.penalty.l1, -c.valid_loss) for c in near
    )
    c = choose_candidates(candidates, SearchSettings(), folds)["accuracy"]
    assert c is one_standard_error_choice(candidates, folds)
    assert (c.compute, int(c.blend is not None), int(not c.part), c.eta, -c.penalty.l1, -c.valid_loss) == pytest.approx(
        fullest
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(candidate_lists(), LOSSES, LOSSES, st.sampled_from([ONE_FOLD, FIVE_FOLDS]))
def test_choices_have_the_least_compute_within_their_loss(
    candidates: list[Candidate], balanced: float, cheapest: float, folds: list[Fold]
) -> None:
    """The metric loses at most the limit, on five folds with one standard error; the log loss is not clearly larger."""
    chosen = choose_candidates(candidates, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), folds)
    assert list(chosen) == ["accuracy", "balanced", "cheapest"]
    accurate = chosen["accuracy"]

    def loss(candidate: Candidate) -> float:
        lost = accurate.valid_score - candidate.valid_score
        error = standard_error(accurate.resampled, candidate.resampled, folds)
        return lost + error if len(folds) > 1 else lost

    for name, limit in (("balanced", balanced), ("cheapest", cheapest)):
        allowed = [c for c in candidates if loss(c) <= limit + 1e-9 and is_within(c, accurate, folds, 2)]
        least = min(c.compute for c in allowed)
        assert chosen[name] == best_candidate([c for c in allowed if c.compute == least])  # type: ignore[index]
        assert chosen[name].compute <= accurate.compute  # type: ignore[index]
    if balanced <= cheapest:
        assert chosen["cheapest"].compute <= chosen["balanced"].compute


FULL = Candidate(
    "l1",
    0.7,
    3,
    compute=1.0,
    penalty=Penalty(1.0),
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
