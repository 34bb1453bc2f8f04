"""Export how the nights of a command have ended, as gauges that Prometheus reads after the command."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from pipelines.nightly.night import Night
from pipelines.nightly.report.night_gauges import gauge, list_figures
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_history import find_newest_night, list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.service_errors import DriftError, HeldError, UnavailableError
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.telemetry.gauge_export import GaugeValue, export_gauges
from spin.errors import exit_status
from spin.settings import Settings

_log = logging.getLogger(__name__)


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
