"""The command `spin purge`: delete what a training has stored of its documents."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from jobs import terminal
from jobs.options import DryRun, File, Set
from spin.pages.number_format import counted
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.training.purge import StoredWork


def purge(
    settings: File,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=36_500,
            help="age of what is deleted; 0: whatever its age; default: store.retention",
        ),
    ] = None,
    dry_run: DryRun = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Delete from the store what reveals training documents: features, probes, heads of the search, suspects.

    Each is deleted once it has not changed for --older-than days. Models stay, and so does every output of nights.
    """
    loaded = load_settings(settings, set)
    from pipelines.training.purge import run_purge

    age = None if older_than is None else timedelta(days=older_than)
    plan = run_purge(loaded, older_than=age, dry_run=dry_run)
    done = "would delete" if dry_run else "deleted"
    for work in plan.delete:
        terminal.say(f"{done} {work.name}: {_count(len(work.keys), work.bytes)}, unchanged for {_days(work)}")
    for work in plan.leave:
        terminal.say(f"left {work.name}: unchanged for {_days(work)} only")
    terminal.say(f"{done} {_count(plan.objects, plan.bytes)}")


def _count(objects: int, size: int) -> str:
    return f"{counted(objects, 'object')}, {decimal(size)}"


def _days(work: StoredWork) -> str:
    return f"{work.age / timedelta(days=1):.1f} days"
