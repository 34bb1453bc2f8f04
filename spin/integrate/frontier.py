"""The frontier (the best candidate of every depth), and the three choices among all candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.heads.candidate import Candidate
from spin.labels.cross_validation import Fold, standard_error
from spin.settings import Choice, SearchSettings


def best_candidate(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate with the best validation score; ties go to less compute, fewer neurons, stronger regularisation."""
    return max(candidates, key=lambda c: (c.valid_score, -c.compute, -c.neurons, -c.penalty.strength, c.penalty.l1))


def one_standard_error_choice(candidates: Sequence[Candidate], folds: Sequence[Fold]) -> Candidate:
    """The fullest candidate that is not worse than the best by more than one standard error of the difference.

    The best of many scores is partly luck, and luck favours a shallow or narrow candidate as often as a full one, which
    loses less on other data. Fuller means more compute, then words, all sites and poolings, a larger eta, a smaller L1
    penalty, a better score. Neither rule of selection is fuller than the other, so the best candidate decides it.
    """
    best = best_candidate(candidates)
    behind, error = _distances(candidates, best, folds)
    near = [c for c, is_near in zip(candidates, behind <= error, strict=True) if is_near]
    of_rule = [c for c in near if c.rule == best.rule]
    return max(of_rule, key=lambda c: (c.compute, c.blend is not None, not c.part, c.eta, -c.penalty.l1, c.valid_score))


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

    All candidates were judged on the same documents, so losses are paired differences. A loss is counted from the best
    score; with cross-validation from the score of `accuracy`, and then one standard error is added to it.
    """
    cross_validated = len(folds) > 1
    chosen: dict[Choice, Candidate] = {"accuracy": one_standard_error_choice(candidates, folds)}
    reference = chosen["accuracy"] if cross_validated else best_candidate(candidates)
    behind, error = _distances(candidates, reference, folds)
    losses = behind + cross_validated * error
    limits: dict[Choice, float] = {"balanced": settings.balanced_loss, "cheapest": settings.cheapest_loss}
    for name, limit in limits.items():
        within = [c for c, loss in zip(candidates, losses, strict=True) if loss <= limit + 1e-12]
        least = min(c.compute for c in within)
        chosen[name] = best_candidate(c for c in within if c.compute == least)
    return chosen


def _distances(
    candidates: Sequence[Candidate], reference: Candidate, folds: Sequence[Fold]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The score of a reference minus those of the candidates (C,), and the standard errors (C,) of the differences."""
    behind = np.array([reference.valid_score - c.valid_score for c in candidates])
    resampled = np.array([c.resampled for c in candidates])
    return behind, standard_error((np.array(reference.resampled) - resampled).T, folds)
