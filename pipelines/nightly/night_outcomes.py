"""Export how the nights of a command have ended, as gauges that Prometheus reads after the command."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipelines.nightly.finish_nights import CommandResult
from pipelines.nightly.report.night_gauges import list_figures, list_status
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.service_errors import DriftError, HeldError
from pipelines.storage.lease import Lease
from pipelines.telemetry.gauge_export import export_gauges
from spin.errors import SpinError
from spin.settings import MetricsSettings, Settings

_log = logging.getLogger(__name__)
_INTERRUPTED = 130
"""exit status after Ctrl-C"""


@contextmanager
def failures_exported(settings: MetricsSettings, models: Sequence[str]) -> Iterator[None]:
    """Export the exit status of an error that ends the context, for all models.

    HeldError is not exported: the run that holds the output exports its own outcome, perhaps before this one fails.
    """
    try:
        yield
    except HeldError:
        raise
    except BaseException as error:
        for model in models:
            export_gauges(settings, model, list_status(_exit_status(error), time.time()), replace=False)
        raise


def export_outcomes(
    settings: Settings, tables: NightTables, leases: Mapping[str, Lease], result: CommandResult
) -> None:
    """Export the status of each model's night, and the figures of a night if it is the newest of its model.

    A model whose lease another run has taken is left out: this process may have slept while that run published a later
    night. `leases` are those of the models by name.
    """
    if settings.metrics.pushgateway is None and settings.metrics.textfile is None:
        return
    failed = {failure.model: failure.status for failure in result.failures}
    reports = {report.model: report for report in result.reports}
    for model in result.models:
        try:
            leases[model].check()
            newest = _is_newest(tables, reports.get(model))
        except SpinError as error:
            _log.warning("the figures of the night of model %s are not exported: %s", model, error)
            _log.debug("the figures of a night are not exported", exc_info=True)
            continue
        report = reports.get(model)
        status = failed.get(model, DriftError.status if settings.classify.fail_on_drift and _drifted(report) else 0)
        values = list_status(status, time.time())
        if report is not None and newest:
            values += list_figures(report, time.time())
        export_gauges(settings.metrics, model, values, replace=report is not None and newest)


def _is_newest(tables: NightTables, report: NightReport | None) -> bool:
    """Whether no night of the model has a later date."""
    if report is None:
        return False
    dates = [night.date for night in list_nights(tables) if night.model == report.model]
    return report.date >= max(dates, default=report.date)


def _drifted(report: NightReport | None) -> bool:
    return report is not None and any(drift.drifted for drift in report.drift)


def _exit_status(error: BaseException) -> int:
    """The exit status of a command that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    return int(getattr(error, "status", SpinError.status))
