"""The frontier and the three choices, against brute force over any candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.heads.candidate import Candidate
from spin.heads.linear_head import Penalty
from spin.integrate.frontier import best_candidate, best_per_depth, choose_candidates, one_standard_error_choice
from spin.labels.cross_validation import Fold
from spin.settings import SearchSettings

LOSSES = st.sampled_from([0.0, 0.003, 0.02, 0.1])
ONE = [Fold(np.arange(80), np.arange(80, 100))]
FIVE = [Fold(np.arange(80), np.arange(80, 100))] * 5


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    """Few values of everything, so that ties abound; compute grows with depth and a site's kind."""
    grid = st.sampled_from([0.5, 0.597, 0.6, 0.603, 0.62])
    found = []
    for _ in range(draw(st.integers(1, 12))):
        depth, kind = draw(st.integers(0, 3)), draw(st.booleans())
        scores = tuple(draw(grid) for _ in range(5))
        found.append(
            Candidate(
                depth,
                max(depth - 0.3 * kind, 0) / 3,
                draw(st.sampled_from([0.3, 0.7])),
                ("ffn",) if kind else (),
                Penalty(draw(st.sampled_from([0.1, 1.0])), draw(st.sampled_from([0.0, 0.02]))),
                draw(st.integers(1, 3)),
                float(np.mean(scores)),
                scores,
            )
        )
    return found


@settings(deadline=None)
@given(candidates())
def test_the_best_is_beaten_by_none(found: list[Candidate]) -> None:
    """No candidate scores more; of those that score as much none is cheaper, then smaller, then stronger held."""
    best = best_candidate(found)
    assert best in found
    for other in found:
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
@given(candidates())
def test_the_frontier_is_the_best_of_each_depth(found: list[Candidate]) -> None:
    """Every depth that was tried, once, shallow first."""
    frontier = best_per_depth(found)
    assert [point.depth for point in frontier] == sorted({c.depth for c in found})
    for point in frontier:
        assert point == best_candidate([c for c in found if c.depth == point.depth])


def error(one: Candidate, other: Candidate, folds: Sequence[Fold]) -> float:
    """Of a difference: over five folds of 80 and 20 rows, or over one's five parts, each left out."""
    differences = [a - b for a, b in zip(one.resampled, other.resampled, strict=True)]
    mean = sum(differences) / 5
    squares = sum((d - mean) ** 2 for d in differences)
    return float(((1 / 5 + 20 / 80) * squares / 4) ** 0.5 if len(folds) > 1 else (4 / 5 * squares) ** 0.5)


@settings(max_examples=300, deadline=None)
@given(candidates(), st.sampled_from([ONE, FIVE]))
def test_the_fullest_near_the_best_is_accurate(found: list[Candidate], folds: list[Fold]) -> None:
    """Not the luckiest but the fullest within one standard error of it."""
    best = best_candidate(found)
    near = [c for c in found if best.valid_score - c.valid_score <= error(best, c, folds) + 1e-12]
    fullest = max((c.compute, not c.part, c.eta, -c.penalty.l1, c.valid_score) for c in near)
    accurate = choose_candidates(found, SearchSettings(), folds)["accuracy"]
    assert accurate is one_standard_error_choice(found, folds)
    c = accurate
    assert (c.compute, not c.part, c.eta, -c.penalty.l1, c.valid_score) == pytest.approx(fullest)


@settings(max_examples=300, deadline=None)
@given(candidates(), LOSSES, LOSSES)
def test_choices_cost_the_least_within_their_loss(found: list[Candidate], balanced: float, cheapest: float) -> None:
    """On one fold: the least compute that loses no more against the best score, then the best of it."""
    chosen = choose_candidates(found, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), ONE)
    assert list(chosen) == ["accuracy", "balanced", "cheapest"]
    top = max(c.valid_score for c in found)
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        allowed = [c for c in found if top - c.valid_score <= loss + 1e-9]
        least = min(c.compute for c in allowed)
        assert chosen[name] == best_candidate([c for c in allowed if c.compute == least])  # type: ignore[index]
        assert chosen[name].compute <= chosen["accuracy"].compute  # type: ignore[index]
    if balanced <= cheapest:
        assert chosen["cheapest"].compute <= chosen["balanced"].compute


@settings(max_examples=300, deadline=None)
@given(candidates(), LOSSES, LOSSES)
def test_of_few_labels_a_loss_is_taken_one_error_higher(
    found: list[Candidate], balanced: float, cheapest: float
) -> None:
    """On five folds: against what is accurate, not against the luckiest."""
    chosen = choose_candidates(found, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), FIVE)
    accurate = chosen["accuracy"]
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        within = [c for c in found if accurate.valid_score - c.valid_score + error(accurate, c, FIVE) <= loss + 1e-9]
        least = min(c.compute for c in within)
        assert chosen[name] == best_candidate([c for c in within if c.compute == least])  # type: ignore[index]


@pytest.mark.parametrize("folds", [ONE, FIVE])
def test_nothing_is_lost_by_luck_alone(folds: list[Fold]) -> None:
    """A shallow candidate that is ahead in three parts and far behind in two is no better than the full one."""
    full = Candidate(3, 1.0, 0.7, (), Penalty(1.0), 9, 0.6, (0.6,) * 5)
    lucky = replace(full, depth=1, compute=0.3, valid_score=0.61, resampled=(0.5, 0.55, 0.6, 0.7, 0.7))
    assert choose_candidates([full, lucky], SearchSettings(), folds)["accuracy"] is full
    assert choose_candidates([full, lucky], SearchSettings(cheapest_loss=0.3), folds)["cheapest"] is lucky
    better = replace(lucky, resampled=(0.609, 0.61, 0.61, 0.61, 0.611))
    assert choose_candidates([full, better], SearchSettings(), folds)["accuracy"] is better
