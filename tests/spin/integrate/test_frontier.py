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
    grid = st.sampled_from([0.5, 0.597, 0.6, 0.603, 0.62])
    drawn = []
    for _ in range(draw(st.integers(1, 12))):
        depth, kind = draw(st.integers(0, 3)), draw(st.booleans())
        scores = tuple(draw(grid) for _ in range(5))
        drawn.append(
            Candidate(
                depth,
                max(depth - 0.3 * kind, 0) / 3,
                draw(st.sampled_from(["l1", "ridge"])),
                draw(st.sampled_from([0.3, 0.7])),
                ("ffn",) if kind else (),
                Penalty(draw(st.sampled_from([0.1, 1.0])), draw(st.sampled_from([0.0, 0.02]))),
                draw(st.integers(1, 3)),
                float(np.mean(scores)),
                draw(st.sampled_from([None, Blend(0.5, 0.5)])),
                scores,
            )
        )
    return drawn


@settings(deadline=None)
@given(candidate_lists())
def test_no_candidate_beats_the_best_one(candidates: list[Candidate]) -> None:
    """Ties in the score go to less compute, then to fewer neurons, then to the stronger penalties."""
    best = best_candidate(candidates)
    assert best in candidates
    for other in candidates:
        if other.valid_score != best.valid_score:
            assert other.valid_score < best.valid_score
        elif other.compute != best.compute:
            assert other.compute > best.compute
        elif other.neurons != best.neurons:
            assert other.neurons > best.neurons
        elif other.penalty.strength != best.penalty.strength:
            assert other.penalty.strength > best.penalty.strength
        else:
            assert other.penalty.l1 <= best.penalty.l1


@settings(deadline=None)
@given(candidate_lists())
def test_the_frontier_holds_the_best_candidate_of_each_depth(candidates: list[Candidate]) -> None:
    """Every depth that was tried appears once, shallow first."""
    frontier = best_per_depth(candidates)
    assert [point.depth for point in frontier] == sorted({c.depth for c in candidates})
    for point in frontier:
        assert point == best_candidate([c for c in candidates if c.depth == point.depth])


def standard_error(candidate: Candidate, other: Candidate, folds: Sequence[Fold]) -> float:
    """The standard error of a difference.

    It is over five folds of 80 and 20 rows, or a jackknife over five parts of one.
    """
    differences = [a - b for a, b in zip(candidate.resampled, other.resampled, strict=True)]
    mean = sum(differences) / 5
    squares = sum((d - mean) ** 2 for d in differences)
    return float(((1 / 5 + 20 / 80) * squares / 4) ** 0.5 if len(folds) > 1 else (4 / 5 * squares) ** 0.5)


@settings(max_examples=300, deadline=None)
@given(candidate_lists(), st.sampled_from([ONE_FOLD, FIVE_FOLDS]))
def test_the_accuracy_choice_is_the_fullest_within_one_standard_error(
    candidates: list[Candidate], folds: list[Fold]
) -> None:
    """The fullest candidate near the best one, of its rule, not the luckiest, which may be smaller."""
    best = best_candidate(candidates)
    near = [c for c in candidates if best.valid_score - c.valid_score <= standard_error(best, c, folds) + 1e-12]
    of_rule = [c for c in near if c.rule == best.rule]
    fullest = max(
        (c.compute, int(c.blend is not None), int(not c.part), c.eta, -c.penalty.l1, c.valid_score) for c in of_rule
    )
    accurate = choose_candidates(candidates, SearchSettings(), folds)["accuracy"]
    assert accurate is one_standard_error_choice(candidates, folds)
    c = accurate
    assert (c.compute, int(c.blend is not None), int(not c.part), c.eta, -c.penalty.l1, c.valid_score) == pytest.approx(
        fullest
    )


@settings(max_examples=300, deadline=None)
@given(candidate_lists(), LOSSES, LOSSES)
def test_choices_have_the_least_compute_within_their_loss(
    candidates: list[Candidate], balanced: float, cheapest: float
) -> None:
    """On one fold a loss counts against the best score; of equal compute, the best candidate is chosen."""
    chosen = choose_candidates(candidates, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), ONE_FOLD)
    assert list(chosen) == ["accuracy", "balanced", "cheapest"]
    top = max(c.valid_score for c in candidates)
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        allowed = [c for c in candidates if top - c.valid_score <= loss + 1e-9]
        least = min(c.compute for c in allowed)
        assert chosen[name] == best_candidate([c for c in allowed if c.compute == least])  # type: ignore[index]
        assert chosen[name].compute <= chosen["accuracy"].compute  # type: ignore[index]
    if balanced <= cheapest:
        assert chosen["cheapest"].compute <= chosen["balanced"].compute


@settings(max_examples=300, deadline=None)
@given(candidate_lists(), LOSSES, LOSSES)
def test_with_cross_validation_a_loss_includes_one_standard_error(
    candidates: list[Candidate], balanced: float, cheapest: float
) -> None:
    """On five folds a loss counts against the accuracy choice, not against the luckiest candidate."""
    chosen = choose_candidates(candidates, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), FIVE_FOLDS)
    accurate = chosen["accuracy"]
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        within = [
            c
            for c in candidates
            if accurate.valid_score - c.valid_score + standard_error(accurate, c, FIVE_FOLDS) <= loss + 1e-9
        ]
        least = min(c.compute for c in within)
        assert chosen[name] == best_candidate([c for c in within if c.compute == least])  # type: ignore[index]


@pytest.mark.parametrize("folds", [ONE_FOLD, FIVE_FOLDS])
def test_a_shallow_candidate_with_lucky_folds_is_not_preferred(folds: list[Fold]) -> None:
    """A candidate that is ahead in three parts and far behind in two does not replace the full one."""
    full = Candidate(3, 1.0, "l1", 0.7, (), Penalty(1.0), 9, 0.6, resampled=(0.6,) * 5)
    lucky = replace(full, depth=1, compute=0.3, valid_score=0.61, resampled=(0.5, 0.55, 0.6, 0.7, 0.7))
    assert choose_candidates([full, lucky], SearchSettings(), folds)["accuracy"] is full
    assert choose_candidates([full, lucky], SearchSettings(cheapest_loss=0.3), folds)["cheapest"] is lucky
    better = replace(lucky, resampled=(0.609, 0.61, 0.61, 0.61, 0.611))
    assert choose_candidates([full, better], SearchSettings(), folds)["accuracy"] is better
