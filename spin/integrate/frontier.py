"""The best candidates per depth, and the three that are chosen from all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.heads.candidate import Candidate
from spin.labels.cross_validation import Fold, standard_error
from spin.settings import Choice, SearchSettings


def best_candidate(candidates: Iterable[Candidate]) -> Candidate:
    """The best validation score; among equals the least compute, fewer neurons, then the stronger regularisation."""
    return max(candidates, key=lambda c: (c.valid_score, -c.compute, -c.neurons, -c.penalty.strength, c.penalty.l1))


def one_standard_error_choice(candidates: Sequence[Candidate], folds: Sequence[Fold]) -> Candidate:
    """The fullest of those that are not worse than the best by more than one standard error of the difference.

    The best of many scores is the luckiest, and luck finds a shallow or a narrow candidate as easily as a full one,
    which loses less elsewhere. Full is most compute, then all sites and poolings, the largest eta, the least L1, the
    score.
    """
    behind, error = _behind(candidates, best_candidate(candidates), folds)
    near = [c for c, is_near in zip(candidates, behind <= error, strict=True) if is_near]
    return max(near, key=lambda c: (c.compute, not c.part, c.eta, -c.penalty.l1, c.valid_score))


def best_per_depth(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The best candidate of every depth, shallow first."""
    by_depth: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_depth.setdefault(candidate.depth, []).append(candidate)
    return tuple(best_candidate(by_depth[depth]) for depth in sorted(by_depth))


def choose_candidates(
    candidates: Iterable[Candidate], settings: SearchSettings, folds: Sequence[Fold]
) -> dict[Choice, Candidate]:
    """`accuracy` is the fullest near the best score; `balanced` and `cheapest` are the least compute within their loss.

    All candidates were judged on the same documents, so that the loss of one against another is a paired one. It is
    counted from the best score, or where labels are few and folds are many from that of `accuracy`, and there taken
    one standard error higher.
    """
    found = list(candidates)
    few = len(folds) > 1
    chosen: dict[Choice, Candidate] = {"accuracy": one_standard_error_choice(found, folds)}
    behind, error = _behind(found, chosen["accuracy"] if few else best_candidate(found), folds)
    losses: dict[Choice, float] = {"balanced": settings.balanced_loss, "cheapest": settings.cheapest_loss}
    for name, loss in losses.items():
        within = [c for c, worst in zip(found, behind + few * error, strict=True) if worst <= loss + 1e-12]
        least = min(c.compute for c in within)
        chosen[name] = best_candidate(c for c in within if c.compute == least)
    return chosen


def _behind(
    candidates: Sequence[Candidate], best: Candidate, folds: Sequence[Fold]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """How far candidates (C,) score behind one of them, and the standard error of that."""
    behind = np.array([best.valid_score - c.valid_score for c in candidates])
    resampled = np.array([c.resampled for c in candidates])
    return behind, standard_error((np.array(best.resampled) - resampled).T, folds)
