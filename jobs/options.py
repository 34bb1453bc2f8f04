"""Arguments and options that several commands share, and the registry that their settings name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.page_file import check_writable
from spin.settings import Settings

if TYPE_CHECKING:
    from pipelines.registry.versions import Registry

File = Annotated[str, typer.Argument(metavar="SETTINGS", help="settings file; `spin init` writes one")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=VALUE", help="override one setting of the file; may be given several times"),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="discard finished work if settings or data have changed, and start again")
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
