"""The search over eta, depth, sites, poolings, words and regularisation, judged on validation rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats
from spin.errors import UserError
from spin.fitted.candidate import Candidate, Subset
from spin.fitted.decision import apply_thresholds
from spin.fitted.fitted_classifier import TrainingResult
from spin.fitted.recipe import LastLayerRecipe
from spin.heads.calibration import fit_temperature, log_loss, log_losses
from spin.heads.design import Design
from spin.heads.feature_rows import FeatureRows
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Source, Stack, fit_stack
from spin.integrate.class_thresholds import shared_thresholds
from spin.integrate.feature_matrix import FeatureCut, FeatureMatrix, Probes, selected_standardizer
from spin.integrate.fit_linear import fit_folds
from spin.integrate.fit_network import fit_network
from spin.integrate.fit_words import WordFit
from spin.integrate.frontier import one_standard_error_choice
from spin.integrate.last_layer import HeldOut, find_last_columns, join_last_layer, select_all
from spin.labels.cross_validation import Fold, count_repeats, jackknife_rows, score_folds
from spin.labels.label_space import Targets
from spin.settings import SearchSettings
from spin.sites import FeatureColumn, Site
from spin.sparsify.probe import Probe
from spin.sparsify.ridge import RidgeImportance
from spin.sparsify.select import Ranking

_FINAL = -1
"""the place of all labelled rows after the folds"""

LEAST_SHARE = 0.01
"""share of a stack's spread below which a source adds nothing to it"""

Progress = Callable[[int], None]
"""called with the number of heads fitted since the last call"""


@dataclass(frozen=True)
class SearchStart:
    """The choices of a search over similar documents, next to which another one searches."""

    choices: tuple[tuple[Subset, float], ...]
    """the neurons of each classifier that was chosen, and the strength of its regularisation"""

    @classmethod
    def of(cls, result: TrainingResult) -> SearchStart | None:
        """The start that a result gives; None if no classifier of it reads neurons, or leakage had a cap."""
        summaries = [fitted.summary for fitted in result.choices.values() if fitted.summary.neurons]
        found = {(Subset(of.eta, of.depth, of.part), of.strength): None for of in summaries}
        return cls(tuple(found)) if found and result.cap is None else None


@dataclass(frozen=True)
class FoldSearch:
    """The design of a fold's training rows, and what heads predict of its validation rows."""

    matrix: FeatureMatrix
    cut: FeatureCut
    """holds the features of every selection"""
    probes: Probes
    """probes that have not seen the validation rows"""
    fold: Fold

    def design(self, part: Selection) -> Design:
        """The design for fitting heads on a selection."""
        return self.matrix.design(self.cut, part, self.probes, self.fold.train)

    def predict(self, part: Selection, heads: Sequence[LinearHead]) -> Floats:
        """(H, m, K) the logits of all validation rows by heads on a selection."""
        return self._predict(self._valid_features(part), heads)

    def fit_network(self, part: Selection) -> tuple[Floats, int]:
        """The validation logits (m, K) of a network on a selection, stopped by their log loss, and its epochs."""
        features, data = self._valid_features(part), self.matrix.data
        y = data.y[self.fold.valid]

        def judge(head: NetworkHead) -> float:
            [logits] = self._predict(features, [head])
            stack = fit_stack({"neurons": logits}, y, data.label_space)
            return log_loss(stack.logits({"neurons": logits}), y, data.label_space)

        network, epochs = fit_network(self.design(part), data.seed, judge=judge)
        return self._predict(features, [network])[0], epochs

    def _valid_features(self, part: Selection) -> FeatureRows:
        """The features of this process's share of the validation rows."""
        return self.cut.take(part, self.fold.valid, selected_standardizer(part, self.probes))

    def _predict(self, features: FeatureRows, heads: Sequence[LinearHead]) -> Floats:
        """(H, m, K) the logits of all validation rows."""
        return self.matrix.predict(features, heads, self.cut.positions(self.fold.valid), len(self.fold.valid))


