"""Choose among candidates whose neurons reveal few words: a cap on what an attacker reads back from their values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats, Rows
from spin.errors import UserError
from spin.fitted.candidate import Candidate, Subset
from spin.fitted.fitted_classifier import LeakageCap, UncappedChoice
from spin.heads.selection import Selection
from spin.integrate.frontier import (
    CandidateChoices,
    best_candidate,
    best_per_depth,
    choose_candidates,
    one_standard_error_choice,
)
from spin.integrate.search import Search
from spin.labels.cross_validation import Fold
from spin.settings import Choice

_SIZES = 128
"""numbers of neurons, at equal ratios, among which the largest within the cap is looked for"""


@dataclass(frozen=True)
class LeakageAttack:
    """An attack that reads words of documents back from the pooled values of neurons."""

    known: Rows
    """documents that the attacker knows with their values, ascending"""
    judged: Rows
    """documents that are attacked, ascending; the attacker knows none of them"""
    recover: Callable[[Floats, Floats], float]
    """returns the share of the words that is recovered, given the values of the known (n, p) and the judged (m, p)"""
    by_frequency: float
    """share that is recovered without any values, by naming the most frequent words"""


class Leakage:
    """The leakage of the neurons of candidates. Each selection is attacked once, when it is needed."""

    def __init__(self, search: Search, attack: LeakageAttack, most: float) -> None:
        self.search, self.attack, self.most = search, attack, most
        self._measured: dict[tuple[tuple[str, bytes], ...], float] = {}

    def of(self, candidate: Candidate) -> float:
        """The leakage of the neurons that a candidate reads."""
        if not candidate.reads_neurons:
            return self.attack.by_frequency
        return self.of_selection(self.search.select(candidate.subset))

    def of_selection(self, selection: Selection) -> float:
        """The leakage of a selection; the first member of a process group attacks for all."""
        key = tuple((str(column), neurons.tobytes()) for column, neurons in selection.neurons.items())
        if key not in self._measured:
            matrix, cut = self.search.matrix, self.search.cut
            known, judged = (matrix.gather(cut, selection, rows) for rows in (self.attack.known, self.attack.judged))
            share = self.attack.recover(known, judged) if matrix.group.rank == 0 else 0.0
            self._measured[key] = matrix.group.broadcast_object(share)
            self.search.progress(1)
        return self._measured[key]

    def is_above(self, candidate: Candidate) -> bool:
        """Whether a candidate leaks more than the cap allows."""
        return self.of(candidate) > self.most

    @property
    def least(self) -> float:
        """The smallest leakage of a selection so far."""
        return min(self._measured.values())


def choose_under_cap(search: Search, attack: LeakageAttack, max_leakage: float) -> CandidateChoices:
    """Choose by `choose_candidates` among the candidates of a search whose neurons leak at most `max_leakage`.

    If what would be chosen anyway leaks no more, it stays. Otherwise the search runs once more, with etas that are
    lowered to the largest within the cap. The choices are made among the candidates of both runs. Raises UserError if
    none is within the cap.
    """
    leakage, tried = Leakage(search, attack, max_leakage), list(search.tried)
    chosen = uncapped = choose_candidates(tried, search.settings, search.data.folds)
    if any(map(leakage.is_above, uncapped.values())):
        eta = _find_eta(search, leakage)
        tried += [] if eta is None else search.below(eta).run()
        chosen = _choose_within(tried, search, leakage)
    frontier = best_per_depth(leave_out(tried, best_per_depth, leakage.is_above))
    measured = {id(c): replace(c, leakage=leakage.of(c)) for c in (*chosen.values(), *frontier)}
    return CandidateChoices(
        {name: measured[id(candidate)] for name, candidate in chosen.items()},
        tuple(measured[id(candidate)] for candidate in frontier),
        len(tried),
        _describe_cap(leakage, uncapped, chosen),
    )


def leave_out(
    candidates: Sequence[Candidate],
    decisive: Callable[[Sequence[Candidate]], Iterable[Candidate]],
    is_above: Callable[[Candidate], bool],
) -> list[Candidate]:
    """The candidates without those above a cap on which a choice depends.

    `decisive` returns the candidates that decide a choice among others. The first that is above the cap is left out
    with all that read the same neurons, until none is above. A choice among what is left is then the choice among all
    candidates within the cap, although `is_above`, which may take seconds, was asked about few.
    """
    left = list(candidates)
    while left:
        above = next(filter(is_above, decisive(left)), None)
        if above is None:
            break
        left = [candidate for candidate in left if candidate.subset != above.subset]
    return left


def decisive_candidates(candidates: Sequence[Candidate], folds: Sequence[Fold]) -> Iterator[Candidate]:
    """The candidates on which `choose_candidates` depends: the best, `accuracy`, and the best of every depth.

    Without any of the others the choices would be the same.
    """
    yield best_candidate(candidates)
    yield one_standard_error_choice(candidates, folds)
    yield from best_per_depth(candidates)


def _choose_within(tried: Sequence[Candidate], search: Search, leakage: Leakage) -> dict[Choice, Candidate]:
    """The choices among the candidates within the cap. Raises UserError if there are none."""
    settings, folds = search.settings, search.data.folds
    within = leave_out(tried, lambda left: decisive_candidates(left, folds), leakage.is_above)
    if not within:
        raise UserError(
            f"search.max_leakage is {leakage.most:g}, and the neurons that leak least reveal "
            f"{100 * leakage.least:.1f} % of the words of a text; set it to {percent_above(leakage.least):g} or more, "
            "or search.words to auto, so that words can decide without neurons"
        )
    return choose_candidates(within, settings, folds)


def _find_eta(search: Search, leakage: Leakage) -> float | None:
    """About the largest eta whose selection at full depth is within the cap; None if no selection is.

    More neurons reveal more, so that bisection finds their number.
    """
    most = len(search.select(Subset(search.eta_for(search.max_neurons), search.depth)))
    sizes = np.unique(np.geomspace(1, most, _SIZES).round().astype(int)).tolist()
    etas = [search.eta_for(size) for size in sizes]
    within = bisect_right(
        etas, leakage.most, key=lambda eta: leakage.of_selection(search.select(Subset(eta, search.depth)))
    )
    return etas[within - 1] if within else None


def _describe_cap(
    leakage: Leakage, uncapped: Mapping[Choice, Candidate], chosen: Mapping[Choice, Candidate]
) -> LeakageCap:
    """The cost of the cap, compared with the choices without it."""
    attack = leakage.attack
    return LeakageCap(
        max_leakage=leakage.most,
        by_frequency=round(attack.by_frequency, 4),
        known=len(attack.known),
        judged=len(attack.judged),
        uncapped={
            name: UncappedChoice(
                leakage=round(leakage.of(candidate), 4),
                valid_score=round(candidate.valid_score, 4),
                price=round(candidate.valid_score - chosen[name].valid_score, 4),
            )
            for name, candidate in uncapped.items()
        },
    )


def percent_above(share: float) -> float:
    """The next larger share in whole percent."""
    return float(np.floor(100 * share) + 1) / 100
