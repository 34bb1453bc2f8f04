"""Delete nights from an output, in one commit; a deleted night can be restored until a vacuum gives up its run.

The input files of a deleted night stay taken: before the commit, its rows of the table of inputs are added once more
for a run of another name, which counts while the date and the model have no night.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.nightly.tables.night_records import mark_deleted
from pipelines.nightly.tables.night_tables import (
    INPUTS,
    PREDICTIONS,
    NightTables,
    PublishedRun,
    deleted_name,
    file_rows,
    is_deleted_name,
    partition_of,
    partitions,
    published_runs,
    read_rows,
)
from pipelines.nightly.tables.publication import clean_side_tables, model_app, require_last_claim
from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage.delta_table import DataFile, TableSnapshot
from pipelines.storage.filesystem import PARALLEL_REQUESTS
from pipelines.storage.lease import Lease
from pipelines.storage.parquet import to_parquet
from pipelines.storage.retrying import retry_commits, retry_unavailable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeletedNights:
    """The nights that a command has deleted, or would."""

    nights: Sequence[PublishedRun]
    """by date and model, as they were"""
    freed: int
    """nights that were deleted earlier, whose input files are no longer taken"""


def plan_deletion(tables: NightTables, before: str, *, forget_files: bool) -> DeletedNights:
    """The nights that a deletion concerns: of dates before a date, YYYY-MM-DD."""
    nights = [night for night in published_runs(tables.open(PREDICTIONS)) if night.date < before]
    return DeletedNights(nights, len(_deleted_before(tables.open(INPUTS), before)) if forget_files else 0)


def models_before(tables: NightTables, before: str, *, forget_files: bool) -> list[str]:
    """The models of these nights: a deletion needs a claim of each."""
    earlier = _deleted_before(tables.open(INPUTS), before) if forget_files else []
    nights = plan_deletion(tables, before, forget_files=False).nights
    return sorted({night.model for night in nights} | {each["model"] for each in earlier})


def delete_nights(
    tables: NightTables, before: str, *, claims: Mapping[str, int], leases: Sequence[Lease], forget_files: bool
) -> DeletedNights:
    """Delete the nights of dates before a date, in one commit, and return them.

    `claims` holds the claim of every model of `models_before`, and `leases` those under which they were made. With
    `forget_files`, their input files do not stay taken, nor those of nights that were deleted earlier. Raises HeldError
    if a model has been claimed again or a lease was lost, UnavailableError if others commit, or the store does not
    answer, for more than its `retry_seconds`.
    """
    # what earlier commands have left for a date and a model must not count once it has no night
    clean_side_tables(tables, claims)
    planned = plan_deletion(tables, before, forget_files=forget_files)
    nights = [night for night in planned.nights if night.model in claims]
    if not forget_files:
        inputs = tables.open(INPUTS)
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
            files = list(threads.map(lambda night: _copy_inputs(inputs, night, claims[night.model]), nights))
        # guarded by test_files_of_deleted_nights_stay_taken
        retry_commits(tables.out)(_keep_files_taken, tables, dict(zip(nights, files, strict=True)), claims)
    retry_unavailable(tables.out)(mark_deleted, tables.out, [night.run for night in nights])
    retry_commits(tables.out)(_commit_deletion, tables, nights, claims, leases)
    if forget_files:
        retry_commits(tables.out)(_free_files, tables, before, claims)
    try:
        clean_side_tables(tables, claims)
    except (HeldError, UnavailableError):
        _log.warning("%s: rows of deleted nights stay in the side tables for now", tables.out.uri)
        _log.debug("they could not be removed", exc_info=True)
    return DeletedNights(nights, planned.freed)


def _deleted_before(inputs: TableSnapshot, before: str) -> list[dict[str, str]]:
    """The partitions of the inputs of nights before a date that are deleted and whose files are taken."""
    return [each for each in partitions(inputs) if each["date"] < before and is_deleted_name(each["run"])]


def _copy_inputs(inputs: TableSnapshot, night: PublishedRun, claim: int) -> DataFile:
    """Write the rows of a night's input files for the name that it has once it is deleted."""
    name = deleted_name(night.run)
    rows = read_rows(inputs, partition_of(INPUTS, date=night.date, model=night.model, run=night.run))
    data = to_parquet(file_rows(INPUTS, rows, date=night.date, model=night.model, run=name))
    path = f"{night.run}/deleted-{claim:06d}.parquet"
    retry_unavailable(inputs.store)(inputs.store.write, path, data)
    return DataFile(path, len(data), len(rows))


def _open_inputs(tables: NightTables, claims: Mapping[str, int]) -> TableSnapshot:
    """A version of the inputs to commit to. The claims are checked after it was opened, as for the rows of a run."""
    inputs, predictions = tables.open(INPUTS), tables.open(PREDICTIONS)
    for model, claim in claims.items():
        require_last_claim(predictions, model, claim)
    return inputs


def _keep_files_taken(tables: NightTables, files: Mapping[PublishedRun, DataFile], claims: Mapping[str, int]) -> None:
    inputs = _open_inputs(tables, claims)
    there = {each["run"] for each in partitions(inputs)}
    missing = {night: file for night, file in files.items() if deleted_name(night.run) not in there}
    if missing:
        inputs.add_files(
            (partition_of(INPUTS, date=night.date, model=night.model, run=deleted_name(night.run)), file)
            for night, file in missing.items()
        )


def _commit_deletion(
    tables: NightTables, nights: Sequence[PublishedRun], claims: Mapping[str, int], leases: Sequence[Lease]
) -> None:
    predictions = tables.open(PREDICTIONS)
    there = {night.run for night in published_runs(predictions)}
    for lease in leases:
        # guarded by test_a_deletion_that_was_overtaken_changes_nothing
        lease.check()
    for model, claim in claims.items():
        # guarded by test_a_deletion_that_slept_changes_nothing
        require_last_claim(predictions, model, claim)
    left = [night for night in nights if night.run in there]
    if left:
        predictions.remove_partitions(
            [partition_of(PREDICTIONS, date=night.date, model=night.model, run=night.run) for night in left],
            transactions={model_app(night.model): claims[night.model] for night in left},
            metadata={"deleted": str(len(left))},
        )


def _free_files(tables: NightTables, before: str, claims: Mapping[str, int]) -> None:
    inputs = _open_inputs(tables, claims)
    freed = [each for each in _deleted_before(inputs, before) if each["model"] in claims]
    if freed:
        inputs.remove_partitions(freed)
