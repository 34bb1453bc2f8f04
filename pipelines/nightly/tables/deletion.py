"""Delete nights from an output, in one commit; a deleted night can be restored until a vacuum gives up its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.nightly.tables.night_records import mark_deleted
from pipelines.nightly.tables.night_tables import (
    DELETED,
    FREED,
    INPUTS,
    PREDICTIONS,
    NightTables,
    PublishedRun,
    partition_of,
    partitions,
    published_runs,
    run_app,
    run_state,
)
from pipelines.nightly.tables.publication import clean_side_tables, model_app, require_last_claim
from pipelines.storage.lease import Lease
from pipelines.storage.retrying import retry_commits, retry_unavailable


def nights_before(tables: NightTables, before: str) -> list[PublishedRun]:
    """The published nights of dates before a date, YYYY-MM-DD, by date and model."""
    return [night for night in published_runs(tables.open(PREDICTIONS)) if night.date < before]


def models_before(tables: NightTables, before: str) -> list[str]:
    """The models with a published or deleted night of a date before a date: a deletion needs a claim of each."""
    listed = {each["model"] for each in partitions(tables.open(INPUTS)) if each["date"] < before}
    return sorted(listed | {night.model for night in nights_before(tables, before)})


def delete_nights(
    tables: NightTables, before: str, *, claims: Mapping[str, int], leases: Sequence[Lease], forget_files: bool
) -> list[PublishedRun]:
    """Delete the nights of dates before a date, in one commit, and return them.

    `claims` holds the claim of every model of `models_before`, and `leases` those under which they were made. The input
    files of deleted nights stay taken, unless `forget_files` is true; then those of nights that were deleted earlier
    are free, too. Raises HeldError if a model has been claimed again or a lease was lost, UnavailableError if others
    commit, or the store does not answer, for more than its `retry_seconds`.
    """
    # from here on, a date and a model have the input files of one run: those of replaced runs cannot become taken
    clean_side_tables(tables, claims)
    nights = [night for night in nights_before(tables, before) if night.model in claims]
    retry_unavailable(tables.out)(mark_deleted, tables.out, [night.run for night in nights])
    retry_commits(tables.out)(_commit_deletion, tables, before, claims, leases, forget_files)
    clean_side_tables(tables, claims)
    return nights


def _commit_deletion(
    tables: NightTables, before: str, claims: Mapping[str, int], leases: Sequence[Lease], forget_files: bool
) -> None:
    inputs, predictions = tables.open(INPUTS), tables.open(PREDICTIONS)
    nights = [night for night in published_runs(predictions) if night.date < before and night.model in claims]
    states = {run_app(night.run): FREED if forget_files else DELETED for night in nights}
    if forget_files:
        earlier = {each["run"] for each in partitions(inputs) if each["date"] < before and each["model"] in claims}
        states |= {run_app(run): FREED for run in earlier if run_state(predictions, run) == DELETED}
    if not states:
        return
    for lease in leases:
        # guarded by test_a_deletion_that_was_overtaken_changes_nothing
        lease.check()
    for model, claim in claims.items():
        # guarded by test_a_deletion_that_slept_changes_nothing
        require_last_claim(predictions, model, claim)
    predictions.remove_partitions(
        [partition_of(PREDICTIONS, date=night.date, model=night.model, run=night.run) for night in nights],
        transactions={**{model_app(night.model): claims[night.model] for night in nights}, **states},
        metadata={"deleted_before": before, "nights": str(len(nights))},
    )
