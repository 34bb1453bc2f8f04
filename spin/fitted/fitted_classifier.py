"""A fitted classifier over the selected neurons, and everything that training returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from spin.arrays import Floats
from spin.fitted.candidate import CandidateSummary
from spin.fitted.decision import Decision
from spin.fitted.early_exit import EarlyExit, find_stops
from spin.fitted.recipe import ClassifierRecipe
from spin.heads.linear_head import LinearHead
from spin.heads.selection import Selection
from spin.labels.label_space import LabelSpace
from spin.labels.standardizer import Standardizer
from spin.settings import Choice, DecisionSettings
from spin.words.word_regression import WordRegression


class ExitSummary(BaseModel):
    """An early exit as reports and artifacts hold it."""

    model_config = ConfigDict(frozen=True)

    depth: int
    """number of blocks that have run at this exit; -1: documents that their words alone decide"""
    threshold: float
    """confidence from which a document exits here"""
    valid_share: float
    """share of the validation documents that exit here"""


class ChoiceSummary(CandidateSummary):
    """A fitted classifier as reports and artifacts hold it: its candidate, its head, calibration and thresholds."""

    head: str
    """linear, or network: a small network beside the linear head"""
    valid_log_loss: float
    """mean log loss of the calibrated validation logits"""
    shares: Mapping[str, float]
    """the share of each source, of neurons, words and network, in the spread of the logits"""
    valid_ece: float
    """expected calibration error on the validation rows"""
    exits: tuple[ExitSummary, ...]
    thresholds: Mapping[str, float] | None = None
    """the threshold of every class that validation chose; None: the most probable class, or those from one half on"""


class UncappedChoice(BaseModel):
    """A choice as it would be without the cap on leakage."""

    model_config = ConfigDict(frozen=True)

    leakage: float
    """share of the words of a text that an attack reads back from its neurons"""
    valid_score: float
    """the metric on the validation rows by a linear head"""
    price: float
    """this metric minus that of the choice within the cap, also by a linear head"""


class LeakageCap(BaseModel):
    """The cap on leakage that the choices comply with, how it was measured, and what it costs."""

    model_config = ConfigDict(frozen=True)

    max_leakage: float
    """largest share of the words of a text that an attack may read back from the neurons of a choice"""
    by_frequency: float
    """share that the frequency of the words alone reveals"""
    known: int
    """training documents that the attacker knows, with their values"""
    judged: int
    """validation documents that are attacked"""
    uncapped: Mapping[Choice, UncappedChoice]


class TrainingSummary(BaseModel):
    """The search and its choices as reports hold them."""

    model_config = ConfigDict(frozen=True)

    choices: Mapping[Choice, ChoiceSummary]
    """`accuracy`, `balanced` and `cheapest`"""
    frontier: tuple[CandidateSummary, ...]
    """the best candidate of every depth, shallow first"""
    tried: int
    """number of candidates that were judged"""
    cap: LeakageCap | None = Field(default=None, exclude_if=lambda value: value is None)
    """the cap on leakage; None, and not written, without one"""


@dataclass(frozen=True)
class FittedClassifier:
    """The selected neurons, how they are standardised, and the head that joins them."""

    selection: Selection
    """the p features: the words' logits, if it reads them, and the selected neurons"""
    standardizer: Standardizer
    """mean and scale (p,) of the neurons over the training rows; of the words' logits 0 and the held-out deviation"""
    head: LinearHead
    """calibrated: its logits have their weights and biases"""
    summary: ChoiceSummary
    exits: tuple[EarlyExit, ...] = ()
    """where documents may stop before the last block, shallow first; that by words comes before all others"""
    recipe: ClassifierRecipe | None = None
    """how its heads can be fitted on other rows; None for an exit"""

    @property
    def words_exit(self) -> EarlyExit | None:
        """The exit of documents that their words alone decide; None where all go to the backbone."""
        return next((exit for exit in self.exits if exit.by_words), None)

    @property
    def block_exits(self) -> tuple[EarlyExit, ...]:
        """The exits after blocks of the backbone, shallow first."""
        return tuple(exit for exit in self.exits if not exit.by_words)

    def decision(self, label_space: LabelSpace, settings: DecisionSettings) -> Decision:
        """The decision rule of this classifier: its own thresholds, unless the settings give a class another one.

        Raises UserError for settings that do not fit the classes.
        """
        return Decision.of(label_space, settings, self.summary.thresholds)

    def applied_settings(self, label_space: LabelSpace, settings: DecisionSettings) -> DecisionSettings:
        """Settings of a decision with the chosen thresholds filled in; they stay as they are if none were chosen."""
        if self.summary.thresholds is None:
            return settings
        thresholds = self.decision(label_space, settings).thresholds
        named = {name: float(f"{t:.6g}") for name, t in zip(label_space.classes, thresholds, strict=True)}
        return settings.model_copy(update={"thresholds": named})

    def logits(self, features: Floats) -> Floats:
        """Logits (n, K) of raw features (n, p)."""
        return self.head.logits(self.standardizer.transform(features))

    def predict_logits(self, features: Floats, depth: NDArray[np.int32] | None, words: Floats | None = None) -> Floats:
        """Logits (n, K) of raw features (n, p), each row by the exit at which its document stopped.

        `depth` (n,) are the blocks that ran for each document, or `BY_WORDS`; None means all blocks. `words` (n, K) are
        the logits of the word regression, which the exit by words needs where they are no features.
        """
        if depth is None:
            return self.logits(features)
        logits = np.empty((len(features), len(self.head.bias)), np.float32)
        for index, exit_depth in enumerate([*(exit.depth for exit in self.exits), self.selection.depth]):
            rows = depth == exit_depth
            logits[rows] = self.at(index).logits(self.read_at(index, features, words)[rows])
        return logits

    def exit_depths(self, features: Floats, decision: Decision, words: Floats | None = None) -> NDArray[np.int32]:
        """(n,) the depth at which each document would stop, by raw features (n, p) at full depth.

        `words` (n, K) are the logits of the word regression, as for `predict_logits`.
        """
        logits = (self.at(k).logits(self.read_at(k, features, words)) for k in range(len(self.exits)))
        stops = find_stops(logits, [exit.threshold for exit in self.exits], decision, len(features))
        return np.array([*(exit.depth for exit in self.exits), self.selection.depth], np.int32)[stops]

    def at(self, index: int) -> FittedClassifier:
        """The classifier at an exit, given by its index; the number of exits as index gives this classifier itself.

        That of an exit by words has the logits of the word regression as its features.
        """
        if index == len(self.exits):
            return self
        exit = self.exits[index]
        if exit.by_words:
            classes = len(exit.head.bias)
            selection = Selection({}, {}, 0.0, classes)
            unscaled = Standardizer.concatenate([]).join_words(np.ones(classes, np.float32))
            return FittedClassifier(selection, unscaled, exit.head, self.summary)
        selection = self.selection.up_to(exit.depth)
        return FittedClassifier(selection, self.standardizer.keep(slice(len(selection))), exit.head, self.summary)

    def read_at(self, index: int, features: Floats, words: Floats | None) -> Floats:
        """The features that the classifier at an exit reads, from raw features (n, p) and the words' logits (n, K)."""
        if index == len(self.exits) or not self.exits[index].by_words:
            return features[:, : len(self.at(index).selection)]
        if self.selection.word_logits:
            return features[:, : self.selection.word_logits]
        assert words is not None, "the exit by words needs the words' logits, which the head does not read"
        return words


@dataclass(frozen=True)
class TrainingResult:
    """Everything that training returns: the classifiers to choose from, and what accuracy costs."""

    choices: Mapping[Choice, FittedClassifier]
    """`accuracy`, `balanced` and `cheapest`; one classifier may stand under several names"""
    frontier: tuple[CandidateSummary, ...]
    """the best candidate of every depth, shallow first"""
    tried: int
    """number of candidates that were judged"""
    words: WordRegression | None = None
    """the word regression, if any of the classifiers reads words or lets them decide documents"""
    cap: LeakageCap | None = None
    """the cap on leakage that the choices comply with; None without one"""

    def summary(self) -> TrainingSummary:
        """The search and its choices for a report."""
        return TrainingSummary(
            choices={name: fitted.summary for name, fitted in self.choices.items()},
            frontier=self.frontier,
            tried=self.tried,
            cap=self.cap,
        )
