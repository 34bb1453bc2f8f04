"""The search over eta, depth, sites, poolings and head regularisation, judged on validation rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.calibration import log_loss
from spin.heads.candidate import Candidate
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.integrate.feature_matrix import FeatureMatrix, Probes
from spin.integrate.fit_linear import fit_linear
from spin.integrate.fit_mlp import fit_mlp
from spin.integrate.frontier import one_standard_error_choice
from spin.labels.cross_validation import Fold, jackknife_rows
from spin.labels.metrics import score
from spin.settings import SearchSettings
from spin.sites import Site
from spin.sparsify.probe import Probe
from spin.sparsify.select import largest_eta, select

Progress = Callable[[int], None]
"""called with the number of heads fitted since the last call"""


class FoldSearch:
    """One fold's training and validation rows of the largest selection, read once; heads are fitted on parts of it."""

    def __init__(self, matrix: FeatureMatrix, probes: Probes, largest: Selection, fold: Fold) -> None:
        self.largest, self.label_space = largest, matrix.data.label_space
        self.valid_y = matrix.data.y[fold.valid]
        self.design = matrix.design(largest, probes, fold.train)
        self.valid_X = matrix.standardized(largest, probes, fold.valid)

    def fit(self, part: Selection, penalties: Sequence[Penalty]) -> list[tuple[LinearHead, Floats]]:
        """Fit one head per penalty on a part of the largest selection; each with its validation logits (m, K)."""
        positions = part.positions_in(self.largest)
        heads = fit_linear(self.design.part(positions), penalties)
        valid_X = self.valid_X[:, positions]
        return [(head, head.logits(valid_X)) for head in heads]

    def fit_mlp(self, part: Selection, penalty: Penalty, seed: int) -> tuple[Floats, int]:
        """The validation logits (m, K) of an MLP head that these rows stop, and its number of steps."""
        positions = part.positions_in(self.largest)
        [(linear, _)] = self.fit(part, [penalty])
        valid_X = self.valid_X[:, positions]

        def judge(head: MlpHead) -> float:
            return log_loss(head.logits(valid_X), self.valid_y, self.label_space)

        head, steps = fit_mlp(linear, self.design.part(positions), penalty.strength, seed=seed, judge=judge)
        return head.logits(valid_X), steps


class Search:
    """The search: every candidate that was tried, over all folds."""

    def __init__(
        self,
        matrix: FeatureMatrix,
        probes: Sequence[Probe],
        settings: SearchSettings,
        compute: Mapping[Site, float],
        progress: Progress = lambda fits: None,
    ) -> None:
        self.matrix, self.data, self.settings = matrix, matrix.data, settings
        self.compute, self.progress = compute, progress
        folds = self.data.folds
        self.fold_probes: list[Probes] = [{p.column: p.for_fold(i) for p in probes} for i in range(len(folds))]
        self.final_probes: Probes = {p.column: p for p in probes}
        self.max_neurons = int(settings.max_share * sum(len(p.standardizer) for p in probes))
        self.folds = [
            FoldSearch(matrix, own, self.select(max(settings.etas), own), fold)
            for own, fold in zip(self.fold_probes, folds, strict=True)
        ]
        self.tried: list[Candidate] = []

    def select(self, eta: float, probes: Probes) -> Selection:
        """Select the neurons of an eta, or of the largest eta that keeps no more than `max_share` of all neurons."""
        return select(probes.values(), min(eta, largest_eta(probes.values(), self.max_neurons)))

    def run(self) -> list[Candidate]:
        """Try eta and strength at full depth, then sites and poolings, every depth, and the L1 penalty.

        Raises UserError if cross-validation leaves no probe with a neuron.
        """
        depth = max(column.site.layer for column in self.final_probes)
        strengths = sorted(self.settings.strengths)
        for eta in self._distinct_etas():
            self._try(eta, depth, (), [Penalty(strength) for strength in strengths])
        if not self.tried:
            raise UserError("data: too few documents to choose neurons by cross-validation; label more of them")
        best = self._best()
        neighbours = [Penalty(strength) for strength in _neighbours(strengths, best.penalty.strength)]
        kinds = sorted({c.site.kind for c in self.final_probes})
        poolings = sorted({c.pooling for c in self.final_probes})
        for names in (kinds, poolings):
            for name in names if len(names) > 1 else ():
                self._try(best.eta, depth, (name,), neighbours)
        best = self._best()
        for shallower in range(depth):
            for part in dict.fromkeys([(), best.part]):  # in the same order for the whole group
                self._try(best.eta, shallower, part, neighbours)
        best = self._best()
        sparser = [Penalty(best.penalty.strength, l1) for l1 in self.settings.l1]
        self._try(best.eta, best.depth, best.part, sparser)
        return self.tried

    def _best(self) -> Candidate:
        return one_standard_error_choice(self.tried, self.data.folds)

    def _distinct_etas(self) -> list[float]:
        """The etas of the settings; those beyond `max_share` count as one."""
        top = largest_eta(self.final_probes.values(), self.max_neurons)
        return sorted({min(eta, top) for eta in self.settings.etas})

    def _try(self, eta: float, depth: int, part: tuple[str, ...], penalties: Sequence[Penalty]) -> None:
        """Fit and judge candidates that differ in their penalty on every fold; none if they have no neuron."""
        every = [*self.fold_probes, self.final_probes]
        if not penalties or any(not len(self.selection(eta, depth, part, probes)) for probes in every):
            return
        fits = []
        for probes, fold in zip(self.fold_probes, self.folds, strict=True):
            fits.append(fold.fit(self.selection(eta, depth, part, probes), penalties))
            self.progress(1)
        deepest = max(column.site for column in self.selection(eta, depth, part, self.final_probes).neurons)
        for index, penalty in enumerate(penalties):
            heads, logits = zip(*(of_fold[index] for of_fold in fits), strict=True)
            scores = self.judge(logits)
            candidate = Candidate(
                depth=deepest.layer,
                compute=self.compute[deepest],
                eta=eta,
                part=part,
                penalty=penalty,
                neurons=round(float(np.mean([head.coef.any(0).sum() for head in heads]))),
                valid_score=float(np.mean(scores)),
                resampled=self._resampled(scores, logits),
                held_out=logits,
            )
            self.tried.append(self.matrix.group.broadcast_object(candidate))

    def selection(self, eta: float, depth: int, part: tuple[str, ...], probes: Probes) -> Selection:
        """The selection of an eta within a depth, only of the kinds or poolings in `part` if there are any."""
        return self.select(eta, probes).part(depth, part)

    def judge(self, held_out: Sequence[Floats]) -> tuple[float, ...]:
        """The metric on the validation rows of each fold, by their logits (m, K)."""
        predicted = [self.data.label_space.predict(logits) for logits in held_out]
        return tuple(
            score(self.data.metric, fold.valid_y, answers) for fold, answers in zip(self.folds, predicted, strict=True)
        )

    def _resampled(self, scores: tuple[float, ...], held_out: Sequence[Floats]) -> tuple[float, ...]:
        """The scores per fold, or with a single fold without each of its parts."""
        if len(scores) > 1:
            return scores
        y, predicted = self.folds[0].valid_y, self.data.label_space.predict(held_out[0])
        return tuple(score(self.data.metric, y[rows], predicted[rows]) for rows in jackknife_rows(len(y)))


def _neighbours(grid: Sequence[float], value: float) -> Sequence[float]:
    index = grid.index(value)
    return grid[max(0, index - 1) : index + 2]
