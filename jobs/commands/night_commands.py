"""The commands of `spin nights`: list, show, restore and vacuum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.options import AsJson, Date, Output
from spin.errors import UserError
from spin.pages.number_format import counted

if TYPE_CHECKING:
    from pipelines.nightly.nights import NightRun, RunDetails

_LISTED = 10
"""number of quarantined files that `show` prints"""

app = typer.Typer(
    name="nights",
    help="List the nights of an output, restore one, free space.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(name="list", cls=PipelinesCommand)
def list_nights(output: Output, as_json: AsJson = False) -> None:
    """List the runs of an output: published, replaced (can be restored), unfinished (can be resumed), abandoned."""
    from pipelines.nightly.nights import list_output

    runs = list_output(output)
    if as_json:
        terminal.plain([asdict(run) for run in runs])
    else:
        _print_runs(runs, output)


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
    if as_json:
        terminal.plain([asdict(each) for each in details])
    else:
        for each in details:
            _print_details(each)


@app.command(cls=PipelinesCommand)
def restore(
    output: Output,
    date: Date = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="run to publish; default: the one run of --date that was replaced")
    ] = None,
) -> None:
    """Publish a run again as the night of its date and model, in one commit; readers see one night or the other."""
    if run is None and date is None:
        raise UserError("spin nights restore: expected --run, --date, or both")
    from pipelines.nightly.nights import restore as restore_run

    night = restore_run(output, date=date, run=run)
    terminal.say(f"the night of {night.date} of {night.model} is run {night.name}, by version {night.model_version}")


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done and change nothing")] = False,
) -> None:
    """Delete files that no night needs.

    Runs that have been unfinished or replaced for longer than --older-than days can no longer be resumed or restored.
    """
    from pipelines.nightly.nights import vacuum as run_vacuum

    plan = run_vacuum(output, older_than=timedelta(days=older_than), dry_run=dry_run)
    for run in plan.abandon:
        terminal.say(f"{'would give' if dry_run else 'gave'} up {run}; it can be neither resumed nor restored")
    deleted = f"{counted(len(plan.delete), 'object')}, {terminal.format_bytes(plan.bytes)}"
    terminal.say(f"{'would delete' if dry_run else 'deleted'} {deleted}")


def _print_runs(runs: Sequence[NightRun], output: str) -> None:
    table = Table()
    for name in ("run", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("version", "rows", "dead"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("published (UTC)", no_wrap=True)
    for run in runs:
        counts = ("" if count is None else f"{count:,}" for count in (run.predictions, run.dead_letters))
        published = (run.published or "")[:16].replace("T", " ")
        table.add_row(escape(run.run), run.state, run.model_version or "", *counts, published)
    terminal.show(table)
    from pipelines.nightly.nights import models_to_resume, resumable_runs

    for run in resumable_runs(runs):
        models = "".join(f" --model {model}" for model in models_to_resume(run, runs))
        options = f"--output {output} --date {run.date}{' --incremental' if run.incremental else ''}{models}"
        terminal.say(f"{run.run} is unfinished: `spin classify … {options}` resumes it")


def _print_details(details: RunDetails) -> None:
    run = details.night
    version = "" if run.model_version is None else f", version {run.model_version}"
    kind = "incremental night" if run.incremental else "night"
    terminal.say(f"{run.run}: {run.state}, {kind} of {run.date}, model {run.model}{version}")
    times = [
        f"{name} {time}" for name, time in (("begun", run.begun), ("published", run.published)) if time is not None
    ]
    terminal.say(f"          {', '.join(times)}")
    if details.rows:
        names = {table: table.replace("_", " ").removesuffix("s") for table in details.rows if table != "inputs"}
        rows = ", ".join(counted(details.rows[table], name) for table, name in names.items())
        terminal.say(f"          {rows}")
    if details.files_taken is not None:
        taken, quarantined = counted(details.files_taken, "input file"), len(details.quarantined)
        terminal.say(f"          {taken} taken, {quarantined:,} quarantined")
    for file in details.quarantined[:_LISTED]:
        named = file.reason.startswith(file.uri)  # most reasons begin with the file
        terminal.say(f"          quarantined: {file.reason if named else f'{file.uri}: {file.reason}'}")
    if len(details.quarantined) > _LISTED:
        terminal.say(f"          … and {len(details.quarantined) - _LISTED:,} more; --json lists them")
    if details.report is not None:
        terminal.say(f"          report: {details.report}")
