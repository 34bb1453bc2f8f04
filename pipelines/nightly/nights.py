"""The nights of an output as an operator handles them: list and look into runs, restore, delete, vacuum."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pipelines.nightly.night_date import parse_date
from pipelines.nightly.report.night_report import REPORT, QuarantinedFile
from pipelines.nightly.report.run_report import PAGE, show_newest_report
from pipelines.nightly.tables.deletion import DeletedNights, delete_nights, models_before, plan_deletion
from pipelines.nightly.tables.night_history import list_nights, read_inputs
from pipelines.nightly.tables.night_records import ABANDONED, RUNS, Run, find_night, find_nights, lease_model, list_runs
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    INPUTS,
    PREDICTIONS,
    QUARANTINED,
    TABLES,
    TAKEN,
    NightTables,
    open_output,
    was_published,
)
from pipelines.nightly.tables.publication import claim_nights, restore_night
from pipelines.nightly.tables.vacuum import VacuumPlan, models_of, plan_vacuum, run_vacuum
from pipelines.storage.lease import overtaken_first
from spin.errors import UserError

State = Literal["published", "replaced", "deleted", "unfinished", "abandoned"]
"""published: the night that readers see. replaced: published earlier, can be restored. deleted: its night was deleted,
can be restored. unfinished: never published, can be resumed. abandoned: given up by a vacuum, or because it held a
document that was forgotten"""


@dataclass(frozen=True, kw_only=True)
class NightRun:
    """A run of an output, and what it is to readers now."""

    date: str
    """date of the night, YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    model_version: str | None
    """version of the model; None where the record of the run has been deleted"""
    run: str
    """name of the run"""
    state: State
    """what the run is to readers"""
    incremental: bool | None
    """whether it left out the files that other nights had taken; None where the record of the run has been deleted"""
    begun: str | None
    """time of its beginning, ISO 8601 in UTC; None where the record of the run has been deleted"""
    published: str | None
    """time at which it was published or restored, ISO 8601 in UTC; None unless it is published now"""
    predictions: int | None
    """rows of predictions, None while the run is not finished"""
    dead_letters: int | None
    """rows of dead letters, None while the run is not finished"""
    shared_pass: str | None = None
    """pass in which it classifies together with runs of other models; None for a run that classifies alone"""


@dataclass(frozen=True, kw_only=True)
class RunDetails:
    """The details of one run, as `spin nights show` prints them."""

    night: NightRun
    """the run as its output records it"""
    rows: Mapping[str, int]
    """rows of the run by table, empty while it is not finished"""
    files_taken: int | None
    """input files whose documents it classified, None while it is not finished"""
    quarantined: tuple[QuarantinedFile, ...]
    """input files that it left out"""
    report: str | None
    """URI of its report, None where there is none"""


def list_output(output: str) -> list[NightRun]:
    """The runs of an output, also those that are not published, by date, model and number.

    Raises UserError where no night was begun, or if the output holds files of another program.
    """
    return _list_runs(open_output(output))


def resumable_runs(runs: Sequence[NightRun]) -> list[NightRun]:
    """The runs of an output with which the command of their date goes on.

    A run that was never published is not among them if a later one of its date and model was begun: that one goes on,
    or is the night. `runs` are all of the output, as `list_output` returns them.
    """
    last = {(run.date, run.model): run for run in runs if run.state != "abandoned"}
    return [run for run in last.values() if run.state == "unfinished"]


def models_to_resume(run: NightRun, runs: Sequence[NightRun]) -> list[str]:
    """The `--model` options with which an unfinished run of a pass goes on, `models:/NAME/N`; none for a run alone.

    They name the models of all runs of the pass that are unfinished, without those of whose date and model a later run
    was published. `runs` are all of the output.
    """
    if run.shared_pass is None:
        return []
    together: dict[str, NightRun] = {}
    for each in (each for each in runs if each.date == run.date):
        if each.state == "unfinished" and each.shared_pass == run.shared_pass:
            together[each.model] = each
        elif each.state in ("published", "replaced", "deleted"):
            together.pop(each.model, None)
    return [f"models:/{each.model}/{each.model_version}" for each in together.values()]


