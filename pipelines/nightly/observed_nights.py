"""The records of nights for observers: what traces, lineage and MLflow tell of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.nightly.night import Night
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_records import Run
from pipelines.nightly.tables.night_tables import TABLES
from pipelines.registry.version_records import LoggedData
from pipelines.storage.delta_table import DataFile
from pipelines.telemetry.current_runs import CurrentRun
from pipelines.telemetry.run_record import DataUse, RunRecord


def describe_night(night: Night) -> RunRecord:
    """The night as this process begins to work on it."""
    run = night.run
    files = run.listing.files
    read = DataUse(uri=_input_of(night), kind="files", files=len(files), bytes=sum(file.size for file in files))
    model = DataUse(uri=night.name, kind="model", version=run.record.model_version)
    return RunRecord(
        run=CurrentRun(run.name, night.name),
        kind="night",
        number=night.claim,
        home=night.tables.out.uri,
        records=run.store,
        date=run.record.date,
        inputs=(read, model),
        outputs=tuple(DataUse(uri=f"{night.tables.out.uri}/{table}", kind="table") for table in TABLES),
    )


def describe_published(night: Night, report: NightReport, run: Run) -> RunRecord:
    """The night with the numbers of what it has read and written, once it is published."""
    started = describe_night(night)
    read, model = started.inputs
    read = replace(read, rows=report.counts.rows, files=report.files.taken)
    tables = zip(started.outputs, TABLES, strict=True)
    written = tuple(_add_files(use, run.files.get(table, ())) for use, table in tables)
    return replace(started, inputs=(read, model), outputs=written)


def log_night(night: Night, report: NightReport, reports: Mapping[str, bytes]) -> None:
    """Log a published night to MLflow, with the input that it has read and its reports."""
    tags = {
        "spin.version": report.model_version,
        "spin.night": report.date,
        "spin.run": report.run,
        "spin.output": report.output,
        "spin.fingerprint": report.fingerprint,
        **({} if report.shadow is None else {"spin.shadow": report.shadow.version}),
    }
    data = LoggedData(
        name=night.name,
        source=_input_of(night),
        digest=night.run.plan.derived.sha256,
        profile={"documents": report.counts.rows, "files": report.files.taken},
    )
    night.model.registry.log_night(tags, list_metrics(report), reports, data)


def list_metrics(report: NightReport) -> dict[str, float]:
    """The figures of a night as metrics of MLflow."""
    counts, rows, shadow = report.counts, max(1, report.counts.rows), report.shadow
    metrics: dict[str, float] = {
        "rows": counts.rows,
        "predicted": counts.predicted,
        "abstained": counts.abstained,
        "dead": counts.dead,
        "tokens": counts.tokens,
        "truncated": counts.truncated,
        "dead_rate": counts.dead / rows,
        "quarantined_files": report.files.quarantined,
        "documents_per_s": round(counts.rows / max(report.seconds, 1e-3), 2),
        **{f"depth_{depth}": count / rows for depth, count in counts.depths.items()},
        **{f"psi_{drift.name}": drift.psi for drift in report.drift},
    }
    if counts.predicted:
        metrics["coverage"] = report.coverage
    if report.quality is not None:
        for name, figure in {"accuracy": report.quality.accuracy, "macro_f1": report.quality.macro_f1}.items():
            for end, value in (("", figure.value), ("_low", figure.low), ("_high", figure.high)):
                metrics[f"estimated_{name}{end}"] = value
    if counts.windows:
        metrics |= {"windows": counts.windows, "unread_tokens": counts.unread_tokens}
    if shadow is not None and shadow.agreement is not None:
        metrics["shadow_agreement"] = shadow.agreement
    return metrics


def _input_of(night: Night) -> str:
    """The file, folder or glob that a night reads."""
    return str(night.run.plan.metadata["data"]["input"])


def _add_files(table: DataUse, files: Sequence[DataFile]) -> DataUse:
    """The use of a table with the numbers of what a night has written to it."""
    rows, size = sum(file.rows for file in files), sum(file.size for file in files)
    return replace(table, rows=rows, files=len(files), bytes=size)
