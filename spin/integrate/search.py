"""The search over eta, depth, sites, poolings and head strength, judged on validation rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.errors import UserError
from spin.heads.calibration import log_loss
from spin.heads.candidate import Candidate
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.integrate.fit_linear import Design, fit_linear
from spin.integrate.fit_mlp import fit_mlp
from spin.integrate.frontier import one_standard_error_choice
from spin.labels.cross_validation import Fold, leaving_out
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score
from spin.process_group import ProcessGroup
from spin.settings import SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe, balance, signs
from spin.sparsify.select import alignment, largest_eta, select, standardization

Probes = Mapping[FeatureColumn, Probe]
Read = Callable[[Selection, Rows], Floats]
"""the raw activations (m, p) of a selection for some rows"""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class TrainingData:
    """What every head is fitted on and judged by."""

    read: Read
    y: Targets
    """of all rows"""
    rows: Rows
    """that are labelled to train and to validate; no other is looked at"""
    label_space: LabelSpace
    metric: str
    class_weights: str
    group: ProcessGroup
    device: str = "cpu"
    weigh_sites: bool = True
    """whether sites speak as loudly as their probes' scores say; from few documents those are noise"""

    def standard(self, selection: Selection, probes: Probes, rows: Rows) -> Floats:
        """(m, p) the features of some rows, standardised as the probes' training rows were."""
        mean, scale = standardization(selection, probes)
        return (self.read(selection, rows).astype(np.float32) - mean) / scale

    def design(self, selection: Selection, probes: Probes, rows: Rows) -> Design:
        """This member's share of some rows to fit a head on, the features aligned."""
        mine = slice(self.group.rank, None, self.group.size)
        has = self.label_space.indicator(self.y[rows])
        return Design(
            self.standard(selection, probes, rows[mine]),
            has[mine],
            row_weights(has, self.class_weights, self.label_space)[mine],
            alignment(selection, probes, self.floor if self.weigh_sites else None),
            not self.label_space.multilabel,
            self.group,
            self.device,
        )

    @cached_property
    def floor(self) -> float:
        """The metric of the best constant answer: that of knowing nothing of a text."""
        answers = (False, True) if self.label_space.multilabel else range(len(self.label_space))
        y = self.y[self.rows]
        return max(score(self.metric, y, np.full_like(y, answer)) for answer in answers)


class FoldSearch:
    """One fold's training and validation rows of the largest selection, read once; heads are fitted on its parts."""

    def __init__(self, material: TrainingData, probes: Probes, largest: Selection, fold: Fold) -> None:
        self.largest, self.label_space, self.valid_y = largest, material.label_space, material.y[fold.valid]
        self.design = material.design(largest, probes, fold.train)
        self.valid_X = material.standard(largest, probes, fold.valid)

    def fit(self, part: Selection, penalties: Sequence[Penalty]) -> list[tuple[LinearHead, Floats]]:
        """A head a penalty on a part of the largest selection, and its logits on the validation rows."""
        where = part.within(self.largest)
        heads = fit_linear(self.design.part(where), penalties)
        valid_X = self.valid_X[:, where]
        return [(head, head.logits(valid_X)) for head in heads]

    def bend(self, part: Selection, penalty: Penalty, seed: int) -> tuple[Floats, int]:
        """The logits on the validation rows of the mlp head that these rows stop, and its steps."""
        where = part.within(self.largest)
        [(linear, _)] = self.fit(part, [penalty])
        valid_X = self.valid_X[:, where]

        def judge(head: MlpHead) -> float:
            return log_loss(head.logits(valid_X), self.valid_y, self.label_space)

        head, steps = fit_mlp(linear, self.design.part(where), penalty.strength, seed=seed, judge=judge)
        return head.logits(valid_X), steps