def describe_run(output: str, run: str) -> RunDetails:
    """The details of one run. Raises UserError if the output has no such run."""
    tables = open_output(output)
    night = next((night for night in _list_runs(tables) if night.run == run), None)
    if night is None:
        raise UserError(f"{output} has no run {run}; {_hint(output)}")
    return _details(tables, night)


def describe_night(output: str, date: str) -> list[RunDetails]:
    """The details of the published runs of a date, one per model. Raises UserError if there are none."""
    tables = open_output(output)
    runs = [run for run in _list_runs(tables) if run.date == date]
    nights = [run for run in runs if run.state == "published"]
    if not nights:
        unfinished = [run.run for run in resumable_runs(runs)]
        if not unfinished:
            raise UserError(f"{output} has no night of {date}; {_hint(output)}")
        raise UserError(
            f"{output} has no published night of {date}, but unfinished: {', '.join(unfinished)}; "
            f"`spin nights show {unfinished[-1]} --output {shlex.quote(output)}` shows the run"
        )
    return [_details(tables, night) for night in nights]


def restore(output: str, *, date: str | None = None, run: str | None = None) -> Run:
    """Publish a run again as the night of its date and model, and return its record.

    Without `run`, it is the one run of the date that was replaced or deleted. Raises UserError if that is not exactly
    one, if the run is of another date or cannot be restored, and HeldError while another run works in the output.
    """
    tables = open_output(output)
    chosen = _find_restorable(tables, output, date=date, run=run)
    with lease_model(tables.out, chosen.model) as lease, overtaken_first(lease):
        night = restore_night(tables, chosen.run, claim=claim_nights(tables, chosen.model, lease))
        show_newest_report(tables)
    return night


def delete(output: str, *, before: str, forget_files: bool = False, dry_run: bool = False) -> DeletedNights:
    """Delete the nights of dates before a date, YYYY-MM-DD, in one commit, and return them.

    They can be restored until a vacuum gives up their runs. Their input files stay taken for incremental nights, unless
    `forget_files` is true. With `dry_run`, nothing is changed. Raises HeldError while a run of one of their models
    works in the output.
    """
    before = parse_date(before, option="--before")
    tables = open_output(output)
    if dry_run:
        return plan_deletion(tables, before, forget_files=forget_files)
    with ExitStack() as stack:
        models = models_before(tables, before, forget_files=forget_files)
        leases = {model: stack.enter_context(lease_model(tables.out, model)) for model in models}
        claims = {model: claim_nights(tables, model, lease) for model, lease in leases.items()}
        deleted = delete_nights(tables, before, claims=claims, leases=list(leases.values()), forget_files=forget_files)
        if deleted.nights:
            tables.out.delete_many([REPORT, PAGE])
            show_newest_report(tables)
    return deleted


def vacuum(output: str, *, older_than: timedelta, dry_run: bool = False) -> VacuumPlan:
    """Delete what no night, no unfinished run and no restorable run names, and return what was done.

    With `dry_run`, nothing is changed. Raises HeldError while a run works in the output, UserError if `older_than` is
    less than a day.
    """
    tables = open_output(output)
    if dry_run:
        return plan_vacuum(tables, now=datetime.now(UTC), age=older_than)
    models = models_of(tables)
    with ExitStack() as leases:
        held = {model: leases.enter_context(lease_model(tables.out, model)) for model in models}
        claims = {model: claim_nights(tables, model, lease) for model, lease in held.items()}
        plan = plan_vacuum(tables, now=datetime.now(UTC), age=older_than)
        run_vacuum(tables, plan, claims)
    return plan


