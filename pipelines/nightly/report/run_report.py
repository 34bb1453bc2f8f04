"""The reports of a nightly run: `report.json`, and `report.html`, a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.nightly.report.night_report import REPORT, NightReport
from pipelines.nightly.steps.counts import NightCounts
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.records import to_bytes
from spin.monitor import drift_statistics
from spin.monitor.drift_statistics import Labels
from spin.monitor.quality import ClassQuality
from spin.pages.rendering import render_report
from spin.sites import exit_name

PAGE = "report.html"
"""name of the page beside the report"""
_CLASSES = 30
"""classes listed, the most frequent first"""
_DISAGREEMENTS = 12
"""pairs of labels listed on which the model and its shadow differ"""


@dataclass(frozen=True)
class LabelShares:
    """The share of each label in a set of documents."""

    name: str
    """of the set: heading of a column"""
    shares: Mapping[str, float]
    """by class; "" stands for no label"""


def render_reports(report: NightReport) -> dict[str, bytes]:
    """The files of the report by name."""
    return {
        REPORT: to_bytes(report),
        PAGE: report_page(report).encode(),
    }


def show_newest_report(tables: NightTables) -> None:
    """Copy the reports of the newest night, as far as there are any, to the top of the output."""
    newest = find_newest_night(list_nights(tables))
    if newest is None:
        return
    folder = f"{RUNS}/{newest.run}/"
    for key, report in tables.out.read_many([f"{folder}{name}" for name in (REPORT, PAGE)]).items():
        tables.out.write(key.removeprefix(folder), report)


def report_page(report: NightReport) -> str:
    """The HTML of a run: counts, throughput, labels, shadow, drift, dead letters and slowest shards."""
    counts = report.counts
    columns = _label_columns(report)
    labels = _ranked_labels(columns)
    return render_report(
        "pipelines.nightly.report/run_report.html.j2",
        f"{report.model}, night of {report.date}",
        report=report,
        counts=counts,
        exits=[(exit_name(depth), counts.depths[str(depth)]) for depth in sorted(map(int, counts.depths))],
        throughput=report.throughput,
        label_columns=columns,
        labels=labels[:_CLASSES],
        more_labels=len(labels[_CLASSES:]),
        quality_classes=_listed_classes(report),
        shadow=report.shadow,
        classes_listed=_CLASSES,
        disagreements_listed=_DISAGREEMENTS,
        drifts=report.drift,
        properties={statistic.name: statistic.description for statistic in drift_statistics.STATISTICS},
        reasons=sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0])),
        slowest=report.slowest,
    )


def _listed_classes(report: NightReport) -> list[ClassQuality]:
    """The classes with the most labels."""
    classes = () if report.quality is None else report.quality.classes
    return sorted(classes, key=lambda each: -each.predicted)[:_CLASSES]


def _label_columns(report: NightReport) -> list[LabelShares]:
    """The labels of this night, of the night before, and of the reference in training, where there are such."""
    columns = [_label_shares("this night", report.counts)]
    before = report.before
    if before is not None:
        columns.append(_label_shares(f"night of {before.date}", before.counts))
    for drift in report.drift:
        if drift.name == Labels.name:
            counts = dict(zip([*report.classes, ""], drift.then, strict=True))
            columns.append(LabelShares("reference", _shares(counts)))
    return columns


def _label_shares(name: str, counts: NightCounts) -> LabelShares:
    return LabelShares(name, _shares({**counts.labels, "": counts.unlabelled}))


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def _ranked_labels(columns: list[LabelShares]) -> list[str]:
    """The labels with a document in any column, the most frequent of the first column first."""
    labels = {label for column in columns for label, share in column.shares.items() if share}
    return sorted(labels, key=lambda label: (-columns[0].shares.get(label, 0), label))
