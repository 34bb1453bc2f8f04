"""The commands to begin with: `spin quickstart` and `spin init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from jobs import terminal
from spin.errors import UserError


def quickstart(
    folder: Annotated[Path, typer.Option(help="folder for all files of the quickstart")] = Path("runs/quickstart"),
    full: Annotated[bool, typer.Option("--full", help="all documents instead of 12,000")] = False,
) -> None:
    """Train a model on tweets that come with the package, promote it and classify a batch, on this machine."""
    from jobs.quickstart import run_quickstart

    run_quickstart(folder, full=full)


def init(
    path: Annotated[Path | None, typer.Argument(metavar="SETTINGS", help="settings file to write")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON Schema of settings files instead, for editors and programs")
    ] = False,
    example: Annotated[
        bool,
        typer.Option("--example", help="also write labelled reviews and a batch to classify, with settings for them"),
    ] = False,
) -> None:
    """Write a settings file with every setting and a comment that explains it, and its JSON Schema for editors."""
    from jobs.settings_template import settings_schema, write_example, write_settings

    if schema and path is None:
        terminal.raw(settings_schema())
        return
    if example and not schema:
        path = path or Path("settings.yaml")
        reviews, batch = write_example(path)
        terminal.say(f"wrote {path}, {reviews} (labelled) and {batch} (to classify)")
        terminal.next_command("run", str(path))
        return
    if schema or path is None:
        raise UserError(
            "spin init: expected the name of a settings file to write, --example, or --schema to print the JSON Schema"
        )
    write_settings(path)
    required = "backbone.model, data.train, store.uri and mlflow.model"
    terminal.say(f"wrote {path}; set {required}, then: spin run {shlex.quote(str(path))}")
