"""The commands of `spin nights`: list, show, restore, delete and vacuum."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.filesize import decimal

from jobs import terminal
from jobs.extras import PipelinesCommand
from jobs.options import AsJson, Date, DryRun, Output, command_group
from jobs.printing.nights import print_details, print_runs
from spin.errors import UserError
from spin.pages.number_format import counted

app = command_group("nights", "List the nights of an output, restore or delete some, free space.")


@app.command(name="list", cls=PipelinesCommand)
def list_nights(output: Output, as_json: AsJson = False) -> None:
    """List the runs of an output: published, replaced or deleted (can be restored), unfinished (resumed), abandoned."""
    from pipelines.nightly.nights import list_output

    runs = list_output(output)
    if as_json:
        terminal.plain([asdict(run) for run in runs])
    else:
        print_runs(runs, output)


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
            print_details(each)


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
        terminal.say(f"`spin nights restore --run RUN --output {output}` brings one back; a vacuum frees the space")


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
