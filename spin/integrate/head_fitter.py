"""Fit the heads of a classifier on given rows, by recipes in which all choices have been made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spin.arrays import Floats, Rows
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import ChoiceSummary, ExitSummary, FittedClassifier, TrainingResult
from spin.fitted.recipe import ClassifierRecipe, ExitRecipe, HeadRecipe, LastLayerRecipe
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Source, Stack, fit_stack
from spin.integrate.feature_matrix import FeatureCut, FeatureMatrix, Probes, ReadSelection, selected_standardizer
from spin.integrate.fit_linear import fit_linear
from spin.integrate.fit_network import fit_network
from spin.integrate.fit_words import WordFit
from spin.integrate.last_layer import join_last_layer, select_all
from spin.labels.standardizer import Standardizer
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.sites import BY_WORDS
from spin.sparsify.probe import Probe


@dataclass(frozen=True)
class FittedHead:
    """The heads on neurons alone, before they are stacked."""

    selection: Selection
    standardizer: Standardizer
    head: LinearHead
    network: NetworkHead | None = None


@dataclass(frozen=True)
class HeldBack:
    """Labelled rows on which no head is fitted."""

    rows: Rows
    """ascending"""
    words: Floats | None = None
    """(n, K) their logits by the word regression; None if no head reads words"""


@dataclass(frozen=True)
class HeadFitter:
    """Fits heads on the neurons of a cut, over some of its rows."""

    matrix: FeatureMatrix
    cut: FeatureCut
    probes: Probes
    rows: Rows
    word_scale: Floats | None
    """(K,) the scale of the words' logits, in which drift measures them; None without words"""
    held_back: HeldBack | None = None
    """rows that calibrate the heads; without them heads keep the stacks of their recipes"""
    held_back_cut: FeatureCut | None = None
    """the features of these rows"""

    def fit(self, selection: Selection, recipe: HeadRecipe) -> FittedHead:
        """The head on a selection without words."""
        if not selection.neurons:
            classes = len(self.matrix.data.label_space)
            nothing = LinearHead(np.zeros((classes, 0), np.float32), np.zeros(classes, np.float32))
            return FittedHead(selection, Standardizer.concatenate([]), nothing)
        standardizer = selected_standardizer(selection, self.probes)
        design = self.matrix.design(self.cut, selection, self.probes, self.rows)
        [head] = fit_linear(design, [recipe.strength])
        if recipe.last_layer is not None:
            return self._join_last_layer(selection, head, recipe.last_layer)
        network = None
        if recipe.epochs:
            network, _ = fit_network(design, self.matrix.data.seed, epochs=recipe.epochs)
        return FittedHead(selection, standardizer, head, network)

    def _join_last_layer(self, selection: Selection, head: LinearHead, recipe: LastLayerRecipe) -> FittedHead:
        """A head on a selection, with one on the last layer."""
        last = select_all(recipe.column, self.probes)
        [last_head] = fit_linear(self.matrix.design(self.cut, last, self.probes, self.rows), [recipe.strength])
        joined, joined_head = join_last_layer(selection, head, last, last_head, recipe.weights)
        return FittedHead(joined, selected_standardizer(joined, self.probes), joined_head)

    def finish(self, fitted: FittedHead, recipe: ClassifierRecipe, summary: ChoiceSummary) -> FittedClassifier:
        """The classifier of a head that `fit` returned: with its exits, with the words, and calibrated."""
        word_scale = self.word_scale if recipe.head.stack.words else None
        stack, shares = self._fit_stack(recipe.head.stack, fitted)
        exits = self._fit_exits(fitted.selection, recipe.exits, word_scale)
        recipe = ClassifierRecipe(replace(recipe.head, stack=stack), tuple(exits))
        selection, standardizer = fitted.selection, fitted.standardizer
        if word_scale is not None:
            selection = selection.join_words(len(self.matrix.data.label_space))
            standardizer = standardizer.join_words(word_scale)
        summaries = tuple(
            ExitSummary(depth=exit.depth, threshold=round(exit.threshold, 4), valid_share=round(exit.valid_share, 4))
            for exit in exits
        )
        return FittedClassifier(
            selection,
            standardizer,
            stack.join(fitted.head, network=fitted.network, word_scale=word_scale),
            summary.model_copy(
                update={"neurons": len(fitted.selection), "exits": summaries, "shares": shares or summary.shares}
            ),
            tuple(EarlyExit(exit.depth, head, exit.threshold) for exit, head in exits.items()),
            recipe,
        )

    def _fit_stack(self, stack: Stack, fitted: FittedHead) -> tuple[Stack, dict[Source, float]]:
        """The stack of the same sources by what the rows that were held back show, and their shares in it.

        Without such rows it is the given one, without shares.
        """
        if self.held_back is None or self.held_back_cut is None:
            return stack, {}
        rows, sources = self.held_back.rows, dict[Source, Floats]()
        features = self.held_back_cut.take(fitted.selection, rows, fitted.standardizer)
        own = self.held_back_cut.positions(rows)
        heads: dict[Source, LinearHead | None] = {"neurons": fitted.head, "network": fitted.network}
        for source, head in heads.items():
            if head is not None and stack.weight(source):
                [sources[source]] = self.matrix.predict(features, [head], own, len(rows))
        if stack.words:
            assert self.held_back.words is not None, "a head that reads words needs those of the rows held back"
            sources["words"] = self.held_back.words
        if not sources:
            return stack, {}
        y, label_space = self.matrix.data.y[rows], self.matrix.data.label_space
        stack = self.matrix.group.broadcast_object(fit_stack(sources, y, label_space))
        return stack, {source: round(stack.share(source, sources), 4) for source in sources}

    def _fit_exits(
        self, selection: Selection, recipes: Sequence[ExitRecipe], word_scale: Floats | None
    ) -> dict[ExitRecipe, LinearHead]:
        """The heads of the exits, each on the part of the selection that its blocks compute.

        An exit must read something that those before it do not, or it is left out. That by words has the word
        regression's logits as its own, and reads no neurons. With a `word_scale` (K,) the others read words too.
        """
        heads: dict[ExitRecipe, LinearHead] = {}
        features = 0
        for recipe in recipes:
            if recipe.depth == BY_WORDS:
                classes = len(self.matrix.data.label_space)
                nothing = LinearHead(np.zeros((classes, 0), np.float32), np.zeros(classes, np.float32))
                heads[recipe] = recipe.head.stack.join(nothing, word_scale=np.ones(classes, np.float32))
                continue
            part = selection.up_to(recipe.depth)
            if len(part) > features:
                features = len(part)
                design = self.matrix.design(self.cut, part, self.probes, self.rows)
                [head] = fit_linear(design, [recipe.head.strength])
                alone = FittedHead(part, selected_standardizer(part, self.probes), head)
                stack, _ = self._fit_stack(recipe.head.stack, alone)
                calibrated = replace(recipe, head=replace(recipe.head, stack=stack))
                heads[calibrated] = stack.join(head, word_scale=word_scale)
        return heads


