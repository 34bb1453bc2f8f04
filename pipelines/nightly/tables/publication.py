"""Publish a night: claim a model's part of an output, and commit a run only while the claim is the last one.

A claim is a number that is committed to the predictions, so that the table itself says who may publish:
`publish_night` requires, in the snapshot on top of which it commits, that the last claim of the model is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pyarrow as pa

from pipelines.data.intake import FileOutcome
from pipelines.nightly.tables.night_history import require_not_taken
from pipelines.nightly.tables.night_records import Run, find_night, is_abandoned
from pipelines.nightly.tables.night_tables import (
    INPUTS,
    NO_COLUMNS,
    PREDICTIONS,
    QUARANTINED,
    SIDE_TABLES,
    TABLES,
    TAKEN,
    NightTables,
    file_rows,
    merge_schemas,
    named_runs,
    partition_of,
    partitions,
    run_app,
    table_schema,
    was_published,
)
from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage.delta_table import DataFile, TableSnapshot
from pipelines.storage.lease import Lease
from pipelines.storage.parquet import to_parquet
from pipelines.storage.retrying import retry_commits
from spin.errors import UserError

_log = logging.getLogger(__name__)


def claim_nights(tables: NightTables, model: str, lease: Lease) -> int:
    """Create the tables if they are missing, claim a model's nights and return the number of the claim.

    No run of this model that was claimed earlier can be published from then on. Numbers only grow; one may be skipped.
    Raises HeldError if another command has taken over the lease of the model while the store did not answer, and
    UnavailableError if the store does not take the claim within its `retry_seconds`.
    """

    def attempt() -> int:
        tables.create()
        snapshot = tables.open(PREDICTIONS)
        # after the snapshot: a command that takes over later and claims makes this commit fail
        # guarded by test_a_command_that_was_overtaken_makes_no_claim
        lease.check()
        claim = (snapshot.last_transaction(model_app(model)) or 0) + 1
        snapshot.commit_transaction(model_app(model), claim, metadata={"model": model, "claim": str(claim)})
        return claim

    return retry_commits(tables.out)(attempt)


def require_claim(tables: NightTables, model: str, claim: int) -> None:
    """Raise HeldError if a model has been claimed again: nothing may be published under this claim any more."""
    require_last_claim(tables.open(PREDICTIONS), model, claim)


def require_last_claim(predictions: TableSnapshot, model: str, claim: int) -> None:
    """Raise HeldError unless a claim is the last one of a model in a version of the predictions."""
    last = predictions.last_transaction(model_app(model))
    if last != claim:
        raise HeldError(
            f"{predictions.store.uri}: another run of model {model} has taken over (claim {last}, this run has "
            f"{claim}); this one publishes nothing"
        )


def model_app(model: str) -> str:
    """The name under which the tables hold the last claim of a model."""
    return f"spin:{model}"


def claim_side_tables(tables: NightTables, model: str, claim: int) -> None:
    """Commit a claim to the side tables as well: whoever has opened one of them before can no longer commit to it.

    Raises StaleSnapshotError if another process commits meanwhile.
    """
    for table in SIDE_TABLES:
        tables.open(table).commit_transaction(model_app(model), claim, metadata={"model": model, "claim": str(claim)})


def write_inputs(tables: NightTables, run: Run, claim: int, files: Sequence[FileOutcome]) -> DataFile:
    """Write the input files of a run as a file of the table of inputs and return it; nothing is committed."""
    rows = [{**asdict(file), "status": TAKEN if file.reason is None else QUARANTINED} for file in files]
    values = pa.Table.from_pylist(rows, schema=table_schema(INPUTS))
    return _write_file(tables, INPUTS, run, f"inputs-{claim:06d}", values, NO_COLUMNS)


def write_empty_predictions(tables: NightTables, run: Run, claim: int, kept: pa.Schema = NO_COLUMNS) -> DataFile:
    """Write a file of predictions without rows and return it: a night has a run even if nothing was predicted."""
    empty = table_schema(PREDICTIONS, kept).empty_table()
    return _write_file(tables, PREDICTIONS, run, f"empty-{claim:06d}", empty, kept)


def publish_night(tables: NightTables, night: Run, *, claim: int, kept: pa.Schema = NO_COLUMNS) -> None:
    """Publish a finished run as the night of its date and model, in place of the run that was there.

    Readers of the predictions see the old night or the new one. A run that is there already is done. `claim` is that of
    this driver, `kept` the input columns that the run carries.

    Raises HeldError if the model has been claimed again, UserError if a file of the run is missing or has another
    size, or if a kept column has another type by now, and UnavailableError if others commit, or the store does not
    answer, for more than its `retry_seconds`; the same command may then succeed later.
    """
    if not night.files.get(PREDICTIONS):
        raise ValueError(f"{night.name} has no file of predictions; expected one, with 0 rows if need be")
    if not retry_commits(tables.out)(_is_published, tables, night):
        _commit_night(tables, night, claim, kept)
    _remove_replaced_rows_or_log(tables, night.model, claim)


def restore_night(tables: NightTables, run: str, *, claim: int) -> Run:
    """Publish a run of a night again, its rows in the side tables included, and return its record.

    `claim` is a claim of its model. Raises UserError if there is no such run, if it was never published, was given up,
    or has lost a file, and if it was incremental and another date has taken a file of it since; HeldError and
    UnavailableError as `publish_night` does.
    """
    night = find_night(tables.out, run)
    if night is None or not was_published(tables.open(PREDICTIONS), run):
        raise UserError(
            f"{tables.out.uri} has no run {run} that was published; `spin nights list --output {tables.out.uri}` lists "
            "its runs"
        )
    if night.incremental:
        # guarded by test_an_incremental_night_is_not_restored_next_to_a_night_that_has_taken_its_files
        retry_commits(tables.out)(require_not_taken, tables, night)
    _commit_night(tables, night, claim, NO_COLUMNS)
    _remove_replaced_rows_or_log(tables, night.model, claim)
    return night


def require_complete(tables: NightTables, run: str, files: Mapping[str, Sequence[DataFile]]) -> None:
    """Raise UserError unless all files of a run, by table, are there with their sizes, and the run was not given up.

    One listing per table, no request per file.
    """
    if is_abandoned(tables.out, run):
        raise UserError(f"run {run} was given up by `spin nights vacuum` or `spin forget`; start over with --restart")
    for table, each in files.items():
        sizes = {item.key: item.size for item in tables.store(table).list_objects(run)} if each else {}
        for file in each:
            if sizes.get(file.path) != file.size:
                size = sizes.get(file.path)
                state = "is missing" if size is None else f"has {size} bytes, expected {file.size}"
                raise UserError(
                    f"{tables.store(table).uri}/{file.path} {state}; run {run} cannot be published. Start over with "
                    "--restart"
                )


def published_files(tables: NightTables, *, date: str, model: str, run: str) -> dict[str, list[DataFile]]:
    """The files by table that the night of a date and a model consists of; `run` is the run that is published."""
    return {table: tables.open(table).files(partition_of(table, date=date, model=model, run=run)) for table in TABLES}


def clean_side_tables(tables: NightTables, claims: Mapping[str, int]) -> None:
    """Remove the rows of replaced runs from the side tables, before their files are deleted.

    `claims` holds the claim of every model of the output. The claims are committed to the side tables
    before rows are removed there, so that no driver of an earlier claim adds rows later, whose files would be gone.
    Raises HeldError if a model has been claimed again.
    """
    for model, claim in claims.items():
        # guarded by test_a_driver_that_wakes_after_a_vacuum_names_no_deleted_file; broken by:
        #   for commit in (remove_replaced_rows,):
        for commit in (claim_side_tables, remove_replaced_rows):
            retry_commits(tables.out)(commit, tables, model, claim)


def remove_replaced_rows(tables: NightTables, model: str, claim: int) -> None:
    """Remove the rows of a model's runs that do not belong there from the side tables.

    The claim is checked in a snapshot of the predictions that is newer than that of the side table. So the runs in the
    side table are published by then or will never be under their claims, and a run that a later driver resumes gets
    its rows again before it is published.
    """
    for table in SIDE_TABLES:
        side = tables.open(table)
        predictions = tables.open(PREDICTIONS)
        # guarded by test_rows_are_removed_only_under_the_last_claim
        # guarded by test_a_claim_after_runs_were_given_up_stops_the_vacuum_before_it_deletes
        require_last_claim(predictions, model, claim)
        named = named_runs(side, table, predictions)
        replaced = [each for each in partitions(side) if each["model"] == model and each["run"] not in named]
        if replaced:
            side.remove_partitions(replaced)


def _commit_night(tables: NightTables, night: Run, claim: int, kept: pa.Schema) -> None:
    """Commit a run to the side tables and then to the predictions, once its claim and its files have been checked."""
    retrying = retry_commits(tables.out)
    retrying(require_claim, tables, night.model, claim)
    # guarded by test_a_run_that_lost_a_file_is_not_published
    retrying(require_complete, tables, night.name, night.files)
    # guarded by test_a_night_is_restored_with_all_its_rows
    for table in SIDE_TABLES:
        retrying(_commit_side_rows, tables, table, night, claim, kept)
    retrying(_commit_predictions, tables, night, claim, kept)


def _remove_replaced_rows_or_log(tables: NightTables, model: str, claim: int) -> None:
    """Remove the side rows of replaced runs; a failure changes nothing about the night, and the next one does it."""
    try:
        retry_commits(tables.out)(remove_replaced_rows, tables, model, claim)
    except (HeldError, UnavailableError):
        _log.warning("%s: rows of replaced runs stay in the side tables for now", tables.out.uri)
        _log.debug("they could not be removed", exc_info=True)


def _commit_side_rows(tables: NightTables, table: str, night: Run, claim: int, kept: pa.Schema) -> None:
    """Commit that the run's partition of a side table consists of the run's files.

    The side table is opened before the claim is checked: if the model is claimed again in between, whoever claimed it
    commits first or not at all. That is why a run without rows commits too: it refuses the rows of its predecessor.
    """
    side = tables.open(table)
    app = model_app(night.model)
    files = list(night.files.get(table, ()))
    partition = partition_of(table, date=night.date, model=night.model, run=night.name)
    complete = side.files(partition) == files
    if complete and side.last_transaction(app) == claim:
        return
    # guarded by test_a_driver_that_wakes_after_its_successor_changes_nothing
    require_claim(tables, night.model, claim)
    if complete:
        side.commit_transaction(app, claim, metadata=_metadata(night, claim))
        return
    side.replace_partition(
        partition,
        files,
        schema=merge_schemas(side, table, kept),
        transactions={app: claim},
        metadata=_metadata(night, claim),
    )


def _commit_predictions(tables: NightTables, night: Run, claim: int, kept: pa.Schema) -> None:
    """Commit that the night of a date and model consists of the run's files, if it does not yet."""
    predictions = tables.open(PREDICTIONS)
    partition = partition_of(PREDICTIONS, date=night.date, model=night.model, run=night.name)
    if predictions.files(partition) == list(night.files[PREDICTIONS]):
        return
    # guarded by test_a_driver_that_wakes_after_its_successor_changes_nothing
    require_last_claim(predictions, night.model, claim)
    predictions.replace_partition(
        partition,
        night.files[PREDICTIONS],
        schema=merge_schemas(predictions, PREDICTIONS, kept),
        transactions={model_app(night.model): claim, run_app(night.name): 1},
        metadata=_metadata(night, claim),
    )


def _is_published(tables: NightTables, night: Run) -> bool:
    partition = partition_of(PREDICTIONS, date=night.date, model=night.model, run=night.name)
    return tables.open(PREDICTIONS).files(partition) == list(night.files[PREDICTIONS])


def _write_file(tables: NightTables, table: str, run: Run, name: str, rows: pa.Table, kept: pa.Schema) -> DataFile:
    """Write rows to the first path `RUN/NAME-N.parquet` that is free."""
    complete = file_rows(table, rows, date=run.date, model=run.model, run=run.name, kept=kept)
    data = to_parquet(complete)
    attempt, store, stem = 1, tables.store(table), f"{run.name}/{name}"
    while not store.create(f"{stem}-{attempt}.parquet", data):
        attempt += 1
    return DataFile(f"{stem}-{attempt}.parquet", len(data), len(rows))


def _metadata(night: Run, claim: int) -> dict[str, str]:
    """The metadata of a commit in the history of a table."""
    return {
        "run": night.name,
        "date": night.date,
        "model": night.model,
        "model_version": night.model_version,
        "artifact": night.artifact,
        "claim": str(claim),
    }
