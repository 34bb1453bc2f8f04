"""The commands that remove documents: `spin forget`, some everywhere, and `spin purge`, those of a training."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from jobs import terminal
from jobs.figures import format_rows
from jobs.options import AsJson, DryRun, File, Set
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.forget.forget import Forgotten
    from pipelines.forget.purge import StoredWork
    from pipelines.forget.training_store import ForgottenInStore


def forget(
    settings: File,
    ids: Annotated[Path, typer.Option("--ids", metavar="FILE", help="text file with the id of a document per line")],
    output: Annotated[
        list[str],
        typer.Option("--output", metavar="URI", help="output of nights; may be given several times"),
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Remove documents by id from outputs, the store and the registry, and keep later nights from reading them."""
    from pipelines.forget.forget import forget_documents, read_ids

    wanted = read_ids(ids)
    forgotten = forget_documents(load_settings(settings, set), wanted, output, dry_run=dry_run)
    terminal.show_result(forgotten, as_json, partial(print_forgotten, ids=len(wanted), dry_run=dry_run))
    unreadable = [error for model in forgotten.registries for error in model.unreadable.values()]
    if unreadable:
        versions = counted(len(unreadable), "version")
        raise UserError(f"{versions} could not be read, so it is not known what they name: {unreadable[0]}")


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
    from pipelines.forget.purge import run_purge

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


def _describe_store(store: ForgottenInStore, dry_run: bool) -> str:
    if not store.emptied:
        return "holds none of the documents"
    texts = "" if store.texts is None else f", and the features of {counted(store.texts, 'text')}"
    deleted = "would be deleted" if dry_run else "are deleted"
    return f"what a training has learned{texts} {deleted}; the next one reads no other text again"


def print_forgotten(forgotten: Forgotten, ids: int, dry_run: bool) -> None:
    """Print what outputs, the store and the registry held of the documents."""
    terminal.say_about("forget", _describe_forgotten(forgotten, ids, dry_run))


def _describe_forgotten(forgotten: Forgotten, ids: int, dry_run: bool) -> Iterator[str]:
    yield f"{counted(ids, 'id')}{', nothing is changed' if dry_run else ''}"
    for output in forgotten.outputs:
        rows = format_rows(output.rows) or "no rows"
        yield (
            f"{output.output}: {rows} of {counted(len(output.rewritten), 'night')}, {counted(output.labels, 'label')}"
        )
        yield from (f"given up: {run}" for run in output.given_up)
    yield f"store: {_describe_store(forgotten.store, dry_run)}"
    for model in forgotten.registries:
        versions = f", neurons of versions {', '.join(model.versions)}" if model.versions else ""
        yield (
            f"model {model.model}: {counted(model.evaluation, 'document')} of the evaluation set, "
            f"{counted(model.nights, 'logged report')}{versions}"
        )
    yield "the input of nights and the corpus are not changed: remove the documents there too"
