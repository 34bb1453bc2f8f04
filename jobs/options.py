"""Arguments and options that several commands share, and what they name: the registry, and the file of a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from spin.errors import UserError
from spin.settings import Settings

if TYPE_CHECKING:
    from pipelines.registry.versions import Registry


def check_writable(path: Path | None) -> Path | None:
    """Return the path of a file. Raises UserError, before any work is done, where none could be written."""
    if path is None:
        return None
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: permission denied; name another file")
    return path


def check_new(path: Path) -> None:
    """Raise UserError, before any work is done, where a file is there already or none could be written."""
    if path.is_file():
        raise UserError(f"{path} exists already; name another file, or delete it")
    check_writable(path)


File = Annotated[str, typer.Argument(metavar="SETTINGS", help="settings file; `spin init` writes one")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=VALUE", help="override one setting of the file; may be given several times"),
]
Restart = Annotated[
    bool,
    typer.Option("--restart", help="discard finished work if settings, or the files of a night, have changed"),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="models:/NAME@ALIAS", help="registered version to use; default: the champion"),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="models:/NAME@ALIAS",
        help="registered version to use; default: the champion; may be given several times, for models of different "
        "names, of which those with the same backbone read the documents in one pass",
    ),
]
Input = Annotated[str, typer.Option("--input", metavar="URI", help="file, folder or glob of documents")]
Output = Annotated[str, typer.Option("--output", metavar="URI", help="folder or s3:// prefix that collects all nights")]
Date = Annotated[str | None, typer.Option("--date", metavar="YYYY-MM-DD", help="date of a night")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", callback=check_writable, help="also write it as a page"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be done and change nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for a program")]
Why = Annotated[str, typer.Option(help="reason, kept in the history")]


def command_group(name: str, help: str) -> typer.Typer:
    """Return an empty group of commands, such as `spin nights`."""
    return typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode="rich")


def repeat_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the options `--set` of a command, for the command that follows it."""
    return [word for override in overrides for word in ("--set", override)]


def open_registry(settings: Settings, name: str | None = None) -> Registry:
    """Return the registered model of a name, by default the one of the settings; MLflow is imported only by this."""
    from pipelines.registry.versions import Registry

    return Registry(settings, name)


def write_page(path: Path, page: str) -> None:
    """Write a page and print where it is. Raises UserError where the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    terminal.say(f"wrote {path}")
