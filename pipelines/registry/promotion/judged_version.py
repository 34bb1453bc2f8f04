"""The version that the gate judges: its predictions, and those of the champions on the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from pipelines.registry.promotion.earlier_gates import EarlierGates
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from pipelines.storage.stage_plan import fingerprint
from spin.arrays import Hashes
from spin.errors import UserError
from spin.fitted.decision import Decision
from spin.integrate.bootstrap import lower_bound
from spin.labels.label_space import Label, LabelSpace, Targets, class_names
from spin.labels.metrics import score
from spin.settings import Settings

THE_CHAMPION = "the champion"
"""its name among those that a version is compared with"""


@dataclass(frozen=True)
class NoReply:
    """A version that does not load or predict."""

    reason: str


Reply = PredictionReply | NoReply


@dataclass(frozen=True)
class Comparison:
    """The labels of a version, compared with those of champions for the same documents."""

    settings: Settings
    label_space: LabelSpace
    """the classes that occur in any of the labels"""
    y: Targets
    """true targets"""
    predicted: Targets
    """of the version"""
    champions: Mapping[str, Targets]
    """of the champions, by their names in the report"""
    attempts: int
    """other attempts by the same evaluation set"""
    groups: Hashes | None = None
    """(n,) of the documents; None if each stands for itself"""

    @property
    def significance(self) -> float:
        """The risk of passing a version that is worse by exactly the margin, in this attempt.

        Every attempt is a further chance to pass by luck: of 20 versions that are worse by the margin one would pass
        with probability 1 - 0.95^20 = 64 %. After f others an attempt spends a share 1 / ((1 + f) (2 + f)) of the risk.
        These shares add up to 1 however many follow (alpha spending), so it is the risk of all attempts together. The
        checks of one attempt need no share each, since a version must pass them all (Berger 1982).
        """
        return self.settings.promote.significance / ((1 + self.attempts) * (2 + self.attempts))

    def score(self, labels: Targets) -> float:
        """The metric of the settings."""
        return score(self.settings.metric, self.y, labels)

    @cached_property
    def best(self) -> str | None:
        """The champion with the highest score; None without any."""
        return max(self.champions, key=lambda name: self.score(self.champions[name]), default=None)

    @cached_property
    def differences(self) -> Mapping[str, tuple[float, float]]:
        """The score minus the champion's and the best one's, each with its lower confidence bound."""
        metric, own = self.settings.metric, self.score(self.predicted)
        return {
            name: (
                own - self.score(targets),
                lower_bound(metric, self.y, self.predicted, targets, self.significance, self.groups),
            )
            for name, targets in self.champions.items()
            if name in (THE_CHAMPION, self.best)
        }


@dataclass(frozen=True)
class JudgedVersion:
    """A version that predicts the documents of the evaluation set, and what it is compared with."""

    settings: Settings
    """of the registry"""
    labels: Sequence[Label]
    """of the evaluation set; empty where none is frozen"""
    model: PredictionReply
    """predictions of the version"""
    champion: Reply | None = None
    """None where there is no champion"""
    earlier: EarlierGates = field(default_factory=EarlierGates)
    """without predictions of the champion, if it predicts now"""
    perturbed: tuple[Reply, Reply] | None = None
    """predictions of the version and of the champion for perturbed texts, if they are compared"""
    unproven: str | None = None
    """why the version cannot promise `decision.max_error`; None if it can, or nothing is promised"""
    groups: Hashes | None = None
    """(n,) of the documents of the evaluation set; None if each stands for itself"""

    @cached_property
    def given(self) -> Sequence[Label]:
        """The labels of the version for the evaluation set."""
        return decided_labels(self.settings, self.model)

    @property
    def labels_digest(self) -> str:
        """Digest of the version's labels; empty where they are compared with no champion.

        Where the champion's version was deleted, they are compared with the former champions.
        """
        compared = self.champion is not None or bool(self.earlier.champions)
        return fingerprint(self.given)[:16] if self.labels and compared else ""

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison with the champion and the former ones, as far as their predictions are known."""
        return self.compare(self.given, self._champion_labels())

    def compare(self, given: Sequence[Label], champions: Mapping[str, Sequence[Label]]) -> Comparison:
        """Compare labels that the version has `given`, and those by champions, with the true ones."""
        every = [*self.labels, *given, *(label for of_one in champions.values() for label in of_one)]
        classes = sorted({name for label in every for name in class_names(label)})
        space = LabelSpace(tuple(classes), not all(isinstance(label, str) for label in every))
        y, predicted = space.index(self.labels), space.index(given)
        targets = {name: space.index(of_one) for name, of_one in champions.items()}
        attempts = self.earlier.with_others + len(self.earlier.tried - {self.labels_digest})
        return Comparison(self.settings, space, y, predicted, targets, attempts, self.groups)

    def _champion_labels(self) -> dict[str, Sequence[Label]]:
        labels: dict[str, Sequence[Label]] = {}
        if isinstance(self.champion, PredictionReply):
            labels[THE_CHAMPION] = decided_labels(self.settings, self.champion)
        for number, reply in self.earlier.champions.items():
            undecided = replace(reply, labels=[None] * len(reply.probabilities))
            with suppress(UserError):  # the settings have a threshold for a class that it does not know
                if len(undecided.labels) == len(self.labels):
                    labels[former_champion(number)] = decided_labels(self.settings, undecided)
        return labels


def former_champion(number: str) -> str:
    """The name of a former champion in the report."""
    return f"version {number}"


def decided_labels(settings: Settings, reply: PredictionReply) -> list[Label]:
    """The predicted labels; where the decision abstains, the label without the abstention band."""
    label_space = LabelSpace(reply.classes, reply.multilabel)
    y, _ = Decision.of(label_space, settings.decision, reply.thresholds).decide(reply.probabilities)
    pairs = zip(reply.labels, label_space.names(y), strict=True)
    return [without_band if label is None else label for label, without_band in pairs]