class Search:
    """The search: every candidate that was tried, over all folds."""

    def __init__(
        self,
        matrix: FeatureMatrix,
        probes: Sequence[Probe],
        ridge: Sequence[RidgeImportance],
        settings: SearchSettings,
        compute: Mapping[Site, float],
        progress: Progress = lambda fits: None,
        words: WordFit | None = None,
        start: SearchStart | None = None,
    ) -> None:
        self.start = start
        self.matrix, self.data, self.settings = matrix, matrix.data, settings
        self.words = None if settings.words == "off" else words
        self.compute, self.progress = compute, progress
        folds = range(len(self.data.folds))
        self.fold_probes: list[Probes] = [{p.column: p.for_fold(index) for p in probes} for index in folds]
        self.final_probes: Probes = {p.column: p for p in probes}
        self.max_neurons = min(settings.max_neurons, int(settings.max_share * sum(len(p.standardizer) for p in probes)))
        self.rankings = [
            *(Ranking.of(self.fold_probes[i], {r.column: r.folds[i] for r in ridge}) for i in folds),
            Ranking.of(self.final_probes, {r.column: r.importance for r in ridge}),
        ]
        """of each fold's training rows, and at last of all labelled rows"""
        self.largest_eta = max(settings.etas)
        largest = [self.select(Subset(self.largest_eta, self.depth), index) for index in (*folds, _FINAL)]
        self.last_columns = find_last_columns(list(self.final_probes), self.data, settings)
        self._last_layers: dict[int, tuple[float, HeldOut]] = {}
        """heads on all neurons of the last layer and their strength, by depth; each fitted when it is first needed"""
        last = [select_all(column, self.final_probes) for column in self.last_columns.values()]
        self.cut = matrix.cut(Selection.merge([*largest, *last]), self.data.rows)
        """the features of every candidate, for this process's share of the rows"""
        parts = zip(self.fold_probes, self.data.folds, strict=True)
        self.folds = [FoldSearch(matrix, self.cut, probes, fold) for probes, fold in parts]
        self.repeats = count_repeats(self.data.folds)
        share_of_odds = 1.0 if self.data.class_weights == "balanced" else 0.0
        self.thresholds = shared_thresholds(self.valid_targets, self.data.label_space, share_of_odds)
        """(K,) those by which candidates are judged; they have the classes' prior log odds where all weigh the same"""
        self.tried: list[Candidate] = []

    def below(self, eta: float) -> Search:
        """The same search before it has run, with etas up to this one."""
        lowered = copy(self)
        lowered.largest_eta, lowered.tried = eta, []
        return lowered

    @property
    def depth(self) -> int:
        """The full depth."""
        return max(column.site.layer for column in self.final_probes)

    @property
    def valid_targets(self) -> Targets:
        """The targets of all folds' validation rows, one fold after the other."""
        return self.data.y[np.concatenate([fold.valid for fold in self.data.folds])]

    def select(self, subset: Subset, fold: int = _FINAL) -> Selection:
        """The selection of a subset in a fold, by default that for the final head, on all labelled rows.

        An eta that selects more than `max_share` of all neurons, or than `max_neurons`, is lowered to the largest that
        does not.
        """
        ranking = self.rankings[fold]
        selection = ranking.select(min(subset.eta, ranking.eta_for(self.max_neurons)))
        return selection.up_to(subset.depth, subset.part)

    def fold_selections(self, subset: Subset) -> list[Selection]:
        """The selection of a subset in each fold."""
        return [self.select(subset, fold) for fold in range(len(self.data.folds))]

    def run(self) -> list[Candidate]:
        """Try etas and strengths at full depth, then sites and poolings, and every depth; or what is next to a start.

        Each with and without words, and at last words alone, as the settings allow. Raises UserError if there are no
        words and no neuron varies over the training documents of a fold.
        """
        if self.start is not None:
            self._try_near(self.start)
        if not self.tried:
            self._try_etas()
            self._try_parts_and_depths()
        if self.words is not None:
            self._try_words_alone(self.words)
        if not self.tried:
            raise UserError("data: too few documents to choose neurons by cross-validation; label more of them")
        return self.tried

    def _try_near(self, start: SearchStart) -> None:
        """Try the neurons of the choices of a start, with strengths next to theirs."""
        strengths = sorted(self.settings.strengths)
        for subset, strength in start.choices:
            # the eta may have been lowered, as it is here, and reports round it
            eta = min((eta for eta in self._distinct_etas() if eta > subset.eta - 1e-4), default=self.largest_eta)
            self._try(replace(subset, eta=eta), _neighbours(strengths, strength))

    def _try_etas(self) -> None:
        """Try etas from the largest down, for as long as fewer neurons have a smaller log loss."""
        least = np.inf
        for eta in reversed(self._distinct_etas()):
            before = len(self.tried)
            self._try(Subset(eta, self.depth), sorted(self.settings.strengths))
            loss = min((candidate.valid_loss for candidate in self.tried[before:]), default=np.inf)
            if loss >= least:
                break
            least = loss

    def _try_parts_and_depths(self) -> None:
        """Try what may be as good as the best candidate at full depth: sites, poolings, every depth."""
        if not self.tried:
            return
        best, strengths = self._best(), sorted(self.settings.strengths)
        kinds = sorted({c.site.kind for c in self.final_probes})
        poolings = sorted({c.pooling for c in self.final_probes})
        for names in (kinds, poolings):
            for name in names if len(names) > 1 else ():
                self._try(replace(best.subset, depth=self.depth, part=(name,)), _neighbours(strengths, best.strength))
        best = self._best()
        # few labels hardly tell strengths apart, so that the best one stands for its neighbours
        near = [best.strength] if self.data.has_few_labels else _neighbours(strengths, best.strength)
        for shallower in range(self.depth):
            self._try(replace(best.subset, depth=shallower, part=()), near)

    def _best(self) -> Candidate:
        return one_standard_error_choice(self.tried, self.data.folds)

    def eta_for(self, most_neurons: int) -> float:
        """The largest eta that may be tried and selects at most so many neurons for the final head."""
        return min(self.largest_eta, self.rankings[_FINAL].eta_for(most_neurons))

    def _distinct_etas(self) -> list[float]:
        """The etas of the settings; those beyond `max_share`, `max_neurons` or the limit count as one."""
        top = self.eta_for(self.max_neurons)
        return sorted({min(eta, top) for eta in self.settings.etas})

    def _try(self, subset: Subset, strengths: Sequence[float]) -> None:
        """Fit and judge candidates that differ in their strength on every fold; none if they have no neuron."""
        final = self.select(subset)
        if not len(final):
            return
        deepest = max(column.site for column in final.neurons)
        subset = replace(subset, depth=deepest.layer)
        if not all(map(len, self.fold_selections(subset))):
            return
        fits = self._fit_neurons(subset, strengths)
        self.progress(len(self.folds))
        for strength, fitted in zip(strengths, fits, strict=True):
            neurons = round(float(np.mean([len(selection) for selection in fitted.selections])))
            last = [] if fitted.last_layer is None else [fitted.last_layer.column.site]
            compute = max(self.compute[site] for site in (deepest, *last))
            for stack in self._stacks(fitted.logits):
                self._add(subset, strength, neurons, compute, fitted.logits, stack)

    def _fit_neurons(self, subset: Subset, strengths: Sequence[float]) -> list[HeldOut]:
        """For each strength the heads of all folds on a subset, joined with the last layer where labels are few."""
        fits = self.fit_folds(self.fold_selections(subset), strengths)
        return [self._join_last_layer(held_out, subset.depth) for held_out in fits]

    def _join_last_layer(self, held_out: HeldOut, depth: int) -> HeldOut:
        """The heads and held-out logits averaged with those of the last layer, if it counts at this depth.

        Each is divided by its temperature first. The weights are equal: so few labels would choose them at random.
        """
        if depth not in self.last_columns:
            return held_out
        if depth not in self._last_layers:
            self._last_layers[depth] = self._fit_last_layer(self.last_columns[depth])
        strength, last = self._last_layers[depth]
        weights = 0.5 / self._fit_temperature(held_out.logits), 0.5 / self._fit_temperature(last.logits)
        both = zip(held_out.selections, held_out.heads, last.selections, last.heads, strict=True)
        selections, heads = zip(*(join_last_layer(*of_fold, weights) for of_fold in both), strict=True)
        ours, others = map(np.float32, weights)
        logits = tuple(ours * a + others * b for a, b in zip(held_out.logits, last.logits, strict=True))
        return HeldOut(logits, heads, selections, LastLayerRecipe(self.last_columns[depth], strength, weights))

    def _fit_last_layer(self, column: FeatureColumn) -> tuple[float, HeldOut]:
        """The heads of all folds on all neurons of a column, of the strength with the least held-out log loss."""
        selection, strengths = select_all(column, self.final_probes), sorted(self.settings.strengths)
        fits = self.fit_folds([selection] * len(self.folds), strengths)
        y, label_space = self.valid_targets, self.data.label_space
        losses = [
            log_loss(np.concatenate(each.logits) / self._fit_temperature(each.logits), y, label_space) for each in fits
        ]
        best = self.matrix.group.broadcast_object(int(np.argmin(losses)))
        return strengths[best], fits[best]

    def _fit_temperature(self, held_out: Sequence[Floats]) -> float:
        temperature = fit_temperature(np.concatenate(held_out), self.valid_targets, self.data.label_space, self.repeats)
        return self.matrix.group.broadcast_object(temperature)

    def fit_folds(self, selections: Sequence[Selection], strengths: Sequence[float]) -> list[HeldOut]:
        """For each strength the heads on each fold's selection, and what they predict of its validation rows."""
        folds = list(zip(self.folds, selections, strict=True))
        fitted = fit_folds((fold.design(selection) for fold, selection in folds), strengths)
        heads: list[list[LinearHead]] = []
        logits: list[Floats] = []
        for (fold, selection), of_fold in zip(folds, fitted, strict=True):
            heads.append(of_fold)
            logits.append(fold.predict(selection, of_fold))
        of_strengths = zip(zip(*logits, strict=True), zip(*heads, strict=True), strict=True)
        return [HeldOut(*of_strength, tuple(selections)) for of_strength in of_strengths]

    def held_out(self, candidate: Candidate) -> HeldOut:
        """The predictions of a candidate's neurons, fitted again, for each fold's validation rows.

        The logits are not kept while the search runs: those of all candidates would take more memory than the features.
        """
        if not candidate.reads_neurons:
            return HeldOut(self._zeros(), (), ())
        [fitted] = self._fit_neurons(candidate.subset, [candidate.strength])
        return fitted

    def _zeros(self) -> tuple[Floats, ...]:
        """The logits (m, K) of no neurons, for each fold's validation rows."""
        classes = len(self.data.label_space)
        return tuple(np.zeros((len(fold.valid), classes), np.float32) for fold in self.data.folds)

    def _try_words_alone(self, words: WordFit) -> None:
        """Judge the word regression without neurons."""
        stack = self.fit_stack({"words": np.concatenate(words.held_out)})
        self._add(Subset(0.0, 0), words.strength, 0, 0.0, self._zeros(), stack)

    def _stacks(self, held_out: Sequence[Floats]) -> list[Stack]:
        """The stacks of held-out logits of neurons: without the words, and with them.

        Where the neurons add nothing to the words, it is the words alone that are a candidate. Words that add nothing
        to the neurons are left out even where `search.words` is `on`.
        """
        alone = self.fit_stack(self.sources(held_out, words=False))
        if self.words is None:
            return [alone]
        sources = self.sources(held_out, words=True)
        both = self.fit_stack(sources)
        tell = {source: both.share(source, sources) > LEAST_SHARE for source in sources}
        tell = self.matrix.group.broadcast_object(tell)
        without = [alone] if self.settings.words != "on" or not tell["words"] else []
        return [*without, both] if all(tell.values()) else without

    def sources(self, held_out: Sequence[Floats], *, words: bool) -> dict[Source, Floats]:
        """The logits (n, K) of the neurons, and of the words if they count, for all folds' validation rows."""
        sources: dict[Source, Floats] = {"neurons": np.concatenate(held_out)}
        if words:
            assert self.words is not None
            sources["words"] = np.concatenate(self.words.held_out)
        return sources

    def fit_stack(self, sources: Mapping[Source, Floats]) -> Stack:
        """The stack of the logits (n, K) of all folds' validation rows, the same for all members of the group."""
        stack = fit_stack(sources, self.valid_targets, self.data.label_space, self.repeats)
        return self.matrix.group.broadcast_object(stack)

    def _add(
        self,
        subset: Subset,
        strength: float,
        neurons: int,
        compute: float,
        held_out: Sequence[Floats],
        stack: Stack,
    ) -> None:
        """Judge a candidate by the held-out logits of its neurons, stacked, and keep it."""
        logits = stack.logits(self.sources(held_out, words=stack.words > 0))
        losses = self.losses(logits)
        valid_score, resampled = self.judge(logits)
        candidate = Candidate(
            subset.eta,
            subset.depth,
            subset.part,
            compute=compute,
            strength=strength,
            neurons=neurons,
            valid_score=valid_score,
            stack=stack,
            resampled=resampled,
            valid_loss=float(np.mean([fold_losses.mean() for fold_losses in losses])),
            resampled_losses=self._resample_losses(losses),
        )
        self.tried.append(self.matrix.group.broadcast_object(candidate))

    def judge(self, logits: Floats) -> tuple[float, tuple[float, ...]]:
        """The metric on the validation rows by their logits (n, K) and common thresholds, and its resampled values.

        Thresholds per class are chosen for the chosen candidates only: on so many candidates they would add luck.
        """
        probabilities = self.data.label_space.probabilities(logits)
        predicted = apply_thresholds(self.data.label_space, probabilities, self.thresholds)
        return score_folds(self.data.metric, self.valid_targets, predicted, self.data.folds, self.data.groups)

    def losses(self, logits: Floats) -> list[Floats]:
        """The log loss of every validation row of each fold, by calibrated logits (n, K)."""
        losses = log_losses(logits, self.valid_targets, self.data.label_space)
        return np.split(losses, np.cumsum([len(fold.valid) for fold in self.data.folds])[:-1])

    def _resample_losses(self, losses: Sequence[Floats]) -> tuple[float, ...]:
        """The mean loss of each fold, or with a single fold that without each of its parts."""
        if len(losses) > 1:
            return tuple(float(of_fold.mean()) for of_fold in losses)
        [of_rows], [fold], groups = losses, self.data.folds, self.data.groups
        parts = jackknife_rows(len(of_rows), None if groups is None else groups[fold.valid])
        return tuple(float(of_rows[rows].mean()) for rows in parts)


def most_fits(
    settings: SearchSettings, columns: Sequence[FeatureColumn], folds: int, start: SearchStart | None = None
) -> int:
    """The largest number of fits that a search can make, as `progress` counts them."""
    if start is not None:
        return len(start.choices) * folds
    depth = max(column.site.layer for column in columns)
    parts = {column.site.kind for column in columns} | {column.pooling for column in columns}
    # every eta, every depth, each kind of site and each pooling
    fits = (len(settings.etas) + depth + len(parts)) * folds
    # under a cap a second search, and attacks: some that lower eta, one per depth
    return fits if settings.max_leakage is None else 2 * fits + 8 + depth


def _neighbours(grid: Sequence[float], value: float) -> Sequence[float]:
    index = grid.index(value)
    return grid[max(0, index - 1) : index + 2]
