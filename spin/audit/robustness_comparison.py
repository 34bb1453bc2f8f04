"""The robustness of a version and of the champion on the same texts: the differences, with paired intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from spin.audit.robustness import MODERATE, RobustnessMeasurement, RobustnessReport
from spin.integrate.bootstrap import difference_interval
from spin.labels.label_space import LabelSpace, Targets
from spin.labels.metrics import score


@dataclass(frozen=True)
class ScoreDifference:
    """A version's score minus the champion's on the same texts, with an interval."""

    value: float
    """difference from -1 to 1; negative where the version scores lower"""
    low: float
    high: float


@dataclass(frozen=True)
class PerturbationDifference:
    """The scores of both on the texts that one perturbation changed at one severity."""

    name: str
    severity: int
    """1 to 3"""
    score: float
    """the metric of the version on the changed texts, from 0 to 1"""
    champion_score: float
    """the metric of the champion on the changed texts"""
    difference: ScoreDifference


@dataclass(frozen=True)
class RobustnessComparison:
    """The robustness of the champion on the texts of a version's report, and how much higher the version scores."""

    champion: str
    """version number of the champion"""
    report: RobustnessReport
    """report on the champion"""
    confidence: float
    """confidence of the intervals, from 0 to 1"""
    original: ScoreDifference
    """difference on the original texts"""
    differences: tuple[PerturbationDifference, ...]
    """differences under the perturbations that keep the class of a text, in the order of `report`"""

    @property
    def lowest(self) -> PerturbationDifference | None:
        """The moderate perturbation under which the version falls furthest behind; None where none changed a text."""
        moderate = [row for row in self.differences if row.severity == MODERATE]
        return min(moderate, key=lambda row: row.difference.value, default=None)

    def to_json(self) -> dict[str, object]:
        """The comparison as `robustness.json` holds it under `champion`."""
        return {
            "version": self.champion,
            **self.report.to_json(),
            "confidence": self.confidence,
            "difference": asdict(self.original),
            "differences": [asdict(row) for row in self.differences],
        }


def compare_robustness(
    version: RobustnessMeasurement,
    champion: RobustnessMeasurement,
    number: str,
    *,
    significance: float,
    seed: int = 0,
) -> RobustnessComparison:
    """Compare a version with the champion, whose version number is `number`, on the labelled texts of both.

    An interval has the confidence 1 - 2 `significance`. Its lower end is the bound by which the gate judges a loss
    against the champion (`lower_bound`, a paired bootstrap over the documents). Labels are compared by name, so the two
    may know different classes. Raises ValueError where they did not measure the same texts.
    """
    pair = _Pair.of(version, champion, significance, seed)
    differences = []
    of_both = zip(version.report.figures, version.changed, champion.changed, strict=True)
    for figures, labels, champion_labels in of_both:
        if not np.array_equal(labels.rows, champion_labels.rows):
            raise ValueError(f"{figures.name}: the champion has other changed texts; expected those of the version")
        if figures.keeps_label:
            compared = pair.compare(labels.rows, labels.given, champion_labels.given)
            differences.append(PerturbationDifference(figures.name, figures.severity, *compared))
    *_, original = pair.compare(np.arange(len(version.y)), version.given, champion.given)
    return RobustnessComparison(number, champion.report, 1 - 2 * significance, original, tuple(differences))


@dataclass(frozen=True)
class _Pair:
    """The targets and the metric by which both versions are scored and compared."""

    version: LabelSpace
    champion: LabelSpace
    common: LabelSpace
    """the classes of both"""
    y: Targets
    """(n,) or (n, K) true targets, in the common label space"""
    metric: str
    significance: float
    seed: int

    @classmethod
    def of(
        cls, version: RobustnessMeasurement, champion: RobustnessMeasurement, significance: float, seed: int
    ) -> _Pair:
        spaces = version.label_space, champion.label_space
        classes = sorted({name for space in spaces for name in space.classes})
        common = LabelSpace(tuple(classes), any(space.multilabel for space in spaces))
        y = common.index(version.label_space.names(version.y))
        return cls(*spaces, common, y, version.report.metric, significance, seed)

    def compare(
        self, rows: NDArray[np.int64], given: Targets, champion_given: Targets
    ) -> tuple[float, float, ScoreDifference]:
        """The scores of both for some of the n documents by their targets (m,) or (m, K), and the difference."""
        y = self.y[rows]
        labels = self.common.index(self.version.names(given))
        champion_labels = self.common.index(self.champion.names(champion_given))
        scores = score(self.metric, y, labels), score(self.metric, y, champion_labels)
        interval = difference_interval(self.metric, y, labels, champion_labels, self.significance, self.seed)
        return *scores, ScoreDifference(scores[0] - scores[1], *interval)
