"""Integrate: search over the probes' neurons, then fit the chosen calibrated heads on all labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from spin.arrays import Floats
from spin.errors import UserError
from spin.heads.blend import Blend
from spin.heads.calibration import Calibration, calibration_error, fit_calibration, log_loss
from spin.heads.candidate import Candidate
from spin.heads.decision import Decision
from spin.heads.early_exit import find_stops
from spin.heads.fitted import ChoiceSummary, FittedClassifier, TrainingResult
from spin.heads.head import Head
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.recipe import ClassifierRecipe, ExitRecipe, HeadRecipe, LastLayerRecipe
from spin.heads.registry import other_heads
from spin.heads.selection import Selection
from spin.integrate.bootstrap import bootstrap_p_value
from spin.integrate.class_thresholds import choose_class_thresholds
from spin.integrate.exit_thresholds import (
    PASSING_COST,
    READING_COST,
    WORDS_COST,
    choose_exit_thresholds,
    offered_depths,
)
from spin.integrate.feature_matrix import FeatureMatrix, ReadSelection
from spin.integrate.fit_words import WordFit
from spin.integrate.frontier import CandidateChoices, best_per_depth, choose_candidates
from spin.integrate.head_fitter import HeadFitter
from spin.integrate.last_layer import HeldOut
from spin.integrate.leakage import LeakageAttack, choose_under_cap
from spin.integrate.search import Progress, Search
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, Choice, DecisionSettings, SearchSettings
from spin.sites import BY_WORDS, Site
from spin.sparsify.probe import Probe
from spin.sparsify.ridge import RidgeImportance

SIGNIFICANT = 0.05
"""p-value below which `head: auto` takes another head than the linear one"""


@threadpool_limits.wrap(limits=1, user_api="blas")  # L-BFGS's vectors are too short for more; products are torch's
def integrate(
    probes: Sequence[Probe],
    ridge: Sequence[RidgeImportance],
    read: ReadSelection,
    data: TrainingData,
    *,
    settings: SearchSettings,
    compute: Mapping[Site, float],
    cascade: CascadeSettings | None = None,
    decision: DecisionSettings | None = None,
    words: WordFit | None = None,
    attack: LeakageAttack | None = None,
    group: ProcessGroup | None = None,
    progress: Progress = lambda fits: None,
) -> TrainingResult:
    """Search rule, eta, depth, sites, poolings, words and regularisation by validation, then fit what was chosen.

    `probes` and `ridge` are those of all feature columns: the two rules by which neurons can be selected. `words` is
    the word regression, whose logits can be added to those of the neurons (`Blend`).
    `read` returns the raw activations of a selection for some rows; `compute` is the share of the backbone's compute
    that reading a site takes. Features of different layers are standardised on the training rows and weighted by site
    and neuron (`feature_matrix.align`). The final heads, and those of the early exits that `cascade` allows under the
    labels of `decision`, are fitted on all rows of the folds. The held-out logits choose their temperature, biases
    where class weights are balanced, and the thresholds of the classes for which `decision` gives none. The members of
    a process group share the training rows; all get the same result. With `settings.max_leakage`, `attack` measures the
    leakage of candidates, and the choices are made among those within this cap. Raises UserError if no probe kept a
    neuron, or as `choose_under_cap` does.
    """
    if settings.max_leakage is not None and attack is None:
        raise ValueError("search.max_leakage: expected an attack, as `prepare_attack` returns it")
    if not any(probe.coef.any() for probe in probes):
        raise UserError(
            "data: no probe kept a neuron, because no neuron varies over the training documents; "
            "check that their texts differ"
        )
    search = Search(
        FeatureMatrix(read, data, group or ProcessGroup()), probes, ridge, settings, compute, progress, words
    )
    search.run()
    found = _choose(search, attack)
    # an abstaining document goes on to full depth, so that abstention need not be known when exits are chosen
    thresholds = DecisionSettings(thresholds={} if decision is None else decision.thresholds)
    fitter = CandidateFitter(search, cascade or CascadeSettings(), thresholds)
    fitted: dict[int, FittedClassifier] = {}
    choices: dict[Choice, FittedClassifier] = {}
    for name, candidate in found.choices.items():
        if id(candidate) not in fitted:
            fitted[id(candidate)] = fitter.fit(candidate)
        choices[name] = fitted[id(candidate)]
    reads_words = any(chosen.selection.words or chosen.words_exit for chosen in choices.values())
    regression = words.regression if words is not None and reads_words else None
    frontier = tuple(candidate.summary() for candidate in found.frontier)
    return TrainingResult(choices, frontier, found.tried, regression, found.cap)


def _choose(search: Search, attack: LeakageAttack | None) -> CandidateChoices:
    """The choices among the candidates of a search that has run, within the cap on leakage if there is one."""
    if search.settings.max_leakage is not None and attack is not None:
        return choose_under_cap(search, attack, search.settings.max_leakage)
    choices = choose_candidates(search.tried, search.settings, search.data.folds)
    return CandidateChoices(choices, best_per_depth(search.tried), len(search.tried))


@dataclass(frozen=True)
class _HeadChoice:
    """The kind of head of a candidate."""

    held_out: tuple[Floats, ...]
    """logits (m, K) of each fold's validation rows by a head of this kind, blended with those of the words"""
    selections: Sequence[Selection]
    """the neurons of each fold's head: of a linear one, without those that its L1 penalty zeroes"""
    blend: Blend | None
    """the weights of neurons and words in these logits; None for neurons alone"""
    kind: type[Head] = LinearHead
    steps: int = 0
    """steps in which the head is fitted; 0 for a linear head"""
    last_layer: LastLayerRecipe | None = None
    """the last layer beside the neurons of a linear head"""
    p_value: float | None = None
    """p-value of the test that a head is better than the linear one; None where none was tested"""


