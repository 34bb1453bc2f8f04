"""The reports of a nightly run: `report.json`, and `report.html`, a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

Shares = Mapping[str, float]
"""the share of each label in a set of documents; "" stands for no label"""


def render_reports(report: NightReport) -> dict[str, bytes]:
    """The files of the report by name."""
    return {REPORT: to_bytes(report), PAGE: report_page(report).encode()}


def show_newest_report(tables: NightTables) -> None:
    """Copy the reports of the newest night to the top of the output, once it has both.

    So what is there is of one night. Its page is missing until the driver that has published it has written it.
    """
    newest = find_newest_night(list_nights(tables))
    if newest is None:
        return
    names = (REPORT, PAGE)
    reports = tables.out.read_many([f"{RUNS}/{newest.run}/{name}" for name in names])
    if len(reports) == len(names):
        for name, report in zip(names, reports.values(), strict=True):
            tables.out.write(name, report)


def report_page(report: NightReport) -> str:
    """The HTML of a run: counts, throughput, labels, shadow, drift, dead letters and slowest shards."""
    counts = report.counts
    shares = _label_shares(report)
    labels = _ranked_labels(list(shares.values()))
    return render_report(
        "pipelines.nightly.report/run_report.html.j2",
        f"{report.model}, night of {report.date}",
        report=report,
        counts=counts,
        exits=[(exit_name(depth), counts.depths[str(depth)]) for depth in sorted(map(int, counts.depths))],
        throughput=report.throughput,
        label_shares=shares,
        labels=labels[:_CLASSES],
        more_labels=len(labels[_CLASSES:]),
        quality_classes=_listed_classes(report),
        shadow=report.shadow,
        classes_listed=_CLASSES,
        disagreements_listed=_DISAGREEMENTS,
        properties={statistic.name: statistic.description for statistic in drift_statistics.STATISTICS},
        reasons=sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0])),
    )


def _listed_classes(report: NightReport) -> list[ClassQuality]:
    """The classes with the most labels."""
    classes = () if report.quality is None else report.quality.classes
    return sorted(classes, key=lambda each: -each.predicted)[:_CLASSES]


def _label_shares(report: NightReport) -> dict[str, Shares]:
    """The labels of this night, of the night before, and of the reference in training, where there are such."""
    shares = {"this night": _shares_of_night(report.counts)}
    before = report.before
    if before is not None:
        shares[f"night of {before.date}"] = _shares_of_night(before.counts)
    for drift in report.drift:
        if drift.name == Labels.name:
            shares["reference"] = _shares(dict(zip([*report.classes, ""], drift.then, strict=True)))
    return shares


def _shares_of_night(counts: NightCounts) -> Shares:
    return _shares({**counts.labels, "": counts.unlabelled})


def _shares(counts: Mapping[str, int]) -> Shares:
    total = max(1, sum(counts.values()))
    return {name: count / total for name, count in counts.items()}


def _ranked_labels(sets: Sequence[Shares]) -> list[str]:
    """The labels with a document in any set, the most frequent of the first set first."""
    labels = {label for shares in sets for label, share in shares.items() if share}
    return sorted(labels, key=lambda label: (-sets[0].get(label, 0), label))
