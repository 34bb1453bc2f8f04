"""What MLflow logs of a published night: its figures, and the input that it has read."""

from __future__ import annotations

from dataclasses import replace

from pipelines.nightly.night import Night
from pipelines.nightly.observed_nights import input_of
from pipelines.nightly.report.night_report import NightReport
from pipelines.registry.logged_data import LoggedData
from pipelines.registry.night_summary import NightSummary, ShadowSummary


def summarize_night(night: Night, report: NightReport) -> NightSummary:
    """The figures of a published night, with the input that it has read."""
    data = LoggedData(
        name=night.name,
        source=input_of(night),
        digest=night.run.plan.derived.sha256,
        profile={"documents": report.counts.rows, "files": report.files.taken},
    )
    return replace(summarize_report(report), data=data)


def summarize_report(report: NightReport) -> NightSummary:
    """The figures of a night."""
    counts, shadow = report.counts, report.shadow
    return NightSummary(
        date=report.date,
        run=report.run,
        output=report.output,
        fingerprint=report.fingerprint,
        seconds=report.seconds,
        rows=counts.rows,
        predicted=counts.predicted,
        abstained=counts.abstained,
        dead=counts.dead,
        tokens=counts.tokens,
        truncated=counts.truncated,
        windows=counts.windows,
        unread_tokens=counts.unread_tokens,
        depths=counts.depths,
        quarantined_files=report.files.quarantined,
        psi={drift.name: drift.psi for drift in report.drift},
        quality=_quality_metrics(report),
        shadow=None if shadow is None else ShadowSummary(shadow.version, shadow.agreement),
    )


def _quality_metrics(report: NightReport) -> dict[str, float]:
    """Coverage, and the estimated quality with its interval where there is an estimate."""
    coverage = {"coverage": report.coverage} if report.counts.predicted else {}
    if report.quality is None:
        return coverage
    figures = {"accuracy": report.quality.accuracy, "macro_f1": report.quality.macro_f1}
    return coverage | {
        f"estimated_{name}{end}": value
        for name, figure in figures.items()
        for end, value in (("", figure.value), ("_low", figure.low), ("_high", figure.high))
    }
