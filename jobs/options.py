"""What several commands take on the command line, and the registry that their settings name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from spin.settings import Settings

File = Annotated[str, typer.Argument(metavar="SETTINGS", help="settings file; `spin init` writes one")]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=VALUE", help="override one setting; may be repeated")]
Restart = Annotated[bool, typer.Option("--restart", help="start over where settings or data have changed")]
Model = Annotated[str | None, typer.Option(metavar="models:/NAME@ALIAS", help="by default the champion")]
Input = Annotated[str, typer.Option("--input", metavar="URI", help="file, folder or glob")]
Why = Annotated[str, typer.Option(help="kept in the history")]


def open_registry(settings: Settings) -> Any:
    """Imported when a command needs it: `spin --help` answers at once."""
    from pipelines.registry.versions import Registry

    return Registry(settings)
