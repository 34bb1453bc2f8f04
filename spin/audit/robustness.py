"""Robustness: what perturbations of labelled texts do to the labels and the calibration of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Hashes
from spin.audit import perturbations
from spin.audit.perturbations import SEVERITIES, Perturbation
from spin.fitted.decision import Decision
from spin.heads.calibration import calibration_error, calibration_error_limit
from spin.labels.label_space import LabelSpace, Targets, differ
from spin.labels.metrics import score
from spin.predictions import Predictions

MODERATE = 2
"""the severity of summaries"""

Predict = Callable[[Sequence[str]], Predictions]


@dataclass(frozen=True)
class GroupFigures:
    """Some of the documents that a perturbation changed, such as those of one class."""

    documents: int
    accuracy_before: float
    """share of right labels of the original texts, from 0 to 1; of one class, its recall"""
    accuracy: float
    """share of right labels of the changed texts, or recall"""
    flips: float
    """share of documents whose label changed"""


@dataclass(frozen=True)
class PerturbationFigures:
    """The effect of one perturbation at one severity, on the documents whose text it changed."""

    name: str
    severity: int
    """1 to 3"""
    keeps_label: bool
    """whether a reader would give the changed texts the same classes; else only flips tell something"""
    documents: int
    """documents whose text was changed; all other figures are of these"""
    score_before: float
    """the metric of the original texts, from 0 to 1"""
    score: float
    """the metric of the changed texts, by the labels of the original ones"""
    flips: float
    """share of documents whose label changed"""
    flips_of_right: float
    """share of the documents with a right label before whose label changed"""
    ece_before: float
    """expected calibration error of the original texts"""
    ece: float
    """expected calibration error of the changed texts"""
    by_class: Mapping[str, GroupFigures]
    """figures by true class; a document of several classes counts for each"""
    by_exit: Mapping[int, GroupFigures]
    """figures by the depth at which the changed texts exit; -1: words alone decide"""

    @property
    def loss(self) -> float:
        """The metric on the original texts minus that on the changed ones."""
        return self.score_before - self.score


@dataclass(frozen=True)
class RobustnessReport:
    """The figures of all perturbations at all severities."""

    metric: str
    documents: int
    """labelled texts that were perturbed"""
    score: float
    """the metric of the original texts, from 0 to 1"""
    ece: float
    """expected calibration error of the original texts"""
    ece_limit: float
    """the error that exact probabilities exceed by chance in 5 % of as many texts"""
    figures: tuple[PerturbationFigures, ...]
    """figures of the perturbations that changed a text"""

    def at(self, severity: int) -> list[PerturbationFigures]:
        """The perturbations at one severity that keep the class of a text."""
        return [row for row in self.figures if row.severity == severity and row.keeps_label]

    @property
    def mean_loss(self) -> float:
        """Mean loss of the metric over the perturbations that keep the class, at moderate severity."""
        return float(np.mean([row.loss for row in self.at(MODERATE)] or [0.0]))

    @property
    def mean_flips(self) -> float:
        """Mean share of flipped labels over the perturbations that keep the class, at moderate severity."""
        return float(np.mean([row.flips for row in self.at(MODERATE)] or [0.0]))

    @property
    def worst(self) -> PerturbationFigures | None:
        """The perturbation with the largest loss at moderate severity; None where none changed a text."""
        return max(self.at(MODERATE), key=lambda row: row.loss, default=None)

    def to_json(self) -> dict[str, object]:
        """The report as `robustness.json` holds it."""
        return asdict(self) | {"mean_loss": self.mean_loss, "mean_flips": self.mean_flips}


@dataclass(frozen=True)
class JudgedTexts:
    """The predictions for some of the labelled texts, as they are or perturbed, and their true labels."""

    rows: NDArray[np.int64]
    """(m,) row numbers of these texts among all, ascending"""
    label_space: LabelSpace
    y: Targets
    """true targets"""
    given: Targets
    """predicted targets, without the abstention band"""
    probabilities: Floats
    exit_depth: NDArray[np.int32]

    @classmethod
    def of(cls, decision: Decision, rows: NDArray[np.int64], y: Targets, predictions: Predictions) -> JudgedTexts:
        """The predictions for the texts `rows`, given the true targets of all texts."""
        given, _ = decision.decide(predictions.probabilities)
        return cls(rows, decision.label_space, y[rows], given, predictions.probabilities, predictions.exit_depth)

    def part(self, rows: NDArray[np.int64]) -> JudgedTexts:
        """Some of all texts, from the predictions for all."""
        y, given, probabilities = self.y[rows], self.given[rows], self.probabilities[rows]
        return JudgedTexts(rows, self.label_space, y, given, probabilities, self.exit_depth[rows])

    @property
    def right(self) -> NDArray[np.bool_]:
        """(m,) the texts whose label is right."""
        return ~differ(self.y, self.given)

    @property
    def ece(self) -> float:
        """The expected calibration error."""
        return calibration_error(self.probabilities, self.y, self.label_space)


@dataclass(frozen=True)
class RobustnessMeasurement:
    """The report on a classifier, and the labels that it rests on, by which two classifiers can be compared."""

    report: RobustnessReport
    original: JudgedTexts
    """all texts as they are"""
    changed: tuple[JudgedTexts, ...]
    """the texts that each perturbation changed, in the order of `report.figures`"""


def measure_robustness(
    predict: Predict,
    decision: Decision,
    texts: Sequence[str],
    y: Targets,
    metric: str,
    *,
    groups: Hashes | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda documents: None,
) -> RobustnessMeasurement:
    """Perturb n texts with true targets `y` in every way, and compare the predictions for them with those before.

    `groups` (n,) are those of the texts, None if each stands for itself. Labels are those without the abstention band.
    `progress` is called with the numbers of texts that were predicted; they add up to at most `count_predictions(n)`.
    """
    before = JudgedTexts.of(decision, np.arange(len(texts)), y, predict(texts))
    progress(len(texts))
    figures, judged = [], []
    for perturbation in perturbations.PERTURBATIONS:
        for severity in SEVERITIES:
            changed = perturbation.apply(texts, severity, seed)
            rows = np.array([row for row, text in enumerate(texts) if changed[row] != text], np.int64)
            if len(rows):
                after = JudgedTexts.of(decision, rows, y, predict([changed[row] for row in rows]))
                figures.append(_compare(perturbation, severity, metric, before.part(rows), after))
                judged.append(after)
            progress(len(texts))
    score_before = score(metric, y, before.given)
    limit = calibration_error_limit(before.probabilities, before.label_space, y=y, groups=groups)
    report = RobustnessReport(metric, len(texts), score_before, before.ece, limit, tuple(figures))
    return RobustnessMeasurement(report, before, tuple(judged))


def count_predictions(documents: int) -> int:
    """The largest number of texts that `measure_robustness` predicts for some documents."""
    return documents * (1 + len(perturbations.PERTURBATIONS) * len(SEVERITIES))


def _compare(
    perturbation: Perturbation, severity: int, metric: str, before: JudgedTexts, after: JudgedTexts
) -> PerturbationFigures:
    flipped = differ(before.given, after.given)
    return PerturbationFigures(
        name=perturbation.name,
        severity=severity,
        keeps_label=perturbation.keeps_label,
        documents=len(flipped),
        score_before=score(metric, before.y, before.given),
        score=score(metric, after.y, after.given),
        flips=float(flipped.mean()),
        flips_of_right=float(flipped[before.right].mean()) if before.right.any() else 0.0,
        ece_before=before.ece,
        ece=after.ece,
        by_class=_by_class(before, after),
        by_exit={
            int(depth): _group(before.right, after.right, flipped, after.exit_depth == depth)
            for depth in np.unique(after.exit_depth)
        },
    )


def _by_class(before: JudgedTexts, after: JudgedTexts) -> dict[str, GroupFigures]:
    has, given, given_after = (before.label_space.indicator(t) for t in (before.y, before.given, after.given))
    flips = given != given_after
    if not before.label_space.multilabel:  # a document that leaves another class for a third one counts too
        flips[:] = differ(before.given, after.given)[:, None]
    return {
        name: _group(given[:, k], given_after[:, k], flips[:, k], has[:, k])
        for k, name in enumerate(before.label_space.classes)
        if has[:, k].any()
    }


def _group(
    right_before: NDArray[np.bool_], right: NDArray[np.bool_], flipped: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> GroupFigures:
    return GroupFigures(int(rows.sum()), *(float(values[rows].mean()) for values in (right_before, right, flipped)))
