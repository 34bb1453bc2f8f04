"""The robustness of a version and of the champion on the same texts: the differences, with paired intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from spin.arrays import Hashes
from spin.audit.robustness import MODERATE, JudgedTexts, RobustnessMeasurement, RobustnessReport
from spin.integrate.bootstrap import difference_interval
from spin.labels.label_space import LabelSpace
from spin.labels.metrics import score
from spin.monitor.quality import Estimate


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
    difference: Estimate
    """score of the version minus that of the champion, with an interval of `RobustnessComparison.confidence`"""


@dataclass(frozen=True)
class RobustnessComparison:
    """The robustness of the champion on the texts of a version's report, and how much higher the version scores."""

    champion: str
    """version number of the champion"""
    report: RobustnessReport
    """report on the champion"""
    confidence: float
    """confidence of the intervals, from 0 to 1"""
    original: Estimate
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
    groups: Hashes | None = None,
) -> RobustnessComparison:
    """Compare a version with the champion, whose version number is `number`, on the labelled texts of both.

    An interval has the confidence 1 - 2 `significance`, by a paired bootstrap over the documents, or over their
    `groups` (n,); the bound of the gate is lower, since gates share their risk. Labels are compared by name, so the two
    may know different classes. Raises ValueError where they did not measure the same texts.
    """
    metric = version.report.metric
    spaces = version.original.label_space, champion.original.label_space
    classes = sorted({name for space in spaces for name in space.classes})
    common = LabelSpace(tuple(classes), any(space.multilabel for space in spaces))

    def compare(given: JudgedTexts, champion_given: JudgedTexts) -> tuple[float, float, Estimate]:
        """The scores of both for the same texts, and the difference."""
        y, labels, champion_labels = (
            common.index(judged.label_space.names(targets))
            for judged, targets in ((given, given.y), (given, given.given), (champion_given, champion_given.given))
        )
        own, of_champion = score(metric, y, labels), score(metric, y, champion_labels)
        of_rows = None if groups is None else groups[given.rows]
        interval = difference_interval(metric, y, labels, champion_labels, significance, seed, of_rows)
        return own, of_champion, Estimate(own - of_champion, *interval)

    differences = []
    of_both = zip(version.report.figures, version.changed, champion.changed, strict=True)
    for figures, changed, champion_changed in of_both:
        if not np.array_equal(changed.rows, champion_changed.rows):
            raise ValueError(f"{figures.name}: the champion has other changed texts; expected those of the version")
        if figures.keeps_label:
            compared = compare(changed, champion_changed)
            differences.append(PerturbationDifference(figures.name, figures.severity, *compared))
    *_, original = compare(version.original, champion.original)
    return RobustnessComparison(number, champion.report, 1 - 2 * significance, original, tuple(differences))
