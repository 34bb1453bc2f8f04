"""Work on the nights of all models of a command: classify them in passes, and publish each by itself.

A model that fails keeps no other one from being published: its error is kept until all are done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from pipelines.nightly.classify_pass import classify_pass
from pipelines.nightly.finish import (
    ClassifiedNight,
    Driver,
    build_report,
    check_files,
    check_rows,
    delete_work,
    find_finished,
    finish_night,
    publish,
    reconcile,
    show_reports,
)
from pipelines.nightly.night_pass import ModelNight, enter_pass, form_passes
from pipelines.nightly.observed_nights import describe_published, input_of
from pipelines.nightly.report.dead_letters import name_dead_letters
from pipelines.nightly.report.drift_causes import name_causes
from pipelines.nightly.report.drift_check import measure_drift
from pipelines.nightly.report.night_report import REPORT, NightReport
from pipelines.nightly.report.quality_check import NightQuality, estimate_labels
from pipelines.nightly.steps.classify_job import PROFILE, SAMPLE
from pipelines.nightly.steps.night_profile import sum_profiles
from pipelines.nightly.tables.night_records import RUNS, NightRecord, RunRecord
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, NightTables
from pipelines.nightly.tables.passes import find_pass, open_runs
from pipelines.registry.logged_data import LoggedData
from pipelines.registry.night_summary import NightSummary, ShadowSummary
from pipelines.service_errors import DriftError, HeldError, UnavailableError
from pipelines.storage.lease import Lease, LeaseGroup
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import add_results, end_run, observe_stage, observe_work
from spin.classifier import TrainedClassifier
from spin.errors import SpinError, UserError, describe_error, exit_status
from spin.heads.held_out import HeldOutLogits
from spin.monitor.agreement import ShadowAgreement, total_agreement
from spin.monitor.drift import Drift
from spin.settings import BackboneSettings

_log = logging.getLogger(__name__)
OnPublished = Callable[[ModelNight, NightReport], None]
"""called with a night that is published and its report"""


@dataclass(frozen=True)
class NightFailure:
    """Why the night of a model has failed, or what failed after it was published."""

    model: str
    """name of the registered model"""
    error: Exception
    """the error"""

    @property
    def status(self) -> int:
        """Exit status of the error."""
        return exit_status(self.error)

    @property
    def message(self) -> str:
        """The error in one line."""
        return str(self.error) if isinstance(self.error, SpinError) else describe_error(self.error)


@dataclass(frozen=True)
class CommandResult:
    """What a command has done for its models."""

    models: tuple[str, ...]
    """names of the registered models, in order"""
    reports: tuple[NightReport, ...]
    """reports of the nights that are published, in order of model"""
    failures: tuple[NightFailure, ...]
    """what has failed, in order of model"""
    backbones: Mapping[str, BackboneSettings] = field(default_factory=dict)
    """settings of the backbone by model: that of the command's settings, or the model's own"""

    def raise_failures(self) -> None:
        """Raise the error with the highest exit status; of a command for several models, the message names each.

        That of drift comes after all others: the night is published, and the others may say that one is not.
        """
        raise_failures(self.failures, several=len(self.models) > 1)


def raise_failures(failures: Sequence[NightFailure], *, several: bool) -> None:
    """Raise the error with the highest exit status, if there is one; with `several` models, the message names each.

    That of drift counts as the lowest: it says that a night is published, and must not hide that another one is not.
    """
    if not failures:
        return
    worst = max(failures, key=lambda failure: (failure.status != DriftError.status, failure.status))
    if not several:
        raise worst.error
    kind = type(worst.error) if isinstance(worst.error, SpinError) else SpinError
    ordered = [worst, *(failure for failure in failures if failure is not worst)]
    raise kind("; ".join(f"model {failure.model}: {failure.message}" for failure in ordered)) from worst.error


def refuse_run(model: str, lease: Lease, error: UserError) -> NightFailure:
    """The failure of a model whose run cannot go on: the error, or HeldError if another driver has taken over."""
    try:
        with overtaken_first(lease):
            raise error
    except SpinError as found:
        _log.debug("the run of model %s is refused", model, exc_info=True)
        return NightFailure(model, found)


def work_on_nights(
    nights: Sequence[ModelNight],
    refused: Sequence[NightFailure] = (),
    *,
    on_published: OnPublished = lambda night, report: None,
) -> CommandResult:
    """Publish the runs that are finished, classify the others in passes and publish them, then show and log all.

    `refused` are the failures of the models of the command whose runs cannot go on. `on_published` is called for each
    night as soon as it is published.
    """
    work = _Work(nights, on_published, failures={failure.model: failure for failure in refused})
    for night in nights:
        work.publish_if_finished(night)
    work.show_published()
    for group in form_passes([night for night in nights if night.name not in work.finished]):
        if any(map(work.is_waiting, group)):
            work.classify(group)
            work.show_published()
    for night in filter(work.is_waiting, nights):
        work.publish_again(night)
    work.show_published()
    work.delete_work_of_passes()
    names = sorted([*(night.name for night in nights), *(failure.model for failure in refused)])
    reports = [work.reports[name] for name in names if name in work.reports]
    failures = [work.failures[name] for name in names if name in work.failures]
    backbones = {night.name: night.model.settings.backbone for night in nights}
    return CommandResult(tuple(names), tuple(reports), tuple(failures), backbones)


@dataclass
class _Work:
    """The state of the nights of a command."""

    nights: Sequence[ModelNight]
    on_published: OnPublished
    """called for each night as soon as it is published"""
    reports: dict[str, NightReport] = field(default_factory=dict)
    """of the nights that are published, by model"""
    failures: dict[str, NightFailure] = field(default_factory=dict)
    """by model"""
    finished: set[str] = field(default_factory=set)
    """models whose runs need nothing computed, published or not"""
    shown: set[str] = field(default_factory=set)
    """models whose reports were shown"""

    def __post_init__(self) -> None:
        self.several = len(self.nights) + len(self.failures) > 1

    def is_waiting(self, night: ModelNight) -> bool:
        """Whether a night is neither published nor has it failed."""
        return night.name not in self.reports and night.name not in self.failures

    @contextmanager
    def keeping_failure(self, *nights: ModelNight) -> Iterator[None]:
        """Work on nights; keep an error as their failure, and go on."""
        with working_on([CurrentRun(night.run, night.name) for night in nights]):
            try:
                with observe_work(), self._logging_failure(nights):
                    yield
            except Exception as error:
                for night in nights:
                    self.failures.setdefault(night.name, NightFailure(night.name, error))
                    end_run(night.run, error)

    @contextmanager
    def _logging_failure(self, nights: Sequence[ModelNight]) -> Iterator[None]:
        """Log an error if there are several models: that of a single one ends the command, which prints it."""
        try:
            yield
        except Exception as error:
            if self.several:
                for night in nights:
                    _log.warning("model %s: %s", night.name, NightFailure(night.name, error).message)
                level = logging.DEBUG if isinstance(error, SpinError) else logging.WARNING
                _log.log(level, "failed: %s", ", ".join(night.name for night in nights), exc_info=True)
            raise

    def publish_if_finished(self, night: ModelNight) -> None:
        """Publish a run that another driver, or an earlier command, has finished.

        Where the store does not answer and other models classify meanwhile, it is tried again after them.
        """
        with self.keeping_failure(night):
            try:
                self._publish_if_finished(night)
            except UnavailableError as error:
                if not self.several:
                    raise
                _log.warning("model %s: %s; this is tried again later", night.name, error)
                _log.debug("a finished run could not be published", exc_info=True)

    def publish_again(self, night: ModelNight) -> None:
        """Publish a run that could not be published at first; if that fails, or it is not finished, it has failed."""
        with self.keeping_failure(night):
            self._publish_if_finished(night)
            if night.name not in self.reports:
                raise SpinError(f"run {night.run} was neither published nor did it fail; run it again")

    def _publish_if_finished(self, night: ModelNight) -> None:
        driver = night.driver
        if driver.run.published:
            self.finished.add(night.name)
        with overtaken_first(driver.lease):
            driver.lease.check()
            finished = find_finished(driver)
            if finished is not None:
                self.finished.add(night.name)
                self.publish(night, *finished)
            elif driver.run.published and driver.run.record.shared_pass is None:
                self.finished.discard(night.name)  # its report is made again from the log of its shards
            elif driver.run.published:
                raise UserError(
                    f"{driver.tables.out.uri}: the night of {driver.run.record.date} is published, but its run "
                    f"{night.run} has lost its report ({REPORT}); --restart begins a new run"
                )

    def classify(self, nights: Sequence[ModelNight]) -> None:
        """Classify some nights in one pass, and publish each of them.

        A night that has failed, such as one that another driver has taken over, is classified with the others: each
        shard must hold the documents of all runs of the pass that are not finished, for the driver that continues it.
        """
        with self.keeping_failure(*nights):
            shared = enter_pass(nights)
            waiting = [night.name for night in nights if self.is_waiting(night)]
            with overtaken_first(shared.lease):
                classified = classify_pass(shared, waiting)
            for night in filter(self.is_waiting, nights):
                self._finish_and_publish(night, classified[night.name])

    def _finish_and_publish(self, night: ModelNight, classified: ClassifiedNight | SpinError) -> None:
        with self.keeping_failure(night), overtaken_first(night.driver.lease):
            if isinstance(classified, SpinError):
                raise classified
            with observe_stage("report"):
                finished = _finish(night, classified)
            self.publish(night, *finished)

    def publish(self, night: ModelNight, report: NightReport, record: NightRecord | None) -> None:
        """Publish a finished run; `record` is None if it is published already."""
        if record is None:
            _log.warning(
                "%s: the night of %s is published (run %s), so nothing was computed; --restart begins a new run",
                night.driver.tables.out.uri,
                report.date,
                report.run,
            )
        else:
            with observe_stage("publish"):
                publish(night.driver, record)
            add_results(night.run, describe_published(night, report, record))
        self.reports[night.name] = report

    def show_published(self) -> None:
        """Show the reports of the nights that were published since the last call, and log them to MLflow."""
        for night in self.nights:
            report = self.reports.get(night.name)
            if report is not None and night.name not in self.shown:
                self.shown.add(night.name)
                with self.keeping_failure(night), overtaken_first(night.driver.lease):
                    self.on_published(night, report)
                    model = night.model
                    summary = replace(_summary(report), data=_describe_data(night, report))
                    model.registry.log_night(model.version, summary, show_reports(night.driver, report))
                end_run(night.run)

    def delete_work_of_passes(self) -> None:
        """Delete what the passes of the published nights have worked with, where none of their runs needs it."""
        for group in form_passes([night for night in self.nights if night.name in self.reports]):
            _delete_work_of_pass(group[0].driver.tables, group[0].driver.run.record)


@contextmanager
def overtaken_first(lease: Lease | LeaseGroup) -> Iterator[None]:
    """Raise HeldError in place of another error if another driver has taken over.

    It may have published the run of this one and deleted what nobody needs then, so the error may follow from that.
    """
    try:
        yield
    except HeldError:
        raise
    except SpinError as error:
        try:
            lease.check()
        except HeldError as overtaken:
            raise overtaken from error
        except SpinError:
            _log.debug("the lease could not be checked after an error", exc_info=True)
        raise


def _finish(night: ModelNight, classified: ClassifiedNight) -> tuple[NightReport, NightRecord]:
    """Check a classified night and write its records. Raises BadRowsError if it is outside of its limits."""
    driver: Driver = night.driver
    reconcile(classified)
    drift, quality = _assess(night, classified)
    report = build_report(
        driver,
        classified,
        classes=night.model.metadata.classes,
        drift=drift,
        quality=quality,
        shadow=_total_agreement(night, classified),
    )
    check_files(driver.settings.classify, classified.quarantined, report.files.total)
    dead = [key for outcome in classified.outcomes for key in outcome.files if key.startswith(f"{DEAD_LETTERS}/")]
    check_rows(
        driver.settings.classify,
        report.counts.reasons,
        report.counts.rows,
        lambda: name_dead_letters(driver.tables.out, dead, driver.settings.data),
    )
    return finish_night(driver, classified, report)


def _assess(night: ModelNight, classified: ClassifiedNight) -> tuple[list[Drift], NightQuality]:
    """The drift of the classified documents from the reference of the model, with its causes, and their quality."""
    settings, out, model = night.driver.settings, night.driver.tables.out, night.model.folder / "model"
    profile = sum_profiles(out, _keys(classified, PROFILE))
    if profile is None:
        return [], NightQuality(None)
    spin, held_out = TrainedClassifier.open(model, settings), HeldOutLogits.read(model, settings.choose)
    drift = measure_drift(profile, model, spin, held_out, settings.classify.max_psi)
    drift = name_causes(drift, out, _keys(classified, SAMPLE), spin.fitted.selection, settings.classify)
    return drift, estimate_labels(profile.quality, spin, held_out, drift)


def _keys(classified: ClassifiedNight, ending: str) -> list[str]:
    """The keys in the output of the files of shards that have an ending."""
    return [key for outcome in classified.outcomes for key in outcome.files if key.endswith(ending)]


def _total_agreement(night: ModelNight, classified: ClassifiedNight) -> ShadowAgreement | None:
    """The agreement with the shadow over the files that could be read, None without a shadow."""
    shadow = night.model.shadow
    if shadow is None:
        return None
    counts = [outcome.counts.shadow for outcome in classified.outcomes if outcome.counts.shadow is not None]
    return total_agreement(shadow.version, night.model.metadata.multilabel, counts)


def _delete_work_of_pass(tables: NightTables, run: RunRecord) -> None:
    """Delete what the pass of a run has worked with, if no run needs it any more; nothing depends on that."""
    try:
        record = find_pass(tables.out, run)
        if record is not None and not open_runs(tables, record):
            delete_work(tables.out / f"{RUNS}/{record.name}")
    except SpinError:
        _log.warning("%s: what run %s worked with could not be deleted; a vacuum does it", tables.out.uri, run.run)
        _log.debug("the work of the pass could not be deleted", exc_info=True)


def _summary(report: NightReport) -> NightSummary:
    """The figures of a night that MLflow logs."""
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


def _describe_data(night: ModelNight, report: NightReport) -> LoggedData:
    """What a night has read, as an input of its MLflow run."""
    return LoggedData(
        name=night.name,
        source=input_of(night),
        digest=night.driver.run.plan.derived.sha256,
        profile={"documents": report.counts.rows, "files": report.files.taken},
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