def refit(
    result: TrainingResult,
    probes: Sequence[Probe],
    read: ReadSelection,
    data: TrainingData,
    words: WordFit | None = None,
    group: ProcessGroup | None = None,
    held_back: HeldBack | None = None,
) -> TrainingResult:
    """The classifiers of a result with all heads fitted again, on all rows of `data` instead of a sample of them.

    Nothing is chosen again: neurons, strengths, exits and thresholds are those of the result. Heads of more rows are
    more certain, so rows that were `held_back` from `data` calibrate them, and a margin means what it did when the
    thresholds were chosen; without such rows the stacks are those of the result. `read` returns the raw activations of
    the neurons of any of the classifiers.
    """
    matrix, rows = FeatureMatrix(read, data, group or ProcessGroup()), data.all_rows
    selections = {choice: replace(fitted.selection, word_logits=0) for choice, fitted in result.choices.items()}
    merged, scale = Selection.merge(selections.values()), None if words is None else words.scale
    cut, held_back_cut = matrix.cut(merged, rows), None if held_back is None else matrix.cut(merged, held_back.rows)
    fitter = HeadFitter(matrix, cut, {p.column: p for p in probes}, rows, scale, held_back, held_back_cut)
    distinct: dict[int, FittedClassifier] = {}
    for choice, fitted in result.choices.items():
        if id(fitted) not in distinct:
            assert fitted.recipe is not None
            head = fitter.fit(selections[choice], fitted.recipe.head)
            distinct[id(fitted)] = fitter.finish(head, fitted.recipe, fitted.summary)
    choices = {choice: distinct[id(fitted)] for choice, fitted in result.choices.items()}
    return replace(result, choices=choices)
