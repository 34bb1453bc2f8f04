"""The commands of `spin nights`: list, show, restore, delete and vacuum."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.figures import format_minute, format_rows
from jobs.options import AsJson, Date, DryRun, Output, command_group
from spin.errors import UserError
from spin.pages.number_format import counted

if TYPE_CHECKING:
    from pipelines.nightly.nights import NightRun, RunDetails

app = command_group("nights", "List the nights of an output, restore or delete some, free space.")
_QUARANTINED = 10
"""number of quarantined files that are shown of a run"""


@app.command(name="list", cls=PipelinesCommand)
def list_nights(output: Output, as_json: AsJson = False) -> None:
    """List the runs of an output: published, replaced or deleted (can be restored), unfinished (resumed), abandoned."""
    from pipelines.nightly.nights import list_output

    terminal.show_result(list_output(output), as_json, partial(print_runs, output=output))


@app.command(cls=PipelinesCommand)
def show(
    output: Output,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="name of a run; default: the published runs of --date")
    ] = None,
    run_option: Annotated[str | None, typer.Option("--run", metavar="RUN", help="the same as RUN")] = None,
    date: Date = None,
    as_json: AsJson = False,
) -> None:
    """Show a run, or the night of a date: its rows by table, its input files, and where its report is."""
    names = [name for name in (run, run_option) if name is not None]
    if len(names) + (date is not None) != 1:
        raise UserError("spin nights show: expected either the name of a run or --date")
    from pipelines.nightly.nights import describe_night, describe_run

    details = [describe_run(output, names[0])] if names else describe_night(output, date or "")
    terminal.show_result(details, as_json, print_details)


@app.command(cls=PipelinesCommand)
def restore(
    output: Output,
    date: Date = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="run to publish; default: the one of --date that was replaced or deleted"),
    ] = None,
) -> None:
    """Publish a run again as the night of its date and model, in one commit; readers see one night or the other."""
    if run is None and date is None:
        raise UserError("spin nights restore: expected --run, --date, or both")
    from pipelines.nightly.nights import restore as restore_run

    night = restore_run(output, date=date, run=run)
    terminal.say(f"the night of {night.date} of {night.model} is run {night.name}, by version {night.model_version}")


@app.command(cls=PipelinesCommand)
def delete(
    output: Output,
    before: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="delete the nights of dates before this one")],
    forget_files: Annotated[
        bool, typer.Option("--forget-files", help="let later --incremental nights take the input files again")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete old nights, in one commit; each can be restored until a vacuum gives up its run."""
    from pipelines.nightly.nights import delete as delete_nights

    done = delete_nights(output, before=before, forget_files=forget_files, dry_run=dry_run)
    for night in done.nights:
        terminal.say(f"{night.run}: {counted(night.rows, 'prediction')}")
    terminal.say(f"{'would delete' if dry_run else 'deleted'} {counted(len(done.nights), 'night')}")
    if done.freed:
        verb = "would free" if dry_run else "freed"
        terminal.say(f"{verb} the input files of {counted(done.freed, 'night')} deleted earlier")
    if done.nights and not dry_run:
        terminal.say(
            f"`spin nights restore --run RUN --output {shlex.quote(output)}` brings one back; a vacuum frees the space"
        )


@app.command(cls=PipelinesCommand)
def vacuum(
    output: Output,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="DAYS",
            min=1,
            max=36_500,
            help="age of the files that are deleted and of the runs that are given up; at least 1",
        ),
    ] = 7.0,
    dry_run: DryRun = False,
) -> None:
    """Delete files that no night needs.

    Runs that have been unfinished, replaced or deleted for longer than --older-than days can no longer be resumed or
    restored.
    """
    from pipelines.nightly.nights import vacuum as run_vacuum

    plan = run_vacuum(output, older_than=timedelta(days=older_than), dry_run=dry_run)
    for run in plan.abandon:
        terminal.say(f"{'would give' if dry_run else 'gave'} up {run}; it can be neither resumed nor restored")
    deleted = f"{counted(len(plan.delete), 'object')}, {decimal(plan.bytes)}"
    terminal.say(f"{'would delete' if dry_run else 'deleted'} {deleted}")


def print_runs(runs: Sequence[NightRun], output: str) -> None:
    """Print a row per run of an output, and the commands that resume the unfinished ones."""
    from pipelines.nightly.nights import models_to_resume, resumable_runs

    table = terminal.new_table(["run", "state"], ["version", "rows", "dead"])
    table.add_column("published (UTC)", no_wrap=True)
    for run in runs:
        counts = ("" if count is None else f"{count:,}" for count in (run.predictions, run.dead_letters))
        table.add_row(run.run, run.state, run.model_version or "", *counts, format_minute(run.published))
    terminal.show(table)
    for run in resumable_runs(runs):
        options = ["--output", output, "--date", run.date, *(["--incremental"] if run.incremental else [])]
        options += [word for model in models_to_resume(run, runs) for word in ("--model", model)]
        terminal.say(f"{run.run} is unfinished: `spin classify … {shlex.join(options)}` resumes it")


def print_details(details: Sequence[RunDetails]) -> None:
    """Print the state of each run, its rows by table, its input files, and where its report is."""
    for each in details:
        run = each.night
        version = "" if run.model_version is None else f", version {run.model_version}"
        kind = "incremental night" if run.incremental else "night"
        terminal.say(f"{run.run}: {run.state}, {kind} of {run.date}, model {run.model}{version}")
        terminal.say_about("", _describe_run(each))


def _describe_run(details: RunDetails) -> Iterator[str]:
    times = (("begun", details.night.begun), ("published", details.night.published))
    yield ", ".join(f"{name} {time}" for name, time in times if time is not None)
    if details.rows:
        yield format_rows({table: count for table, count in details.rows.items() if table != "inputs"})
    if details.files_taken is not None:
        yield f"{counted(details.files_taken, 'input file')} taken, {len(details.quarantined):,} quarantined"
    for file in details.quarantined[:_QUARANTINED]:
        named = file.reason.startswith(file.uri)  # most reasons begin with the file
        yield f"quarantined: {file.reason if named else f'{file.uri}: {file.reason}'}"
    if len(details.quarantined) > _QUARANTINED:
        yield f"… and {len(details.quarantined) - _QUARANTINED:,} more; --json lists them"
    if details.report is not None:
        yield f"report: {details.report}"
