"""The frontier (the best candidate of every depth), and the three choices among all candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.fitted.candidate import Candidate
from spin.fitted.fitted_classifier import LeakageCap
from spin.labels.cross_validation import Fold, confident_margin, count_repeats, standard_error
from spin.settings import Choice, SearchSettings

_CLEARLY = 2.0
"""standard errors by which a log loss is clearly larger than another"""

Judged = tuple[float, tuple[float, ...]]
"""a score on the validation rows, and its values without each of their parts"""


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
    return min(candidates, key=lambda c: (c.valid_loss, c.compute, c.neurons, c.strength))


def one_standard_error_choice(candidates: Sequence[Candidate], folds: Sequence[Fold]) -> Candidate:
    """The fullest candidate whose log loss is not above the least by more than one standard error of the difference.

    Log loss rather than the metric compares candidates. It uses the probabilities of all documents, so that it varies
    less than a score that hangs on few documents of rare classes. The least of many losses is partly luck. Luck favours
    a shallow or narrow candidate as often as a full one, which loses less on other data. Fuller means more compute,
    then words, all sites and poolings, a larger eta, a smaller loss. Losses below that of one wrong document,
    log(n) / n for n documents, tell nothing either: where all documents are right, they hardly vary.
    """
    best, count = best_candidate(candidates), sum(len(fold.valid) for fold in folds) / count_repeats(folds)
    excess, error = _excess(candidates, best, folds)
    is_near = (excess <= error) | (excess + best.valid_loss <= np.log(count) / count)
    near = [c for c, near_best in zip(candidates, is_near, strict=True) if near_best]
    return max(near, key=lambda c: (c.compute, c.reads_words, not c.part, c.eta, -c.valid_loss))


def best_per_depth(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The best candidate of every depth, shallow first."""
    by_depth: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_depth.setdefault(candidate.depth, []).append(candidate)
    return tuple(best_candidate(by_depth[depth]) for depth in sorted(by_depth))


def choose_candidates(
    candidates: Sequence[Candidate], settings: SearchSettings, folds: Sequence[Fold]
) -> dict[Choice, Candidate]:
    """Choose `accuracy` by the one-standard-error rule, `balanced` and `cheapest` by the least compute for their loss.

    One candidate of each depth is tested, the one with the least log loss up to there, from the deepest on, and the
    first that fails ends the tests (fixed-sequence testing, Maurer et al. 1995). So the chance that a choice loses more
    of the metric than the setting allows is that of a single test; the cheapest of all candidates that pass would be
    the luckiest of hundreds. A test is passed where the loss, counted from `accuracy` on the same documents, is within
    the limit with 95 % confidence, and the log loss is not clearly larger.
    """
    accuracy = one_standard_error_choice(candidates, folds)
    cheaper = [c for c in best_per_depth(candidates) if c.compute < accuracy.compute]
    falling = [best_candidate(cheaper[:depths]) for depths in range(len(cheaper), 0, -1)]
    limits: dict[Choice, float] = {"balanced": settings.balanced_loss, "cheapest": settings.cheapest_loss}
    chosen: dict[Choice, Candidate] = {"accuracy": accuracy}
    for name, limit in limits.items():
        chosen[name] = accuracy
        for candidate in falling:
            if not _keeps(candidate, accuracy, limit, folds):
                break
            chosen[name] = candidate
    return chosen


def _keeps(candidate: Candidate, accuracy: Candidate, limit: float, folds: Sequence[Fold]) -> bool:
    """Whether a candidate loses no more of the metric than a limit, with confidence, and not clearly more log loss."""
    ours, theirs = ((of.valid_score, of.resampled) for of in (candidate, accuracy))
    excess, error = _excess([candidate], accuracy, folds)
    return keeps_limit(ours, theirs, limit) and bool(excess[0] <= _CLEARLY * error[0])


def keeps_limit(ours: Judged, accuracy: Judged, limit: float) -> bool:
    """Whether one score loses no more against another than a limit, with 95 % confidence."""
    gain = np.array(ours[1]) - np.array(accuracy[1])
    return bool(accuracy[0] - ours[0] + confident_margin(gain) <= limit + 1e-12)


def _excess(
    candidates: Sequence[Candidate], reference: Candidate, folds: Sequence[Fold]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The log loss of candidates minus that of a reference (C,), and the standard errors (C,) of the differences."""
    excess = np.array([c.valid_loss for c in candidates]) - reference.valid_loss
    resampled = np.array([c.resampled_losses for c in candidates]) - np.array(reference.resampled_losses)
    return excess, standard_error(resampled.T, folds)
