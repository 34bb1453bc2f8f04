"""Integrate: search over the probes' neurons, then fit the chosen calibrated heads on all labelled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from spin.arrays import Floats
from spin.errors import UserError
from spin.fitted.candidate import Candidate
from spin.fitted.decision import Decision
from spin.fitted.early_exit import find_stops
from spin.fitted.fitted_classifier import ChoiceSummary, FittedClassifier, TrainingResult
from spin.fitted.recipe import ClassifierRecipe, ExitRecipe, HeadRecipe
from spin.heads.calibration import calibration_error, log_loss
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.heads.stack import Source, Stack
from spin.integrate.class_thresholds import choose_class_thresholds
from spin.integrate.exit_thresholds import (
    PASSING_COST,
    READING_COST,
    WORDS_COST,
    ExitOffer,
    choose_exit_thresholds,
    offered_depths,
)
from spin.integrate.feature_matrix import FeatureMatrix, ReadSelection
from spin.integrate.fit_words import WordFit
from spin.integrate.frontier import CandidateChoices, Judged, best_per_depth, choose_candidates, keeps_limit
from spin.integrate.head_fitter import HeadFitter
from spin.integrate.last_layer import LAST_LAYER_BELOW, HeldOut
from spin.integrate.leakage import LeakageAttack, choose_under_cap
from spin.integrate.search import LEAST_SHARE, Progress, Search, SearchStart
from spin.labels.training_data import TrainingData
from spin.process_group import ProcessGroup
from spin.settings import CascadeSettings, Choice, DecisionSettings, SearchSettings
from spin.sites import BY_WORDS, Site
from spin.sparsify.probe import Probe
from spin.sparsify.ridge import RidgeImportance


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
    start: SearchStart | None = None,
) -> TrainingResult:
    """Search eta, depth, sites, poolings, words and regularisation by validation, then fit what was chosen.

    `probes` and `ridge` are those of all feature columns, which measure the importance of neurons. `words` is
    the word regression. The logits of the neurons, of the words and of a network on the neurons are stacked (`Stack`).
    `read` returns the raw activations of a selection for some rows; `compute` is the share of the backbone's compute
    that reading a site takes. Features of different layers are standardised on the training rows. The final heads, and
    those of the early exits that `cascade` allows under the labels of `decision`, are fitted on all rows of the folds.
    The held-out logits choose the stacks and the thresholds of the classes for which `decision` gives none. The members
    of a process group share the training rows; all get the same result. With `settings.max_leakage`, `attack` measures
    the leakage of candidates, and the choices are made among those within this cap. With a `start`, only what is next
    to its choices is tried. Raises UserError if no probe kept a neuron, or as `choose_under_cap` does.
    """
    if settings.max_leakage is not None and attack is None:
        raise ValueError("search.max_leakage: expected an attack, as `prepare_attack` returns it")
    if not any(probe.coef.any() for probe in probes):
        raise UserError(
            "data: no probe kept a neuron, because no neuron varies over the training documents; "
            "check that their texts differ"
        )
    search = Search(
        FeatureMatrix(read, data, group or ProcessGroup()), probes, ridge, settings, compute, progress, words, start
    )
    search.run()
    found = _choose(search, attack)
    # an abstaining document goes on to full depth, so that abstention need not be known when exits are chosen
    thresholds = DecisionSettings(thresholds={} if decision is None else decision.thresholds)
    fitter = CandidateFitter(search, cascade or CascadeSettings(), thresholds)
    limits = {"balanced": settings.balanced_loss, "cheapest": settings.cheapest_loss}
    choices: dict[Choice, FittedClassifier] = {}
    for name, candidate in found.choices.items():
        # the search compared linear heads, and a network may gain less at another depth, or nothing
        fitted = fitter.fit(candidate)
        if name not in limits or fitter.keeps_limit(candidate, found.choices["accuracy"], limits[name]):
            choices[name] = fitted
        else:  # `cheapest` may lose more than `balanced`, so that it is never the costlier
            choices[name] = choices["balanced" if name == "cheapest" else "accuracy"]
    reads_words = any(chosen.selection.word_logits or chosen.words_exit for chosen in choices.values())
    regression = words.regression if words is not None and reads_words else None
    frontier = tuple(candidate.summary() for candidate in found.frontier)
    return TrainingResult(choices, frontier, found.tried, regression, found.cap)


def _choose(search: Search, attack: LeakageAttack | None) -> CandidateChoices:
    """The choices among the candidates of a search that has run, within the cap on leakage if there is one."""
    if search.settings.max_leakage is not None and attack is not None:
        return choose_under_cap(search, attack, search.settings.max_leakage)
    choices = choose_candidates(search.tried, search.settings, search.data.folds)
    return CandidateChoices(choices, best_per_depth(search.tried), len(search.tried))


class CandidateFitter:
    """Turns a candidate into a classifier: its head on all rows of the folds, calibration, thresholds and exits."""

    def __init__(self, search: Search, cascade: CascadeSettings, decision: DecisionSettings) -> None:
        self.search, self.cascade, self.decision = search, cascade, decision
        self.matrix, self.data, self.group = search.matrix, search.data, search.matrix.group
        self.valid_rows = np.concatenate([fold.valid for fold in self.data.folds])
        self.valid_y = search.valid_targets
        word_scale = None if search.words is None else search.words.scale
        self.fitter = HeadFitter(self.matrix, search.cut, search.final_probes, self.data.rows, word_scale)
        self._fitted: dict[int, FittedClassifier] = {}
        self._judged: dict[int, Judged] = {}

    def keeps_limit(self, candidate: Candidate, accuracy: Candidate, limit: float) -> bool:
        """Whether the classifier of one candidate that was fitted loses no more than a limit against that of another.

        With 95 % confidence on the validation rows, networks included.
        """
        ours, theirs = self._judged[id(candidate)], self._judged[id(accuracy)]
        return self.group.broadcast_object(keeps_limit(ours, theirs, limit))

    def fit(self, candidate: Candidate) -> FittedClassifier:
        """The classifier of a candidate, which is fitted once."""
        if id(candidate) not in self._fitted:
            self._fitted[id(candidate)] = self._fit(candidate)
        return self._fitted[id(candidate)]

    def _fit(self, candidate: Candidate) -> FittedClassifier:
        label_space, y = self.data.label_space, self.valid_y
        held_out = self.search.held_out(candidate)
        stack, epochs, sources = self._stack(candidate, held_out)
        logits = stack.logits(sources)
        thresholds = self._choose_thresholds(logits)
        decision = Decision.of(label_space, self.decision, thresholds)
        of_head = HeadRecipe(candidate.strength, stack, epochs, held_out.last_layer)
        head = self.fitter.fit(self.search.select(candidate.subset), of_head)
        reads_words = stack.words > 0
        exits = self._choose_exits(candidate, held_out, head.selection, logits, decision, reads_words=reads_words)
        kind = NetworkHead if epochs else LinearHead
        self._judged[id(candidate)] = self.search.judge(logits)
        summary = ChoiceSummary(
            **{
                **candidate.summary().model_dump(),
                "words": reads_words,
                "head": kind.name,
                "valid_score": round(self._judged[id(candidate)][0], 4),
                "valid_log_loss": round(log_loss(logits, y, label_space), 4),
                "shares": {source: round(stack.share(source, sources), 4) for source in sources},
                "valid_ece": round(calibration_error(label_space.probabilities(logits), y, label_space), 4),
                "exits": (),
                "thresholds": thresholds,
            }
        )
        recipe = ClassifierRecipe(of_head, exits)
        summary, recipe = self.group.broadcast_object((summary, recipe))
        return self.fitter.finish(head, recipe, summary)

    def _stack(self, candidate: Candidate, held_out: HeldOut) -> tuple[Stack, int, Mapping[Source, Floats]]:
        """The stack of a candidate, the epochs of its network, and the held-out logits (n, K) by source.

        The epochs are 0 where a network adds nothing, and then it is no source. Nor are words that add nothing to it.
        """
        sources = self.search.sources(held_out.logits, words=candidate.reads_words)
        if not self._has_network(candidate):
            return candidate.stack, 0, sources
        network, epochs = self._fit_network(held_out)
        joined: dict[Source, Floats] = {**sources, "network": network}
        stack = self.search.fit_stack(joined)
        if not self._tells(stack, "network", joined):
            return candidate.stack, 0, sources
        if "words" in joined and not self._tells(stack, "words", joined):
            del joined["words"]
            stack = self.search.fit_stack(joined)
        return stack, epochs, joined

    def _tells(self, stack: Stack, source: Source, sources: Mapping[Source, Floats]) -> bool:
        """Whether a source has more than `LEAST_SHARE` of the spread of the sum."""
        return self.group.broadcast_object(stack.share(source, sources) > LEAST_SHARE)

    def _has_network(self, candidate: Candidate) -> bool:
        """Whether a network is fitted: not on so few labels that the last layer counts in its place."""
        wanted = self.search.settings.network == "auto" and candidate.reads_neurons
        return wanted and len(self.data.all_rows) >= LAST_LAYER_BELOW

    def _fit_network(self, held_out: HeldOut) -> tuple[Floats, int]:
        """The logits (n, K) of the validation rows by a network on each fold's neurons, and the mean of the epochs."""
        folds = zip(self.search.folds, held_out.selections, strict=True)
        logits, epochs = zip(*(fold.fit_network(selection) for fold, selection in folds), strict=True)
        return np.concatenate(logits), max(1, round(float(np.mean(epochs))))

    def _choose_thresholds(self, logits: Floats) -> dict[str, float] | None:
        """The threshold of every class by calibrated logits (n, K) of validation rows; None for the plain decision.

        Near-identical documents count as one, as do the predictions of one document by several folds. The most probable
        class is right most often, so for accuracy there is nothing to choose where the probabilities are calibrated.
        """
        rows, groups, label_space = self.valid_rows, self.data.groups, self.data.label_space
        balanced = self.data.class_weights == "balanced"
        if self.data.metric == "accuracy" and not balanced and not label_space.multilabel:
            return None
        chosen = choose_class_thresholds(
            logits,
            self.valid_y,
            label_space,
            metric=self.data.metric,
            class_weights=self.data.class_weights,
            documents=rows if groups is None else groups[rows],
        )
        named = None
        if chosen is not None:
            named = {name: float(f"{t:.6g}") for name, t in zip(label_space.classes, chosen, strict=True)}
        return self.group.broadcast_object(named)

    def _choose_exits(
        self,
        candidate: Candidate,
        held_out: HeldOut,
        selection: Selection,
        final: Floats,
        decision: Decision,
        *,
        reads_words: bool,
    ) -> tuple[ExitRecipe, ...]:
        """The early exits of a candidate whose calibrated held-out logits (n, K) at full depth are `final`."""
        offered = self._offer_exits(candidate, held_out, selection, reads_words=reads_words)
        offers = [offer for _, offer in offered.values()]
        groups = self.data.groups
        thresholds: list[float] = self.group.broadcast_object(
            choose_exit_thresholds(
                offers,
                final,
                self.valid_y,
                decision,
                metric=self.data.metric,
                cost=READING_COST + candidate.compute,
                max_loss=self.cascade.max_loss,
                documents=self.valid_rows if groups is None else groups[self.valid_rows],
            )
        )
        stops = find_stops([offer.logits for offer in offers], thresholds, decision, len(final))
        indices = self.group.broadcast_object(stops)
        shares = [float((indices == index).mean()) for index in range(len(offers))]
        return tuple(
            ExitRecipe(depth, threshold, share, head)
            for (depth, (head, _)), threshold, share in zip(offered.items(), thresholds, shares, strict=True)
            if share
        )

    def _offer_exits(
        self, candidate: Candidate, held_out: HeldOut, selection: Selection, *, reads_words: bool
    ) -> dict[int, tuple[HeadRecipe, ExitOffer]]:
        """The exits by words and at the depths of the cascade settings, by depth, shallow first."""
        if not self.cascade.max_loss or not len(selection):
            return {}
        offered = self._offer_words(reads_words=reads_words)
        shallowest = min(column.site.layer for column in selection.neurons)
        for depth in offered_depths(self.cascade.depths, selection.depth):
            parts = [of_fold.up_to(depth) for of_fold in held_out.selections]
            if depth < shallowest or not all(map(len, parts)):
                continue
            [of_neurons] = self.search.fit_folds(parts, [candidate.strength])
            sources = self.search.sources(of_neurons.logits, words=reads_words)
            stack = self.search.fit_stack(sources)
            cost = READING_COST + self.search.compute[Site(depth, "resid")]
            offer = ExitOffer(stack.logits(sources), cost, PASSING_COST * candidate.compute)
            offered[depth] = HeadRecipe(candidate.strength, stack), offer
        return offered

    def _offer_words(self, *, reads_words: bool) -> dict[int, tuple[HeadRecipe, ExitOffer]]:
        """The exit by words, if there is a word regression and the settings allow it.

        Where the head of the candidate reads words anyway, the exit adds nothing to the cost of any document, and those
        of all are counted without it.
        """
        words = self.search.words
        if words is None or not self.cascade.words:
            return {}
        sources: dict[Source, Floats] = {"words": np.concatenate(words.held_out)}
        stack, cost = self.search.fit_stack(sources), 0.0 if reads_words else WORDS_COST
        return {BY_WORDS: (HeadRecipe(words.strength, stack), ExitOffer(stack.logits(sources), cost, cost))}
