"""The frontier and the three choices, against brute force over any candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin.folds import Fold
from spin.frontier import Candidate, best_of, choices_of, frontier_of
from spin.head import Penalty
from spin.settings import SearchSettings

LOSSES = st.sampled_from([0.0, 0.003, 0.02, 0.1])
ONE = [Fold(np.arange(80), np.arange(80, 100))]
FIVE = [Fold(np.arange(80), np.arange(80, 100))] * 5


@st.composite
def candidates(draw: st.DrawFn, folds: int = 1) -> list[Candidate]:
    """Few values of everything, so that ties abound; compute grows with depth and a site's kind."""
    grid = st.sampled_from([0.5, 0.597, 0.6, 0.603, 0.62])
    found = []
    for _ in range(draw(st.integers(1, 12))):
        depth, kind = draw(st.integers(0, 3)), draw(st.booleans())
        scores = tuple(draw(grid) for _ in range(folds))
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
    best = best_of(found)
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
    frontier = frontier_of(found)
    assert [point.depth for point in frontier] == sorted({c.depth for c in found})
    for point in frontier:
        assert point == best_of([c for c in found if c.depth == point.depth])


@settings(max_examples=300, deadline=None)
@given(candidates(), LOSSES, LOSSES)
def test_choices_cost_the_least_within_their_loss(found: list[Candidate], balanced: float, cheapest: float) -> None:
    """On one fold: accuracy is the best score; the others the least compute that loses no more, then the best of it."""
    chosen = choices_of(found, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), ONE)
    assert list(chosen) == ["accuracy", "balanced", "cheapest"]
    assert chosen["accuracy"] == best_of(found)
    top = max(c.valid_score for c in found)
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        allowed = [c for c in found if top - c.valid_score <= loss + 1e-9]
        least = min(c.compute for c in allowed)
        assert chosen[name] == best_of([c for c in allowed if c.compute == least])  # type: ignore[index]
    if balanced <= cheapest:
        assert chosen["cheapest"].compute <= chosen["balanced"].compute <= chosen["accuracy"].compute


def error(one: Candidate, other: Candidate) -> float:
    """Of the mean of paired differences over five folds of 80 and 20 rows, one after another."""
    differences = [a - b for a, b in zip(one.fold_scores, other.fold_scores, strict=True)]
    mean = sum(differences) / 5
    return float(((1 / 5 + 20 / 80) * sum((d - mean) ** 2 for d in differences) / 4) ** 0.5)


@settings(max_examples=300, deadline=None)
@given(candidates(folds=5), LOSSES, LOSSES)
def test_of_few_labels_the_fullest_within_one_error_is_accurate(
    found: list[Candidate], balanced: float, cheapest: float
) -> None:
    """On five folds: not the luckiest but the fullest near it, and a loss is taken one standard error higher."""
    chosen = choices_of(found, SearchSettings(balanced_loss=balanced, cheapest_loss=cheapest), FIVE)
    lucky = best_of(found)
    near = [c for c in found if lucky.valid_score - c.valid_score <= error(lucky, c) + 1e-12]
    fullest = max((c.compute, not c.part, c.eta, c.valid_score) for c in near)
    accurate = chosen["accuracy"]
    assert (accurate.compute, not accurate.part, accurate.eta, accurate.valid_score) == pytest.approx(fullest)
    for name, loss in (("balanced", balanced), ("cheapest", cheapest)):
        within = [c for c in found if accurate.valid_score - c.valid_score + error(accurate, c) <= loss + 1e-9]
        least = min(c.compute for c in within)
        assert chosen[name] == best_of([c for c in within if c.compute == least])  # type: ignore[index]


def test_nothing_is_lost_by_luck_alone() -> None:
    """A shallow candidate that is ahead in three folds and far behind in two is no better than the full one."""
    full = Candidate(3, 1.0, 0.7, (), Penalty(1.0), 9, 0.6, (0.6,) * 5)
    lucky = replace(full, depth=1, compute=0.3, valid_score=0.61, fold_scores=(0.5, 0.55, 0.6, 0.7, 0.7))
    assert choices_of([full, lucky], SearchSettings(), FIVE)["accuracy"] is full
    assert choices_of([full, lucky], SearchSettings(cheapest_loss=0.3), FIVE)["cheapest"] is lucky
    better = replace(lucky, fold_scores=(0.609, 0.61, 0.61, 0.61, 0.611))
    assert choices_of([full, better], SearchSettings(), FIVE)["accuracy"] is better


def test_a_candidate_says_what_it_is() -> None:
    """In plain values that JSON takes, without its logits; which no comparison looks at."""
    one = Candidate(3, 0.98765, 1 / 3, ("ffn",), Penalty(1.0, 0.02), 9, 2 / 3, (2 / 3,), (np.zeros((4, 2)),))
    assert one.describe() == {
        "depth": 3,
        "compute": 0.9877,
        "eta": 0.3333,
        "part": ["ffn"],
        "strength": 1.0,
        "l1": 0.02,
        "neurons": 9,
        "valid_score": 0.6667,
    }
    assert one == replace(one, held_out=(np.ones((4, 2)),))
    assert "held_out" not in repr(one)
