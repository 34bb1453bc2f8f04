"""Drive the nights of all models of a command: classify them in passes, and publish each by itself.

A model that fails keeps no other one from being published: its error is kept until all are done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipelines.nightly.classify_pass import classify_pass
from pipelines.nightly.command_result import CommandResult, NightFailure
from pipelines.nightly.finish import delete_work, find_finished, finish_night, show_reports
from pipelines.nightly.night import Night, NightShare
from pipelines.nightly.night_pass import enter_pass, form_passes
from pipelines.nightly.observed_nights import describe_published, log_night
from pipelines.nightly.report.night_report import REPORT, NightReport
from pipelines.nightly.tables.night_records import RUNS, Run, find_runs, is_later_run, list_run_names
from pipelines.nightly.tables.passes import find_pass, open_runs
from pipelines.nightly.tables.publication import publish_night
from pipelines.service_errors import UnavailableError
from pipelines.storage.lease import overtaken_first
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import end_run, observe_stage, observe_work, update_run
from spin.errors import SpinError, UserError
from spin.pages.number_format import counted

_log = logging.getLogger(__name__)


class NightDriver:
    """Works on the nights of a command, and keeps what is published and what has failed.

    First `publish_finished`, then `classify` for each of the passes in `waiting_passes`, then `end`. `refused` are the
    failures of the models whose runs cannot go on. `on_published` is called for each night as soon as it is published.
    """

    def __init__(
        self,
        nights: Sequence[Night],
        refused: Sequence[NightFailure],
        on_published: Callable[[Night, NightReport], None],
    ) -> None:
        self.nights, self.on_published = nights, on_published
        self.several = len(nights) + len(refused) > 1
        self.reports: dict[str, NightReport] = {}
        """reports of the nights that are published, by model"""
        self.failures = {failure.model: failure for failure in refused}
        """by model"""
        self.finished: set[str] = set()
        """models whose runs need nothing computed, published or not"""
        self.shown: set[str] = set()
        """models whose reports were shown"""

    def publish_finished(self) -> None:
        """Publish the runs that another driver, or an earlier command, has finished.

        Where the store does not answer and other models classify meanwhile, it is tried again after them.
        """
        for night in self.nights:
            with self._keeping_failure(night):
                try:
                    self._publish_if_finished(night)
                except UnavailableError as error:
                    if not self.several:
                        raise
                    _log.warning("model %s: %s; this is tried again later", night.name, error)
                    _log.debug("a finished run could not be published", exc_info=True)
        self._show_published()

    def waiting_passes(self) -> Iterator[list[Night]]:
        """The nights that are not finished, by pass; without the passes all of whose nights have failed."""
        for group in form_passes([night for night in self.nights if night.name not in self.finished]):
            if any(map(self._is_waiting, group)):
                yield group

    def classify(self, nights: Sequence[Night]) -> None:
        """Classify some nights in one pass, and publish each of them.

        A night that has failed, such as one that another driver has taken over, is classified with the others: each
        shard must hold the documents of all runs of the pass that are not finished, for the driver that continues it.
        """
        with self._keeping_failure(*nights):
            shared = enter_pass(nights)
            waiting = [night.name for night in nights if self._is_waiting(night)]
            with overtaken_first(shared.lease):
                shares = classify_pass(shared, waiting)
            for night in filter(self._is_waiting, nights):
                self._finish_and_publish(night, shares[night.name])
        self._show_published()

    def end(self) -> CommandResult:
        """Publish what could not be published at first, and return what was done."""
        for night in filter(self._is_waiting, self.nights):
            with self._keeping_failure(night):
                self._publish_if_finished(night)
                if night.name not in self.reports:
                    raise SpinError(f"run {night.run.name} was neither published nor did it fail; run it again")
        self._show_published()
        names = sorted({*(night.name for night in self.nights), *self.failures})
        return CommandResult(
            tuple(names),
            tuple(self.reports[name] for name in names if name in self.reports),
            tuple(self.failures[name] for name in names if name in self.failures),
            {night.name: night.settings.backbone for night in self.nights},
        )

    def _is_waiting(self, night: Night) -> bool:
        """Whether a night is neither published nor has it failed."""
        return night.name not in self.reports and night.name not in self.failures

    @contextmanager
    def _keeping_failure(self, *nights: Night) -> Iterator[None]:
        """Work on nights; keep an error as their failure, and go on."""
        with working_on([CurrentRun(night.run.name, night.name) for night in nights]):
            try:
                with observe_work(), self._logging_failure(nights):
                    yield
            except Exception as error:
                for night in nights:
                    self.failures.setdefault(night.name, NightFailure(night.name, error))
                    end_run(night.run.name, error)

    @contextmanager
    def _logging_failure(self, nights: Sequence[Night]) -> Iterator[None]:
        """Log an error if there are several models: a single model's error ends the command, which prints it."""
        try:
            yield
        except Exception as error:
            if self.several:
                for night in nights:
                    _log.warning("model %s: %s", night.name, NightFailure(night.name, error).message)
                level = logging.DEBUG if isinstance(error, SpinError) else logging.WARNING
                _log.log(level, "failed: %s", ", ".join(night.name for night in nights), exc_info=True)
            raise

    def _publish_if_finished(self, night: Night) -> None:
        run = night.run
        if run.published:
            self.finished.add(night.name)
        with overtaken_first(night.lease):
            night.lease.check()
            finished = find_finished(night)
            if finished is not None:
                self.finished.add(night.name)
                self._publish(night, *finished)
            elif run.published and run.record.is_alone:
                self.finished.discard(night.name)  # its report is made again from the log of its shards
            elif run.published:
                raise UserError(
                    f"{night.tables.out.uri}: the night of {run.record.date} is published, but its run {run.name} has "
                    f"lost its report ({REPORT}); --restart begins a new run"
                )

    def _finish_and_publish(self, night: Night, share: NightShare | SpinError) -> None:
        # guarded by test_a_model_that_fails_its_limits_holds_back_no_other; broken by:
        #   with overtaken_first(night.lease):
        with self._keeping_failure(night), overtaken_first(night.lease):
            if isinstance(share, SpinError):
                raise share
            with observe_stage("report"):
                finished = finish_night(night, share)
            self._publish(night, *finished)

    def _publish(self, night: Night, report: NightReport, run: Run | None) -> None:
        """Publish a finished run; `run` is None if it is published already."""
        if run is None:
            late = night.run.late
            _log.warning(
                "%s: the night of %s is published (run %s), so nothing was computed%s; --restart begins a new run",
                night.tables.out.uri,
                report.date,
                report.run,
                f"; {counted(len(late), 'file')} of the input came later, such as {late[0]}" if late else "",
            )
        else:
            with observe_stage("publish"):
                night.lease.check()
                publish_night(night.tables, run, claim=night.claim, kept=night.kept)
            update_run(describe_published(night, report, run))
        self.reports[night.name] = report

    def _show_published(self) -> None:
        """Show the reports of the nights that were published since the last call, and log them to MLflow.

        Then delete the work of their passes and of runs that they follow, among it texts, before another pass begins.
        """
        nights = [night for night in self.nights if night.name in self.reports and night.name not in self.shown]
        for night in nights:
            self.shown.add(night.name)
            report = self.reports[night.name]
            with self._keeping_failure(night), overtaken_first(night.lease):
                self.on_published(night, report)
                log_night(night, report, show_reports(night, report))
            end_run(night.run.name)
        for group in form_passes(nights):
            _delete_work(group)


def _delete_work(nights: Sequence[Night]) -> None:
    """Delete what the published nights of a pass, and the runs that they follow, have worked with.

    The work of a pass stays as long as one of its runs needs it. Nothing depends on the deletion.
    """
    out, run = nights[0].tables.out, nights[0].run.record
    try:
        names = list_run_names(out)
        earlier = [name for name in names if any(is_later_run(night.run.name, name) for night in nights)]
        for record in [run, *find_runs(out, earlier).values()]:
            shared = find_pass(out, record)
            if shared is not None and not open_runs(nights[0].tables, shared.runs):
                delete_work(out / f"{RUNS}/{shared.name}")
    except SpinError:
        _log.warning("%s: what run %s worked with could not be deleted; a vacuum does it", out.uri, run.name)
        _log.debug("the work of the pass could not be deleted", exc_info=True)
