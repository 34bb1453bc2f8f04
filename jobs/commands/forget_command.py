"""The command `spin forget`: remove documents from everything that the product has stored about them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.options import AsJson, File, Set
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.forget.forget import Forgotten
    from pipelines.nightly.forget.forget_nights import ForgottenRows


def forget(
    settings: File,
    ids: Annotated[Path, typer.Option("--ids", metavar="FILE", help="text file with the id of a document per line")],
    output: Annotated[
        list[str],
        typer.Option("--output", metavar="URI", help="output of nights; may be given several times"),
    ] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be done and change nothing")] = False,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Remove documents by id from outputs, the store and the registry, and keep later nights from reading them."""
    from pipelines.forget.forget import forget_documents, read_ids

    wanted = read_ids(ids)
    forgotten = forget_documents(load_settings(settings, set), wanted, output, dry_run=dry_run)
    if as_json:
        terminal.plain(asdict(forgotten))
    else:
        _print_forgotten(forgotten, len(wanted), dry_run)
    unreadable = [error for model in forgotten.registries for error in model.unreadable.values()]
    if unreadable:
        versions = counted(len(unreadable), "version")
        raise UserError(f"{versions} could not be read, so it is not known what they name: {unreadable[0]}")


def _print_forgotten(forgotten: Forgotten, ids: int, dry_run: bool) -> None:
    terminal.say(f"forget    {counted(ids, 'id')}{', nothing is changed' if dry_run else ''}")
    for output in forgotten.outputs:
        _print_output(output)
    held = ("would be emptied" if dry_run else "emptied") if forgotten.emptied else "holds none of the documents"
    terminal.say(f"          store: {held}{'; the next training begins anew' if forgotten.emptied else ''}")
    for model in forgotten.registries:
        versions = f", neurons of versions {', '.join(model.versions)}" if model.versions else ""
        terminal.say(
            f"          model {model.model}: {counted(model.evaluation, 'document')} of the evaluation set, "
            f"{counted(model.nights, 'logged report')}{versions}"
        )
    terminal.say("          the input of nights and the corpus are not changed: remove the documents there too")


def _print_output(output: ForgottenRows) -> None:
    names = {table: table.replace("_", " ").removesuffix("s") for table in output.rows}
    rows = ", ".join(counted(count, names[table]) for table, count in output.rows.items()) or "no rows"
    nights, labels = counted(len(output.rewritten), "night"), counted(output.labels, "label")
    terminal.say(f"          {output.output}: {rows} of {nights}, {labels}")
    for run in output.given_up:
        terminal.say(f"          given up: {run}")
