"""The report on robustness as one self-contained HTML page."""

from __future__ import annotations

from itertools import zip_longest

from spin.audit import perturbations
from spin.audit.perturbations import SEVERITIES
from spin.audit.robustness import MODERATE, RobustnessReport
from spin.audit.robustness_comparison import RobustnessComparison
from spin.pages.rendering import render_report
from spin.sites import exit_name

_EXAMPLE = "The room was clean, and the people at the desk were kind to us."
_CLASSES = 30
"""classes listed, those with the most documents first"""


def robustness_page(
    report: RobustnessReport,
    title: str,
    *,
    champion: RobustnessComparison | None = None,
    note: str | None = None,
) -> str:
    """The HTML of a report: all perturbations, then those of moderate severity by class and by exit depth.

    `champion` is shown beside the version, or in its place a `note` why it is missing.
    """
    moderate = report.at(MODERATE)
    sizes = {name: row.by_class[name].documents for row in moderate for name in row.by_class}
    classes = sorted(sizes, key=lambda name: (-sizes[name], name))
    depths = sorted({depth for row in moderate for depth in row.by_exit})
    negations = [row for row in report.figures if not row.keeps_label]
    champions = [] if champion is None else [row for row in champion.report.figures if not row.keeps_label]
    return render_report(
        "spin.audit/robustness.html.j2",
        title,
        report=report,
        champion=champion,
        confidence="" if champion is None else f"{100 * champion.confidence:.4g}\u202f%",
        note=note,
        moderate=moderate,
        negations=list(zip_longest(negations, champions)),
        classes=[(name, name) for name in classes[:_CLASSES]],
        more_classes=len(classes[_CLASSES:]),
        exits=[(depth, exit_name(depth)) for depth in depths],
        example=_EXAMPLE,
        perturbations=perturbations.PERTURBATIONS,
        severities=SEVERITIES,
    )
