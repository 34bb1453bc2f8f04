"""The checks of the gate: a class for each compares one figure of a version with its limit.

Another check is a subclass of `Check` and a place in `CHECKS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from pipelines.registry.champion_history import BEST_CHAMPION
from pipelines.registry.promotion.judged_version import (
    THE_CHAMPION,
    Comparison,
    JudgedVersion,
    NoReply,
    Reply,
    decided_labels,
    former_champion,
)
from pipelines.registry.promotion.subprocess_predict import PredictionReply
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.integrate.bootstrap import score_intervals
from spin.labels.label_space import LabelSpace, class_names
from spin.labels.metrics import class_figures, score
from spin.pages.number_format import counted


@dataclass(frozen=True)
class CheckResult:
    """One figure compared with its limit."""

    name: str
    """as in the tags `spin.gate.NAME` of a version"""
    value: float
    """NaN where it cannot be measured; that does not pass"""
    limit: float
    measured: str
    """the value as a person reads it"""
    expected: str
    """the limit as a person reads it"""
    remedy: str
    """what to do where the check fails"""
    at_most: bool = False
    """whether the limit is the largest value that passes, not the smallest"""
    figures: Mapping[str, float] = field(default_factory=dict)
    """metrics of the gate's MLflow run, by name"""
    can_be_forced: bool = True
    """whether `--force` promotes a version that fails"""

    @property
    def passed(self) -> bool:
        """Whether the value reaches the limit, or with `at_most` does not exceed it."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """The check as in gate.json."""
        values = asdict(self) | {"value": self.value if math.isfinite(self.value) else None, "passed": self.passed}
        del values["figures"], values["can_be_forced"]
        return {"found" if name == "measured" else name: value for name, value in values.items()}


def judge_loading(reply: Reply) -> CheckResult:
    """The check before all others: without predictions nothing else is known."""
    return CheckResult(
        "loads",
        value=float(isinstance(reply, PredictionReply)),
        limit=1.0,
        measured=reply.reason if isinstance(reply, NoReply) else f"texts predicted: {len(reply.labels):,}",
        expected="loads in a fresh process and predicts",
        remedy="correct what it names, or train again; this cannot be forced",
        can_be_forced=False,
    )


class Check(ABC):
    """A condition that a version must meet before it becomes the champion."""

    name: ClassVar[str]
    needs_labels: ClassVar[bool] = True
    """whether it is left out where no evaluation set is frozen"""

    @abstractmethod
    def judge(self, version: JudgedVersion) -> CheckResult | None:
        """The result for a version that predicts; None where the check does not apply."""


class Schema(Check):
    name = "schema"
    needs_labels = False

    def judge(self, version: JudgedVersion) -> CheckResult:
        columns = ", ".join(f"{name}: {kind}" for name, kind in version.model.input_columns.items()) or "none"
        return CheckResult(
            self.name,
            value=float(columns == "text: string"),
            limit=1.0,
            measured=columns,
            expected="text: string",
            remedy="register the version with `spin train`",
        )


class Classes(Check):
    name = "classes"
    needs_labels = False

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        model, champion = version.model, version.champion
        if not isinstance(champion, PredictionReply):
            return None
        missing = sorted({*champion.classes} - {*model.classes})
        added = sorted({*model.classes} - {*champion.classes})
        changes = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("adds", added)) if names]
        if model.multilabel != champion.multilabel:
            changes.append("gives lists of classes" if model.multilabel else "gives one class per document")
        return CheckResult(
            self.name,
            value=float(not changes),
            limit=1.0,
            measured="; ".join(changes) or "the same",
            expected=f"the champion's {len(champion.classes)} classes",
            remedy="train on a corpus with the champion's classes",
        )


class Score(Check):
    """By default the limit is just above the score of the commonest label for every document.

    What is measured says how, since the table of the training has other documents, or the same at full depth.
    """

    name = "score"

    def judge(self, version: JudgedVersion) -> CheckResult:
        settings, comparison = version.settings, version.comparison
        metric, y, limit = settings.metric, comparison.y, settings.promote.min_score
        if limit is None:
            values, counts = np.unique(y, axis=0, return_counts=True)
            constant = score(metric, y, np.broadcast_to(values[counts.argmax()], y.shape))
            limit, expected = float(np.nextafter(constant, 1)), f"above {100 * constant:.1f}, one label for all"
        else:
            expected = f"at least {100 * limit:.1f}"
        value = comparison.score(comparison.predicted)
        [(low, high)] = score_intervals(metric, y, [comparison.predicted], settings.seed, comparison.groups)
        how = "with early exits, as in a night" if settings.classify.cascade else "at full depth"
        shown = f"{100 * value:.1f} {metric} [{100 * low:.1f}–{100 * high:.1f}]"
        return CheckResult(
            self.name,
            value=value,
            limit=limit,
            measured=f"{shown} on {len(y):,} documents {how}",
            expected=expected,
            remedy="train again, or lower promote.min_score",
            figures={"score": value, "score_low": low, "score_high": high},
        )


class _ScoreLoss(Check):
    """A check that the version scores little lower than another one, by the lower confidence bound."""

    other: ClassVar[str]
    """what it is compared with, in words"""
    setting: ClassVar[str] = "max_regression"
    """the setting of `promote` that says how much lower the version may score"""

    def result(
        self, comparison: Comparison, bound: float, measured: str, figures: Mapping[str, float] | None = None
    ) -> CheckResult:
        """`bound` is the lower confidence bound of the difference to the score of the other."""
        margin, confidence = getattr(comparison.settings.promote, self.setting), 1 - comparison.significance
        others = comparison.attempts
        attempts = f", after {counted(others, 'other attempt')}" if others else ""
        return CheckResult(
            self.name,
            value=bound,
            limit=-margin,
            measured=measured,
            expected=f"at least {-100 * margin:+.1f} against {self.other}, "
            f"with {100 * confidence:.4g} % confidence{attempts}",
            remedy=f"train again, or raise promote.{self.setting} where such a loss is acceptable",
            figures=figures or {},
        )


class Regression(_ScoreLoss):
    name, other = "regression", THE_CHAMPION

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        champion, comparison = version.champion, version.comparison
        if champion is None:
            return None
        if isinstance(champion, NoReply):
            return self.result(comparison, math.nan, f"the champion does not predict: {champion.reason}")
        difference, bound = comparison.differences[THE_CHAMPION]
        figures = {"score_before": comparison.score(comparison.champions[THE_CHAMPION])}
        figures |= {"difference": difference, "difference_at_least": bound}
        return self.result(comparison, bound, _describe_difference(difference, bound), figures)


class BestChampion(_ScoreLoss):
    """Each champion alone may be worse than the one before it by the margin; this bounds the sum of such losses."""

    name, other = BEST_CHAMPION, "the best champion"

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        comparison = version.comparison
        best = comparison.best
        if best is None:
            return None
        difference, bound = comparison.differences[best]
        best_score, earlier = comparison.score(comparison.champions[best]), version.earlier
        absent = [n for n in (*earlier.missing, *earlier.champions) if former_champion(n) not in comparison.champions]
        note = f"; no predictions of version {', '.join(absent)} to compare with" if absent else ""
        measured = f"{_describe_difference(difference, bound)} against {best}, {100 * best_score:.1f}{note}"
        figures = {"score_best": best_score, "difference_best": difference, "difference_best_at_least": bound}
        return self.result(comparison, bound, measured, figures)


class Robustness(_ScoreLoss):
    """The loss of score where each text is perturbed; the attempts on the original texts count too."""

    name, other, setting = "robustness", f"{THE_CHAMPION} on perturbed texts", "max_robustness_loss"

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        if version.perturbed is None:
            return None
        model, champion = version.perturbed
        if isinstance(model, NoReply):
            return self.result(version.comparison, math.nan, f"the version does not predict: {model.reason}")
        if isinstance(champion, NoReply):
            return self.result(version.comparison, math.nan, f"the champion does not predict: {champion.reason}")
        given, of_champion = (decided_labels(version.settings, reply) for reply in (model, champion))
        comparison = version.compare(given, {THE_CHAMPION: of_champion})
        difference, bound = comparison.differences[THE_CHAMPION]
        figures = {"difference_perturbed": difference, "difference_perturbed_at_least": bound}
        return self.result(comparison, bound, _describe_difference(difference, bound), figures)


class ClassFloors(Check):
    """The class furthest below its floor decides; a class without documents cannot be measured."""

    name = "class_floors"

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        floors, comparison = version.settings.promote.class_floors, version.comparison
        if not floors:
            return None
        figures = class_figures(comparison.y, comparison.predicted, comparison.label_space.classes)
        measured = {name: each.f1 for name, each in figures.items() if each.support}
        f1 = {name: measured.get(name, math.nan) for name in floors}
        shown = (f"{name} " + ("has no document" if f != f else f"{100 * f:.1f}") for name, f in f1.items())
        return CheckResult(
            self.name,
            value=float(np.min([f1[name] - floor for name, floor in floors.items()])),
            limit=0.0,
            measured=", ".join(shown),
            expected="F1 at least " + ", ".join(f"{name} {100 * floor:.1f}" for name, floor in floors.items()),
            remedy="label more of these classes and train again, or lower promote.class_floors",
        )


class Calibration(Check):
    """The calibration error over the version's classes and, with probability 0, the classes that it does not know."""

    name = "calibration"

    def judge(self, version: JudgedVersion) -> CheckResult:
        model, labels, limits = version.model, version.labels, version.settings.promote
        unknown = sorted({name for label in labels for name in class_names(label)} - {*model.classes})
        multilabel = model.multilabel or not all(isinstance(label, str) for label in labels)
        label_space = LabelSpace((*model.classes, *unknown), multilabel)
        probabilities = np.pad(model.probabilities, ((0, 0), (0, len(unknown))))
        y, groups = label_space.index(labels), version.groups
        by_chance = calibration_error_limit(probabilities, label_space, limits.significance, y=y, groups=groups)
        limit = max(limits.max_ece, by_chance)
        error = calibration_error(probabilities, y, label_space)
        return CheckResult(
            self.name,
            value=error,
            limit=limit,
            measured=f"error {100 * error:.1f}, exact probabilities up to {100 * by_chance:.1f}",
            expected=f"at most {100 * limit:.1f}" + (", as chance alone gives" if limit > limits.max_ece else ""),
            remedy="train again with more validation documents, or raise promote.max_ece",
            at_most=True,
            figures={"ece": error, "ece_limit": by_chance},
        )


