"""Export how the nights of a command have ended, as gauges that Prometheus reads after the command."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType

from pipelines.nightly.night import Night
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.service_errors import DriftError, HeldError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.telemetry.gauge_export import GaugeValue, export_gauges
from spin.errors import exit_status
from spin.monitor.quality import Estimate
from spin.settings import Settings

_log = logging.getLogger(__name__)
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


class NightOutcomes:
    """A context that exports the figures of each night once it is published, and the status of each that fails.

    An error that ends the context is the outcome of all models without one. Nothing is exported for a model whose lease
    another run has taken: this process may have slept while that run published a later night. A night of an earlier
    date than the newest leaves the figures and the status of the newest as they are.
    """

    def __init__(self, settings: Settings, models: Sequence[str], output: str, date: str) -> None:
        self.settings, self.output, self.date = settings, output, date
        self.waiting = dict.fromkeys(models)
        """models without an outcome, in order"""
        self._leases: Mapping[str, Lease] = {}

    def __enter__(self) -> NightOutcomes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for model in list(self.waiting):
                self.export_failure(model, error)

    def hold(self, leases: Mapping[str, Lease]) -> None:
        """From now on the command holds the leases of its models, which are checked before anything is exported."""
        self._leases = leases

    def export_published(self, night: Night, report: NightReport) -> None:
        """Export the figures of a published night."""
        drifted = self.settings.classify.fail_on_drift and any(drift.drifted for drift in report.drift)
        figures = [gauge("status", DriftError.status if drifted else 0), *list_figures(report, time.time())]
        self._export(night.name, figures, replace=True)

    def export_failure(self, model: str, error: BaseException) -> None:
        """Export the exit status of an error.

        That of HeldError is not: the run that holds the output exports its own outcome, perhaps before this one fails.
        """
        # guarded by test_a_command_that_finds_the_output_held_exports_nothing; broken by:
        #   if False:
        if isinstance(error, HeldError):
            self.waiting.pop(model, None)
        else:
            values = [gauge("status", exit_status(error)), gauge("last_run_timestamp_seconds", time.time())]
            # a store that does not answer is not asked whether there is a newer night
            self._export(model, values, replace=False, ask=not isinstance(error, UnavailableError))

    def _export(self, model: str, values: Sequence[GaugeValue], *, replace: bool, ask: bool = True) -> None:
        """Export gauges of a model; those of a night that is not the newest are only the end of its command."""
        self.waiting.pop(model, None)
        metrics = self.settings.metrics
        if metrics.pushgateway is None and metrics.textfile is None:
            return
        try:
            if ask and self._is_older(model):
                values, replace = [gauge("last_run_timestamp_seconds", time.time())], False
            if model in self._leases:
                # guarded by test_a_driver_that_slept_while_or_after_it_published_exports_nothing
                self._leases[model].check()
        except HeldError as error:
            _log.warning("model %s: the figures of its night are not exported: %s", model, error)
            return
        except Exception:  # without an answer of the store the figures are worth more than their order
            _log.debug("model %s: its newest night is not known", model, exc_info=True)
        export_gauges(metrics, model, self.output, values, replace=replace)

    def _is_older(self, model: str) -> bool:
        """Whether a night of the model with a later date is published."""
        newest = find_newest_night(list_nights(NightTables(Store(self.output))), model=model)
        # guarded by test_a_night_of_an_earlier_date_leaves_the_figures_of_the_newest; broken by:
        #   return False
        return newest is not None and newest.date > self.date


def gauge(name: str, value: float, **labels: str) -> GaugeValue:
    """The value of a gauge of `NIGHT_GAUGES` under some labels."""
    return GaugeValue(f"spin_night_{name}", NIGHT_GAUGES[name], float(value), labels)


def list_figures(report: NightReport, ended: float) -> list[GaugeValue]:
    """The figures of a published night; `ended` is the end of its command in seconds since 1970."""
    counts, reasons = report.counts, report.counts.reasons or {"none": 0}
    estimates: dict[str, Estimate] = {}
    if report.quality is not None:
        estimates = {"estimated_accuracy": report.quality.accuracy, "estimated_macro_f1": report.quality.macro_f1}
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
        *(
            gauge(name, value, bound=bound)
            for name, figure in estimates.items()
            for bound, value in (("value", figure.value), ("low", figure.low), ("high", figure.high))
        ),
    ]
