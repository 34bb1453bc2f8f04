"""The frontier (the best candidate of every depth), and the three choices among all candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.heads.candidate import Candidate
from spin.heads.fitted import LeakageCap
from spin.labels.cross_validation import Fold, standard_error
from spin.settings import Choice, SearchSettings

_CLEARLY = 2.0
"""standard errors by which a log loss is clearly larger than another"""
_Figure = Callable[[Candidate], tuple[float, Sequence[float]]]
"""returns a figure of a candidate and its resampled values"""


@dataclass(frozen=True)
class CandidateChoices:
    """The choices among the candidates. Under a cap on leakage, the leakage of each is measured."""

    choices: dict[Choice, Candidate]
    frontier: tuple[Candidate, ...]
    """the best candidate of every depth that has one, shallow first"""
    tried: int
    """number of candidates that were judged"""
    cap: LeakageCap | None = None


def best_candidate(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate with the least log loss; ties go to less compute, fewer neurons, stronger regularisation."""
    return min(candidates, key=lambda c: (c.valid_loss, c.compute, c.neurons, c.penalty.strength, -c.penalty.l1))


def one_standard_error_choice(candidates: Sequence[Candidate], folds: Sequence[Fold]) -> Candidate:
    """The fullest candidate whose log loss is not above the least by more than one standard error of the difference.

    Log loss rather than the metric compares candidates. It uses the probabilities of all documents, so that it varies
    less than a score that hangs on few documents of rare classes. The least of many losses is partly luck. Luck favours
    a shallow or narrow candidate as often as a full one, which loses less on other data. Fuller means more compute,
    then words, all sites and poolings, a larger eta, a smaller L1 penalty, a smaller loss. Neither rule of selection is
    fuller than the other, so the best candidate decides it.
    """
    best = best_candidate(candidates)
    excess, error = _excess(candidates, best, folds, _loss)
    near = [c for c, is_near in zip(candidates, excess <= error, strict=True) if is_near and c.rule == best.rule]
    return max(near, key=lambda c: (c.compute, c.blend is not None, not c.part, c.eta, -c.penalty.l1, -c.valid_loss))


def best_per_depth(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The best candidate of every depth, shallow first."""
    by_depth: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_depth.setdefault(candidate.depth, []).append(candidate)
    return tuple(best_candidate(by_depth[depth]) for depth in sorted(by_depth))


def is_clearly_worse(candidate: Candidate, best: Candidate, folds: Sequence[Fold]) -> bool:
    """Whether a log loss is above that of the best candidate by more than two standard errors of the difference."""
    excess, error = _excess([candidate], best, folds, _loss)
    return bool(excess[0] > _CLEARLY * error[0])


def choose_candidates(
    candidates: Sequence[Candidate], settings: SearchSettings, folds: Sequence[Fold]
) -> dict[Choice, Candidate]:
    """Choose `accuracy` by the one-standard-error rule, `balanced` and `cheapest` by the least compute for their loss.

    A candidate that computes less must not lose more of the metric than the setting allows. The loss is counted from
    `accuracy` on the same documents, with cross-validation one standard error included. Nor may its log loss be clearly
    larger, since a metric can be good by luck.
    """
    accuracy = one_standard_error_choice(candidates, folds)
    gain, error = _excess(candidates, accuracy, folds, _score)
    lost = -gain + (len(folds) > 1) * error
    excess, loss_error = _excess(candidates, accuracy, folds, _loss)
    sound = excess <= _CLEARLY * loss_error
    chosen: dict[Choice, Candidate] = {"accuracy": accuracy}
    limits: dict[Choice, float] = {"balanced": settings.balanced_loss, "cheapest": settings.cheapest_loss}
    for name, limit in limits.items():
        within = [c for c, is_within in zip(candidates, sound & (lost <= limit + 1e-12), strict=True) if is_within]
        least = min(c.compute for c in within)
        chosen[name] = best_candidate(c for c in within if c.compute == least)
    return chosen


def _excess(
    candidates: Sequence[Candidate], reference: Candidate, folds: Sequence[Fold], figure: _Figure
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """A figure of the candidates minus that of a reference (C,), and the standard errors (C,) of the differences."""
    values, resampled = zip(*map(figure, candidates), strict=True)
    value, of_reference = figure(reference)
    return np.array(values) - value, standard_error((np.array(resampled) - np.array(of_reference)).T, folds)


def _score(candidate: Candidate) -> tuple[float, Sequence[float]]:
    return candidate.valid_score, candidate.resampled


def _loss(candidate: Candidate) -> tuple[float, Sequence[float]]:
    return candidate.valid_loss, candidate.resampled_losses