class Search:
    """Every candidate that was tried, over all folds."""

    def __init__(
        self,
        material: TrainingData,
        probes: Sequence[Probe],
        folds: Sequence[Fold],
        settings: SearchSettings,
        flops: Mapping[Site, float],
        progress: Progress = lambda fits: None,
    ) -> None:
        self.material, self.folds, self.settings = material, folds, settings
        self.compute, self.progress = flops, progress
        self.of_fold: list[Probes] = [{p.column: p.of_fold(i) for p in probes} for i in range(len(folds))]
        self.final: Probes = {p.column: p for p in probes}
        self.count = int(settings.max_share * sum(len(p.mean) for p in probes))
        self.parts = [
            FoldSearch(material, mine, self.select(max(settings.etas), mine), fold)
            for mine, fold in zip(self.of_fold, folds, strict=True)
        ]
        self.tried: list[Candidate] = []

    def select(self, eta: float, probes: Probes) -> Selection:
        """The neurons of an eta, or of the largest one that keeps no more than `max_share`."""
        return select(probes.values(), min(eta, largest_eta(probes.values(), self.count)))

    def run(self) -> list[Candidate]:
        """All candidates: eta and strength at full depth, sites and poolings, every depth, and the L1 part."""
        depth = max(column.site.layer for column in self.final)
        strengths = sorted(self.settings.strengths)
        for eta in self._distinct_etas():
            self._try(eta, depth, (), [Penalty(strength) for strength in strengths])
        if not self.tried:
            raise UserError("data: too few documents to choose neurons by cross-validation; label more of them")
        best = one_standard_error_choice(self.tried, self.folds)
        around = [Penalty(strength) for strength in _neighbours(strengths, best.penalty.strength)]
        kinds = sorted({c.site.kind for c in self.final})
        poolings = sorted({c.pooling for c in self.final})
        for names in (kinds, poolings):
            for name in names if len(names) > 1 else ():
                self._try(best.eta, depth, (name,), around)
        best = one_standard_error_choice(self.tried, self.folds)
        for shallower in range(depth):
            for part in dict.fromkeys([(), best.part]):  # in one order for the whole team
                self._try(best.eta, shallower, part, around)
        best = one_standard_error_choice(self.tried, self.folds)
        sparser = [Penalty(best.penalty.strength, l1) for l1 in self.settings.l1]
        self._try(best.eta, best.depth, best.part, sparser)
        return self.tried

    def _distinct_etas(self) -> list[float]:
        """The etas of the settings, those beyond `max_share` as one."""
        top = largest_eta(self.final.values(), self.count)
        return sorted({min(eta, top) for eta in self.settings.etas})

    def _try(self, eta: float, depth: int, part: tuple[str, ...], penalties: Sequence[Penalty]) -> None:
        """Fit and judge one group of candidates on every fold; nothing where it has no neuron."""
        if not penalties or any(not len(self.selection(eta, depth, part, probes)) for probes in self._all()):
            return
        found = []
        for probes, fold in zip(self.of_fold, self.parts, strict=True):
            found.append(fold.fit(self.selection(eta, depth, part, probes), penalties))
            self.progress(1)
        deepest = max(column.site for column in self.selection(eta, depth, part, self.final).neurons)
        for index, penalty in enumerate(penalties):
            heads, logits = zip(*(of_fold[index] for of_fold in found), strict=True)
            scores = self.judge(logits)
            candidate = Candidate(
                deepest.layer,
                self.compute[deepest],
                eta,
                part,
                penalty,
                round(float(np.mean([head.coef.any(0).sum() for head in heads]))),
                float(np.mean(scores)),
                self._resampled(scores, logits),
                logits,
            )
            self.tried.append(self.material.group.broadcast_object(candidate))

    def selection(self, eta: float, depth: int, part: tuple[str, ...], probes: Probes) -> Selection:
        return self.select(eta, probes).part(depth, part)

    def judge(self, held_out: Sequence[Floats]) -> tuple[float, ...]:
        """The metric on the validation rows of each fold."""
        predicted = [self.material.label_space.predict(logits) for logits in held_out]
        return tuple(
            score(self.material.metric, fold.valid_y, answers)
            for fold, answers in zip(self.parts, predicted, strict=True)
        )

    def _resampled(self, scores: tuple[float, ...], held_out: Sequence[Floats]) -> tuple[float, ...]:
        if len(scores) > 1:
            return scores
        y, answers = self.parts[0].valid_y, self.material.label_space.predict(held_out[0])
        return tuple(score(self.material.metric, y[rows], answers[rows]) for rows in leaving_out(len(y)))

    def _all(self) -> list[Probes]:
        return [*self.of_fold, self.final]


def row_weights(has: NDArray[np.bool_], kind: str, label_space: LabelSpace) -> Floats:
    """(n, 1) or (n, K), each column summing to 1: all alike, or each class, or in a multi-label task side, alike."""
    if kind == "none":
        return np.full((len(has), 1), 1 / len(has), np.float32)
    if label_space.multilabel:
        return np.ascontiguousarray(balance(signs(has, label_space), kind).T)
    return (has / (has.sum(0).clip(1) * has.any(0).sum())).sum(1, keepdims=True).astype(np.float32)


def _neighbours(grid: Sequence[float], value: float) -> Sequence[float]:
    at = grid.index(value)
    return grid[max(0, at - 1) : at + 2]
