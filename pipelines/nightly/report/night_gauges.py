"""The figures of a night as gauges for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from pipelines.nightly.report.night_report import NightReport
from pipelines.telemetry.gauge_export import GaugeValue
from spin.monitor.quality import QualityEstimate

NIGHT_GAUGES: Mapping[str, str] = {
    "status": "exit status of the last command for the newest night or a later one, 0 after success",
    "last_run_timestamp_seconds": "end of the last command for any night",
    "last_success_timestamp_seconds": "end of the last command that published the newest night, or found it published",
    "date_timestamp_seconds": "date of the newest night, at midnight in UTC",
    "info": "1; its labels name the run and the version of the model",
    "documents": "documents of the newest night, dead letters included",
    "dead_letters": "documents of the newest night that cannot be classified, by reason",
    "quarantined_files": "input files of the newest night that cannot be read",
    "tokens": "tokens that the backbone read for the newest night",
    "seconds": "time in which shards of the newest night were computed",
    "documents_per_second": "documents per second while shards of the newest night were computed",
    "coverage": "share of the classified documents of the newest night that got a label",
    "psi": "population stability index of the newest night against the training, by property",
    "drifted": "1 if a property of the newest night has drifted by more than chance and more than is allowed, else 0",
    "estimated_accuracy": "estimated share of right labels of the newest night; bound is value, low or high",
    "estimated_macro_f1": "estimated macro-F1 of the newest night; bound is value, low or high",
}
"""what each gauge shows, by its name after `spin_night_`"""


def gauge(name: str, value: float, **labels: str) -> GaugeValue:
    """The value of a gauge of `NIGHT_GAUGES` under some labels."""
    return GaugeValue(f"spin_night_{name}", NIGHT_GAUGES[name], float(value), labels)


def list_figures(report: NightReport, ended: float) -> list[GaugeValue]:
    """The figures of a published night; `ended` is the end of its command in seconds since 1970."""
    counts, reasons = report.counts, report.counts.reasons or {"none": 0}
    midnight = datetime.fromisoformat(report.date).replace(tzinfo=UTC)
    return [
        gauge("last_run_timestamp_seconds", ended),
        gauge("last_success_timestamp_seconds", ended),
        gauge("date_timestamp_seconds", midnight.timestamp()),
        gauge("info", 1, run=report.run, version=report.model_version),
        gauge("documents", counts.rows),
        *(gauge("dead_letters", count, reason=reason) for reason, count in reasons.items()),
        gauge("quarantined_files", report.files.quarantined),
        gauge("tokens", counts.tokens),
        gauge("seconds", report.seconds),
        *([gauge("documents_per_second", counts.rows / max(report.seconds, 1e-3))] if counts.rows else []),
        *([gauge("coverage", report.coverage)] if counts.predicted else []),
        *(gauge("psi", drift.psi, property=drift.name) for drift in report.drift),
        *(gauge("drifted", drift.drifted, property=drift.name) for drift in report.drift),
        *_list_quality(report.quality),
    ]


def _list_quality(quality: QualityEstimate | None) -> list[GaugeValue]:
    if quality is None:
        return []
    figures = {"estimated_accuracy": quality.accuracy, "estimated_macro_f1": quality.macro_f1}
    return [
        gauge(name, bound_value, bound=bound)
        for name, figure in figures.items()
        for bound, bound_value in (("value", figure.value), ("low", figure.low), ("high", figure.high))
    ]
