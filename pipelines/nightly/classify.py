"""Classify a batch of documents with registered models; every row becomes a prediction or a dead letter of each."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipelines.data.files import input_files
from pipelines.data.files.kept_columns import check_declared_types, check_kept_names
from pipelines.nightly.command_result import CommandResult, NightFailure
from pipelines.nightly.night import Night
from pipelines.nightly.night_date import parse_date
from pipelines.nightly.night_driver import NightDriver
from pipelines.nightly.night_models import NightModel, RequestedModel, choose_versions, download_model
from pipelines.nightly.night_outcomes import NightOutcomes
from pipelines.nightly.observed_nights import describe_night
from pipelines.nightly.pass_intake import kept_types
from pipelines.nightly.report.night_report import NightReport
from pipelines.nightly.tables.night_records import lease_model
from pipelines.nightly.tables.night_tables import NightTables, reserved_names
from pipelines.nightly.tables.publication import claim_nights
from pipelines.nightly.tables.resume import NightRequest, RefusedRun, choose_runs, find_unfinished
from pipelines.registry.versions import Registry
from pipelines.service_errors import HeldError
from pipelines.storage.delta_table import require_hard_links
from pipelines.storage.filesystem import normalize_uri
from pipelines.storage.lease import Lease, LeaseGroup, overtaken_first
from pipelines.storage.object_store import Store
from pipelines.storage.retrying import retry_unavailable
from pipelines.telemetry.observed_runs import observe_runs
from pipelines.workers import weights_cache
from pipelines.workers.ray_cluster import shared_ray_session
from spin.errors import SpinError, UserError
from spin.settings import Settings

_log = logging.getLogger(__name__)


def run_classify(
    settings: Settings,
    registry: Registry,
    source: str,
    output: str,
    *,
    model: str | None = None,
    shadow: str | None = None,
    night: str | None = None,
    incremental: bool = False,
    restart: bool = False,
) -> NightReport:
    """Classify a batch with one model, publish it in the tables of `output` and return its report: for Python.

    The run of the date `night`, by default of today, goes on if there is one; with `restart`, a new one begins. With
    `incremental`, files are skipped that the nights of the model of other dates have classified, by path, size and
    ETag. The version of the model is resolved once. Readers see the night in one commit at the end, or the one that was
    there before. A second version as `shadow` changes none of this; rows on which the two differ are in the table
    `disagreements`.

    Raises HeldError if another run of the model is at work in the output, or has taken over. Raises BadRowsError, and
    publishes nothing, if more rows or files than the settings allow could not be classified. Raises UnavailableError if
    the store does not answer; the same command then resumes.
    """
    requested = [RequestedModel(registry, model, shadow)]
    nights = classify_nights(settings, requested, source, output, night=night, incremental=incremental, restart=restart)
    nights.raise_failures()
    return nights.reports[0]


def classify_nights(
    settings: Settings,
    requested: Sequence[RequestedModel],
    source: str,
    output: str,
    *,
    night: str | None = None,
    incremental: bool = False,
    restart: bool = False,
) -> CommandResult:
    """Classify a batch with several models, publish a night of each, and return their reports and what has failed.

    Models with the same backbone read the documents in one pass. Each has its own claim, run and commit, and what fails
    for one holds back none of the others: call `raise_failures` on what is returned. The options are those of
    `run_classify`; `incremental` is asked for each model. Raises, before anything is computed, what concerns all of
    them: HeldError if another run of one of the models is at work, UserError for settings or versions that do not fit.
    """
    day = parse_date(night)
    with NightOutcomes(settings, [model.name for model in requested], output, day) as outcomes:
        tables = _open_output(settings, source, output)
        source = normalize_uri(source)
        check_kept_names(settings.data, reserved_names())
        chosen = choose_versions(requested)
        rejected: dict[str, str] = {}
        files = retry_unavailable(tables.out)(input_files.list_files, source, bad=rejected, allow_empty=True)
        require_hard_links(tables.out)
        with ExitStack() as stack:
            # in order of name, so that two commands do not wait for each other
            names = [each.registry.name for each in chosen]
            leases = {name: stack.enter_context(lease_model(tables.out, name)) for name in names}
            outcomes.hold(leases)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(shared_ray_session())
            models = [download_model(each, scratch / str(n), settings) for n, each in enumerate(chosen)]
            for each in models:
                weights_cache.announce_workers(settings, each.settings, "classify")
            claims = _claim_all(tables, leases)
            if night is None:
                for name in names:
                    _name_unfinished(tables, name, day)
            check_declared_types(settings.data, kept_types(tables, settings.data))
            requests = [
                NightRequest(
                    date=day,
                    model=model.registry.name,
                    claim=claims[model.registry.name],
                    model_version=model.version,
                    artifact=model.artifact,
                    backbone=f"{model.metadata.backbone_digest} in {model.settings.backbone.dtype}",
                    metadata=model.plan_metadata(source),
                    files=files,
                    rejected=rejected,
                    incremental=incremental,
                    restart=restart,
                )
                for model in models
            ]
            nights, refused = _choose_nights(tables, models, list(leases.values()), requests)
            with observe_runs([describe_night(each) for each in nights]):
                driver = NightDriver(nights, refused, outcomes.export_published)
                driver.publish_finished()
                for together in driver.waiting_passes():
                    driver.classify(together)
                result = driver.end()
            for failure in result.failures:
                outcomes.export_failure(failure.model, failure.error)
            return result


def _claim_all(tables: NightTables, leases: Mapping[str, Lease]) -> dict[str, int]:
    """The claims by model.

    A model that another command has taken over since its lease was taken has the claim 0, under which nothing can be
    published; it goes on in its pass for the sake of the others. Raises HeldError if that is every model.
    """
    claims: dict[str, int] = {}
    for name, lease in leases.items():
        try:
            claims[name] = claim_nights(tables, name, lease)
        except HeldError as error:
            claims[name] = 0
            if len(claims) == len(leases) and not any(claims.values()):
                raise
            _log.warning("model %s: %s", name, error)
    return claims


def _choose_nights(
    tables: NightTables, models: Sequence[NightModel], leases: Sequence[Lease], requests: Sequence[NightRequest]
) -> tuple[list[Night], list[NightFailure]]:
    """The nights to work on, and the failures of the models whose runs cannot go on."""
    with overtaken_first(LeaseGroup(leases)):
        runs = choose_runs(tables, requests)
    nights: list[Night] = []
    refused: list[NightFailure] = []
    for model, lease, request, run in zip(models, leases, requests, runs, strict=True):
        if isinstance(run, RefusedRun):
            refused.append(_refuse_run(request.model, lease, run.error))
        else:
            nights.append(Night(model, tables, lease, request.claim, run))
    return nights, refused


def _refuse_run(model: str, lease: Lease, error: UserError) -> NightFailure:
    """The failure of a model whose run cannot go on: the error, or HeldError if another driver has taken over."""
    try:
        with overtaken_first(lease):
            raise error
    except SpinError as found:
        _log.debug("the run of model %s is refused", model, exc_info=True)
        return NightFailure(model, found)


def _open_output(settings: Settings, source: str, output: str) -> NightTables:
    """The tables of an output. Raises UserError if it is within the input, or holds files of another program."""
    input_files.check_output_outside(source, output)
    tables = NightTables(Store(output, settings.ray.retry_seconds))
    tables.refuse_foreign_files()
    return tables


def _name_unfinished(tables: NightTables, model: str, day: str) -> None:
    """Log the last unfinished night before a date: a command that was to resume it needs its date and options."""
    unfinished = find_unfinished(tables, model, day)
    if unfinished:
        run = unfinished[-1]
        more = f" ({len(unfinished) - 1} earlier ones too)" if len(unfinished) > 1 else ""
        _log.warning(
            "%s: run %s is unfinished%s; this command is for the night of %s, to resume the other run it again with "
            "--date %s%s",
            tables.out.uri,
            run.name,
            more,
            day,
            run.date,
            (" --incremental" if run.incremental else "") + ("" if run.is_alone else " and all models of its pass"),
        )
