"""The command `spin forget`: remove documents from everything that the product has stored about them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs import terminal
from jobs.options import AsJson, DryRun, File, Set
from jobs.printing.forgotten import print_forgotten
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import load_settings


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
    if as_json:
        terminal.plain(asdict(forgotten))
    else:
        print_forgotten(forgotten, len(wanted), dry_run)
    unreadable = [error for model in forgotten.registries for error in model.unreadable.values()]
    if unreadable:
        versions = counted(len(unreadable), "version")
        raise UserError(f"{versions} could not be read, so it is not known what they name: {unreadable[0]}")