class Throughput(Check):
    name = "throughput"

    def judge(self, version: JudgedVersion) -> CheckResult:
        limit, speed = version.settings.promote.min_docs_per_s, version.model.documents_per_s
        measured, figures = f"{speed:,.1f} documents/s", {"documents_per_s": speed}
        if isinstance(version.champion, PredictionReply):
            figures["documents_per_s_before"] = version.champion.documents_per_s
            measured += f", the champion {version.champion.documents_per_s:,.1f}"
        return CheckResult(
            self.name,
            value=speed,
            limit=limit,
            measured=measured,
            expected=f"at least {limit:,.1f}" if limit else "no limit",
            remedy="choose: cheapest, or lower promote.min_docs_per_s",
            figures=figures,
        )


class PromisedError(Check):
    """At most the promised share is wrong of the labels that a night would give.

    That is with early exits and the abstention band of the version, and fails where its test documents prove no band.
    """

    name = "max_error"

    def judge(self, version: JudgedVersion) -> CheckResult | None:
        max_error = version.settings.decision.max_error
        if max_error is None:
            return None
        pairs = zip(version.model.labels, version.labels, strict=True)
        wrong = [set(class_names(given)) != set(class_names(true)) for given, true in pairs if given is not None]
        share, coverage = float(np.mean(wrong or [False])), len(wrong) / len(version.labels)
        found = f"{100 * share:.1f} % of the {100 * coverage:.1f} % that get a label"
        return CheckResult(
            self.name,
            value=share if version.unproven is None else math.nan,
            limit=max_error,
            measured=found if version.unproven is None else version.unproven,
            expected=f"at most {100 * max_error:g} % of the labels wrong",
            remedy="train again, or raise decision.max_error",
            at_most=True,
        )


CHECKS: tuple[Check, ...] = (
    Schema(),
    Classes(),
    Score(),
    Regression(),
    BestChampion(),
    Robustness(),
    ClassFloors(),
    Calibration(),
    Throughput(),
    PromisedError(),
)
"""in the order of the report; `judge_loading` comes before them"""


def judge(version: JudgedVersion) -> list[CheckResult]:
    """The results of all checks that apply to a version."""
    applicable = (check for check in CHECKS if version.labels or not check.needs_labels)
    results = (check.judge(version) for check in applicable)
    return [result for result in results if result is not None]


def _describe_difference(difference: float, bound: float) -> str:
    return f"{100 * difference:+.1f}, at least {100 * bound:+.1f}"