@dataclass(frozen=True)
class _ExitCandidate:
    """An exit that is offered at a depth, before its threshold is known."""

    depth: int
    held_out: Floats
    """calibrated logits (n, K) of the validation rows"""
    head: HeadRecipe
    cost: float
    """cost of a document that stops here, as a share of the whole backbone"""
    passing: float
    """cost of going on after the exit, as a share of the whole backbone"""


class CandidateFitter:
    """Turns a candidate into a classifier: its head on all rows of the folds, calibration, thresholds and exits."""

    def __init__(self, search: Search, cascade: CascadeSettings, decision: DecisionSettings) -> None:
        self.search, self.cascade, self.decision = search, cascade, decision
        self.matrix, self.data, self.group = search.matrix, search.data, search.matrix.group
        self.valid_rows = np.concatenate([fold.valid for fold in self.data.folds])
        self.valid_y = search.valid_targets
        word_scale = None if search.words is None else search.words.scale
        self.fitter = HeadFitter(self.matrix, search.cut, search.final_probes, self.data.rows, word_scale)

    def fit(self, candidate: Candidate) -> FittedClassifier:
        """The classifier of a candidate."""
        label_space, y = self.data.label_space, self.valid_y
        choice = self._choose_head(candidate)
        logits = np.concatenate(choice.held_out)
        calibration = self._calibrate(logits)
        calibrated = calibration.apply(logits)
        thresholds = self._choose_thresholds(calibrated, calibration)
        decision = Decision.of(label_space, self.decision, thresholds)
        ece = [calibration_error(label_space.probabilities(values), y, label_space) for values in (logits, calibrated)]
        selection = self._select(candidate)
        of_head = HeadRecipe(
            candidate.penalty,
            calibration.temperature,
            calibration.biases,
            choice.kind.name,
            choice.steps,
            choice.blend,
            choice.last_layer,
            float(np.linalg.norm(self.matrix.scales(selection, self.search.final_probes))),
        )
        head = self.fitter.fit(selection, of_head)
        recipe = ClassifierRecipe(of_head, self._choose_exits(candidate, choice, head.selection, calibrated, decision))
        summary = ChoiceSummary(
            **{
                **candidate.summary().model_dump(),
                "head": choice.kind.name,
                "head_chance": choice.p_value,
                "valid_score": round(self.search.judge(choice.held_out)[0], 4),
                "valid_log_loss": round(log_loss(calibrated, y, label_space), 4),
                "temperature": round(calibration.temperature, 4),
                "valid_ece": round(ece[1], 4),
                "valid_ece_uncalibrated": round(ece[0], 4),
                "exits": (),
                "thresholds": thresholds,
            }
        )
        summary, recipe = self.group.broadcast_object((summary, recipe))
        return self.fitter.finish(head, recipe, summary)

    def _select(self, candidate: Candidate) -> Selection:
        """The neurons that the head of a candidate is fitted on."""
        nothing = Selection({}, {}, 0.0, candidate.rule)
        return self.search.select(candidate.subset) if candidate.reads_neurons else nothing

    def _calibrate(self, held_out: Floats) -> Calibration:
        """The calibration of logits (n, K) of the validation rows, the same for all members of the group."""
        label_space, class_weights = self.data.label_space, self.data.class_weights
        return self.group.broadcast_object(fit_calibration(held_out, self.valid_y, label_space, class_weights))

    def _choose_thresholds(self, calibrated: Floats, calibration: Calibration) -> dict[str, float] | None:
        """The threshold of every class by calibrated logits (n, K) of validation rows; None for the plain decision.

        Near-identical documents count as one, as do the predictions of one document by several folds. The most probable
        class is right most often, so for accuracy there is nothing to choose where the probabilities are calibrated.
        """
        rows, groups, label_space = self.valid_rows, self.data.groups, self.data.label_space
        if self.data.metric == "accuracy" and calibration.bias is None and not label_space.multilabel:
            return None
        chosen = choose_class_thresholds(
            calibrated,
            self.valid_y,
            label_space,
            metric=self.data.metric,
            calibration=calibration,
            documents=rows if groups is None else groups[rows],
        )
        if chosen is None:
            return self.group.broadcast_object(None)
        named = {name: float(f"{t:.6g}") for name, t in zip(label_space.classes, chosen, strict=True)}
        return self.group.broadcast_object(named)

    def _choose_head(self, candidate: Candidate) -> _HeadChoice:
        """The head that the settings ask for, or the best one if a paired test on validation shows that it is better.

        The test compares it with the linear head; where several heads are tested, each of them has a part of the error.
        """
        of_linear = self.search.held_out(candidate)
        linear = _HeadChoice(of_linear.logits, of_linear.selections, candidate.blend, last_layer=of_linear.last_layer)
        setting = self.search.settings.head
        if not candidate.reads_neurons or (setting == "auto" and self.data.has_few_labels):
            return linear
        tested = [self._test_head(kind, candidate, of_linear) for kind in other_heads(setting)]
        best, p_value = min(tested, key=lambda test: test[1], default=(linear, None))
        if p_value is None or setting != "auto" or p_value < SIGNIFICANT / len(tested):
            return replace(best, p_value=p_value)
        return replace(linear, p_value=p_value)

    def _test_head(self, kind: type[Head], candidate: Candidate, of_linear: HeldOut) -> tuple[_HeadChoice, float]:
        """A head of another kind on the neurons of a candidate, and the p-value of the test that it is better."""
        logits, steps, selections = [], [], self.search.fold_selections(candidate.subset)
        for fold, selection, linear in zip(self.search.folds, selections, of_linear.heads, strict=True):
            fold_logits, fold_steps = fold.fit(kind, selection, linear, candidate.penalty.strength)
            logits.append(fold_logits)
            steps.append(fold_steps)
        blend = None if candidate.blend is None else self.search.fit_blend(logits)
        held_out = self.search.blended(logits, blend)
        ours, theirs = (self.data.label_space.predict(np.concatenate(of)) for of in (held_out, of_linear.logits))
        p_value = bootstrap_p_value(self.data.metric, self.valid_y, ours, theirs, self.data.seed)
        choice = _HeadChoice(held_out, selections, blend, kind, round(float(np.mean(steps))))
        return choice, self.group.broadcast_object(p_value)

    def _choose_exits(
        self, candidate: Candidate, choice: _HeadChoice, selection: Selection, final: Floats, decision: Decision
    ) -> tuple[ExitRecipe, ...]:
        """The early exits of a candidate whose calibrated held-out logits (n, K) at full depth are `final`."""
        offered = self._offer_exits(candidate, choice, selection)
        logits = [exit.held_out for exit in offered]
        thresholds: list[float] = self.group.broadcast_object(
            choose_exit_thresholds(
                logits,
                final,
                self.valid_y,
                decision,
                metric=self.data.metric,
                costs=[*(exit.cost for exit in offered), READING_COST + candidate.compute],
                passing=[exit.passing for exit in offered],
                max_loss=self.cascade.max_loss,
                documents=self.valid_rows,
            )
        )
        indices = self.group.broadcast_object(find_stops(logits, thresholds, decision, len(final)))
        shares = [float((indices == index).mean()) for index in range(len(offered))]
        return tuple(
            ExitRecipe(exit.depth, threshold, share, exit.head)
            for exit, threshold, share in zip(offered, thresholds, shares, strict=True)
            if share
        )

    def _offer_exits(self, candidate: Candidate, choice: _HeadChoice, selection: Selection) -> list[_ExitCandidate]:
        """The exits by words and at the depths of the cascade settings."""
        if not self.cascade.max_loss or not len(selection):
            return []
        offered = self._offer_words(reads_words=choice.blend is not None)
        shallowest = min(column.site.layer for column in selection.neurons)
        for depth in offered_depths(self.cascade.depths, selection.depth):
            parts = [of_fold.up_to(depth) for of_fold in choice.selections]
            if depth < shallowest or not all(map(len, parts)):
                continue
            ridge = Penalty(candidate.penalty.strength)
            of_neurons = [logits for [(_, logits)] in self.search.fit_folds(parts, [ridge])]
            blend = None if choice.blend is None else self.search.fit_blend(of_neurons)
            logits = np.concatenate(self.search.blended(of_neurons, blend))
            calibration = self._calibrate(logits)
            head = HeadRecipe(ridge, calibration.temperature, calibration.biases, blend=blend)
            cost = READING_COST + self.search.compute[Site(depth, "resid")]
            passing = PASSING_COST * candidate.compute
            offered.append(_ExitCandidate(depth, calibration.apply(logits), head, cost, passing))
        return offered

    def _offer_words(self, *, reads_words: bool) -> list[_ExitCandidate]:
        """The exit by words, if there is a word regression and the settings allow it.

        Where the head of the candidate reads words anyway, the exit adds nothing to the cost of any document, and those
        of all are counted without it.
        """
        words = self.search.words
        if words is None or not self.cascade.words:
            return []
        logits = np.concatenate(words.held_out)
        calibration = self._calibrate(logits)
        alone = Blend(neurons=0.0, other=1.0)
        head = HeadRecipe(Penalty(words.strength), calibration.temperature, calibration.biases, blend=alone)
        cost = 0.0 if reads_words else WORDS_COST
        return [_ExitCandidate(BY_WORDS, calibration.apply(logits), head, cost, cost)]
