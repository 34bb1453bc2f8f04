"""The return on investment as one self-contained HTML page, with the cost by abstention band as a curve."""

from __future__ import annotations

from spin.pages.charts import Line, line_chart
from spin.pages.rendering import render_report
from spin.roi.operating_points import OperatingPoint, rank_cost
from spin.roi.roi_report import RoiReport


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
