"""Forget documents in an output: in the tables of all nights, in their reports, and in the labels that people gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from pipelines.data.forgotten_ids import FOLDER, ForgottenIds, add_forgotten
from pipelines.nightly.forget.rewritten_run import WITH_IDS, Rewriting, RunFiles, find_held
from pipelines.nightly.forget.unused_objects import find_unused
from pipelines.nightly.report.night_report import REPORT
from pipelines.nightly.report.run_report import PAGE, show_newest_report
from pipelines.nightly.review.checked_labels import remove_labels, rescore_nights
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import (
    ABANDONED,
    RUNS,
    abandon_run,
    find_nights,
    is_run_of,
    lease_model,
    list_run_names,
    now,
)
from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, open_output, was_published
from pipelines.nightly.tables.publication import claim_nights, clean_side_tables, published_files, require_claim
from pipelines.nightly.tables.vacuum import models_of
from pipelines.storage.lease import overtaken_first, user_name
from pipelines.storage.records import to_json
from pipelines.storage.retrying import retry_unavailable


@dataclass(frozen=True, kw_only=True)
class ForgottenRows:
    """The rows that were removed from an output, or would be. It holds no ids."""

    output: str
    """URI of the output"""
    at: str
    """time, ISO 8601 in UTC"""
    by: str
    """user that ran the command"""
    models: tuple[str, ...]
    """registered models with nights in the output"""
    ids: int
    """ids that were to be forgotten"""
    rows: Mapping[str, int] = field(default_factory=dict)
    """rows that were removed from published nights, by table"""
    rewritten: Mapping[str, str] = field(default_factory=dict)
    """names of the runs that replace published ones, by the names of these"""
    given_up: tuple[str, ...] = ()
    """runs that can be neither resumed nor restored from then on: unfinished ones, and replaced ones with the rows"""
    labels: int = 0
    """labels that were removed"""


def announce_forgotten(output: str, ids: Collection[str]) -> ForgottenIds:
    """Store the hashes of ids in an output: a night that begins from then on leaves their documents out.

    Raises UserError if the output holds no night.
    """
    return add_forgotten(open_output(output).out, ids)


def forget_in_output(output: str, ids: Collection[str], *, dry_run: bool = False) -> ForgottenRows:
    """Remove documents from all nights of an output, and return what was removed; later nights leave them out.

    The hashes of the ids are stored before anything is removed, and the same command completes what a process that
    ended in between has begun. Each night that holds one of the documents is written again as a new run and published
    in one commit. Unfinished runs are given up, since they have read what is to be forgotten, and so are replaced runs
    that hold one. What was replaced is deleted at once: a reader that has opened the tables before must open them
    again. With `dry_run`, nothing is changed.

    Raises HeldError while a night is at work in the output: run the command again after it. Raises UserError if the
    output holds no night.
    """
    tables = open_output(output)
    if dry_run:
        return _forget(tables, ForgottenIds.of(ids), dict.fromkeys(models_of(tables), 0), dry_run=True)
    forgotten = announce_forgotten(output, ids)
    with ExitStack() as leases:
        claims = _claim_all(tables, leases)
        done = _forget(tables, forgotten, claims)
        name = f"{done.at.replace(':', '')}-{max(claims.values(), default=0)}"
        tables.out.write_json(f"{FOLDER}/records/{name}.json", to_json(done))
    return done


def _claim_all(tables: NightTables, leases: ExitStack) -> dict[str, int]:
    """Take the lease and a claim of every model; one that has begun a night meanwhile is among them.

    The first night of a model that begins later reads the hashes of the ids after its beginning was recorded, and is
    left alone.
    """
    claims: dict[str, int] = {}
    while missing := [model for model in models_of(tables) if model not in claims]:
        for model in missing:
            lease = leases.enter_context(lease_model(tables.out, model))
            # guarded by test_an_overtaken_forget_says_so
            leases.enter_context(overtaken_first(lease))
            # guarded by test_a_driver_that_slept_meanwhile_publishes_nothing; broken by:
            #   claims[model] = tables.open(PREDICTIONS).last_transaction('spin:' + model) or 0
            claims[model] = claim_nights(tables, model, lease)
    return claims


def _forget(
    tables: NightTables, forgotten: ForgottenIds, claims: Mapping[str, int], *, dry_run: bool = False
) -> ForgottenRows:
    """Remove the documents under the claims of all models; with `dry_run`, only find what would be removed."""
    rows: Counter[str] = Counter()
    rewritten: dict[str, str] = {}
    for night in [night for night in list_nights(tables) if night.model in claims]:
        files = published_files(tables, date=night.date, model=night.model, run=night.run)
        held = find_held(tables, files, forgotten)
        if held:
            rewriting = Rewriting(tables, night, files, held, forgotten)
            for (table, _), count in held.items():
                rows[table] += count
            rewritten[night.run] = "" if dry_run else rewriting.publish(claims[night.model]).name
    give_up = _runs_to_give_up if dry_run else _give_up_and_delete
    given_up = give_up(tables, forgotten, claims)
    labels = remove_labels(tables.out, forgotten, dry_run=dry_run)
    if not dry_run:
        tables.out.delete_many([REPORT, PAGE])
        show_newest_report(tables)
        rescore_nights(tables)
    return ForgottenRows(
        output=tables.out.uri,
        at=now(),
        by=user_name(),
        models=tuple(sorted(claims)),
        ids=len(forgotten),
        rows=dict(rows),
        rewritten=rewritten,
        given_up=tuple(run for run in given_up if run not in rewritten),
        labels=labels,
    )


def _runs_to_give_up(tables: NightTables, forgotten: ForgottenIds, models: Collection[str]) -> list[str]:
    """The runs of models that are not published and must not be any more: unfinished ones, and those with the rows."""
    predictions = tables.open(PREDICTIONS)
    named = {night.run for night in list_nights(tables)}
    others = [run for run in list_run_names(tables.out) if run not in named and is_run_of(run, models)]
    marked = tables.out.read_many([f"{RUNS}/{run}/{ABANDONED}" for run in others])
    others = [run for run in others if f"{RUNS}/{run}/{ABANDONED}" not in marked]
    records = find_nights(tables.out, others)
    restorable = [run for run in others if was_published(predictions, run) and run in records]
    # guarded by test_documents_are_found_in_no_object; broken by:
    #   kept = set(restorable)
    kept = {run for run in restorable if not _holds(tables, run, records[run].files, forgotten)}
    return [run for run in others if run not in kept]


def _holds(tables: NightTables, run: str, files: RunFiles, forgotten: ForgottenIds) -> bool:
    """Whether a replaced run holds a forgotten document, or has lost a file, and with it can no longer be restored."""
    for table in WITH_IDS:
        there = {item.key for item in tables.store(table).list_objects(run)}
        if any(file.path not in there for file in files.get(table, ())):
            return True
    return bool(find_held(tables, files, forgotten))


def _give_up_and_delete(tables: NightTables, forgotten: ForgottenIds, claims: Mapping[str, int]) -> list[str]:
    """Give up runs, delete what no run needs that is left, and return the names of the runs.

    What is deleted is listed before the claims are checked: if this process is suspended in between and others claim
    the models, it deletes nothing, and of what they write nothing is in the list.
    """
    given_up = _runs_to_give_up(tables, forgotten, claims)
    for model, claim in claims.items():
        require_claim(tables, model, claim)
    # guarded by test_after_a_crash_the_same_command_completes_it; broken by:
    #   for run in given_up[:0]:
    for run in given_up:
        abandon_run(tables.out, run)
    unused = find_unused(tables, claims)
    clean_side_tables(tables, claims)
    retry_unavailable(tables.out)(tables.out.delete_many, unused)
    return given_up