def _list_runs(tables: NightTables) -> list[NightRun]:
    """The runs of an output. What published runs consist of is not read, since the tables have the counts."""
    published = {night.run: night for night in list_nights(tables)}
    runs = {run.name: run for run in list_runs(tables.out)}
    others = [name for name in runs if name not in published]
    nights = {(night.date, night.model) for night in published.values()}
    waiting = {name for name in others if (runs[name].date, runs[name].model) not in nights}
    states, finished = _states(tables, others, waiting), find_nights(tables.out, others)
    totals = tables.open(DEAD_LETTERS).file_table.group_by("run").aggregate([("rows", "sum")])
    dead = {row["run"]: row["rows_sum"] for row in totals.to_pylist()}
    described: list[NightRun] = []
    for name in [*published, *others]:
        night, run = published.get(name), runs.get(name)  # of a published run, the folder in `_runs/` may be deleted
        counts: tuple[int | None, int | None] = (None, None)
        if night is not None:
            counts = night.rows, dead.get(name, 0)
        elif name in finished:
            counts = finished[name].count_rows(PREDICTIONS), finished[name].count_rows(DEAD_LETTERS)
        committed = None if night is None else datetime.fromtimestamp(night.committed, UTC)
        described.append(
            NightRun(
                date=(night or runs[name]).date,
                model=(night or runs[name]).model,
                model_version=None if run is None else run.model_version,
                run=name,
                state=states.get(name, "published"),
                incremental=None if run is None else run.incremental,
                begun=None if run is None else run.begun,
                published=None if committed is None else committed.isoformat(timespec="seconds"),
                predictions=counts[0],
                dead_letters=counts[1],
                shared_pass=None if run is None or run.is_alone else run.pass_name,
            )
        )
    return sorted(described, key=lambda night: (night.date, night.model, night.run))


def _states(tables: NightTables, runs: Sequence[str], without_night: Collection[str]) -> Mapping[str, State]:
    """The state of each run that is not published, by its name; the dates of some have no night."""
    predictions = tables.open(PREDICTIONS)
    marks = {run: f"{RUNS}/{run}/{ABANDONED}" for run in runs}
    marked = tables.out.read_many(list(marks.values()))

    def state(run: str) -> State:
        if marks[run] in marked:
            return "abandoned"
        if not was_published(predictions, run):
            return "unfinished"
        return "deleted" if run in without_night else "replaced"

    return {run: state(run) for run in runs}


def _details(tables: NightTables, night: NightRun) -> RunDetails:
    record = find_night(tables.out, night.run)
    # not from the table: a replaced run has its own files too
    files = () if record is None else record.files.get(INPUTS, ())
    inputs = [row for file in files for row in read_inputs(tables.store(INPUTS), file, ["uri", "status", "reason"])]
    report = f"{RUNS}/{night.run}/{PAGE}"
    return RunDetails(
        night=night,
        rows={} if record is None else {table: record.count_rows(table) for table in TABLES},
        files_taken=None if record is None else sum(row["status"] == TAKEN for row in inputs),
        quarantined=tuple(QuarantinedFile(row["uri"], row["reason"]) for row in inputs if row["status"] == QUARANTINED),
        report=f"{tables.out.uri}/{report}" if tables.out.exists(report) else None,
    )


def _find_restorable(tables: NightTables, output: str, *, date: str | None, run: str | None) -> NightRun:
    """The run that `restore` publishes again."""
    runs = _list_runs(tables)
    if run is None:
        restorable = [each for each in runs if each.date == date and each.state in ("replaced", "deleted")]
        if not restorable:
            raise UserError(
                f"no run of {date} was replaced or deleted, so there is nothing to restore; {_hint(output)}"
            )
        if len(restorable) != 1:
            names = ", ".join(each.run for each in restorable)
            raise UserError(
                f"--date {date}: expected one run of that date that was replaced or deleted, found {names}; name one "
                f"with --run, {_hint(output)}"
            )
        return restorable[0]
    chosen = next((each for each in runs if each.run == run), None)
    if chosen is None:
        raise UserError(f"{output} has no run {run}; {_hint(output)}")
    if date not in (None, chosen.date):
        raise UserError(f"run {run} is of {chosen.date}, not of {date}; {_hint(output)}")
    if chosen.state not in ("published", "replaced", "deleted"):
        raise UserError(f"run {run} is {chosen.state}; only a run that was published can be restored; {_hint(output)}")
    return chosen


def _hint(output: str) -> str:
    return f"`spin nights list --output {shlex.quote(output)}` lists the runs, `spin classify` makes one"
