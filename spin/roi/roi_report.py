"""The return on investment of a classifier: its operating points, the alternatives, what repays it, and its page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import yaml

from spin.pages.charts import Line, line_chart
from spin.pages.rendering import render_report
from spin.roi.operating_points import THOUSAND, OperatingPoint, best_point, rank_cost


@dataclass(frozen=True)
class Alternative:
    """Another way to label the documents; its costs are per thousand documents."""

    name: str
    errors: float
    """share of the documents that get a wrong label, from 0 to 1"""
    error_cost: float
    running: float
    """compute, the price of a service, or the work of people"""
    needs_labels: bool
    """whether it is trained on the same labelled documents"""

    @property
    def total(self) -> float:
        return self.error_cost + self.running


@dataclass(frozen=True)
class RoiReport:
    """Costs in the currency in which prices were given; those of points and alternatives are per thousand documents."""

    model: str
    """registered name"""
    version: str
    documents: int
    """labelled documents that the figures are of"""
    volume: float
    """documents to classify"""
    labelling: float | None
    """cost of labelling all documents of the training; None where their number is not known"""
    points: tuple[OperatingPoint, ...]
    """every classifier with and without exits, at every abstention band"""
    bests: tuple[OperatingPoint, ...]
    """the best point of every classifier with and without exits, with its interval"""
    alternatives: tuple[Alternative, ...]

    @property
    def best(self) -> OperatingPoint:
        """The point with the least expected cost of all."""
        return best_point(self.bests)

    def break_even(self, alternative: Alternative) -> float | None:
        """The number of documents from which the version is cheaper than an alternative.

        Before, the price of its labels outweighs what each document saves. 0 where the alternative needs the same
        labels and costs more; None where it never is cheaper, or the price of its labels is not known.
        """
        saved = (alternative.total - self.best.total) / THOUSAND
        if saved <= 0:
            return None
        if alternative.needs_labels:
            return 0.0
        return None if self.labelling is None else self.labelling / saved

    def settings(self) -> str:
        """The part of a settings file that runs the best point."""
        best = self.best
        chosen: dict[str, Any] = {
            "choose": best.choose,
            "classify": {"cascade": best.exits},
            "decision": {"abstain": best.abstain},
        }
        return yaml.safe_dump(chosen, sort_keys=False)

    def to_json(self) -> dict[str, object]:
        """The content of `roi.json`."""
        points = {
            name: [asdict(point) | {"total": point.total, "expected_total": point.expected_total} for point in listed]
            for name, listed in (("points", self.points), ("bests", self.bests))
        }
        alternatives = [
            asdict(other) | {"total": other.total, "break_even": self.break_even(other)} for other in self.alternatives
        ]
        best = self.bests.index(self.best)
        return asdict(self) | points | {"alternatives": alternatives, "best": best, "settings": self.settings()}


def roi_page(report: RoiReport) -> str:
    """The HTML of a report: the best point, the curve, all classifiers, the alternatives and the settings."""
    names = list(dict.fromkeys(operation_name(point) for point in report.points))
    lines = [
        Line(name, [(p.abstain, p.expected_total) for p in report.points if operation_name(p) == name])
        for name in names
    ]
    return render_report(
        "spin.roi/roi.html.j2",
        f"Return on investment of {report.model}, version {report.version}",
        report=report,
        best=report.best,
        bests=[(operation_name(point), point) for point in sorted(report.bests, key=rank_cost)],
        lines=lines,
        chart=line_chart(lines, "expected cost per thousand documents by abstention band"),
        highest=max(y for line in lines for _, y in line.points),
    )


def operation_name(point: OperatingPoint) -> str:
    """The name of a classifier, with or without exits."""
    return f"{point.choose}, {'early exits' if point.exits else 'full depth'}"
