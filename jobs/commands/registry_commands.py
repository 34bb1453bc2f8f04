"""The commands of the registry: `spin promote`, `rollback`, `history` and `models`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.options import File, Set, Why, open_registry
from jobs.printing.registry import print_champion, print_gate, print_history, print_versions
from spin.settings import load_settings


def promote(
    settings: File,
    version: Annotated[
        str | None, typer.Option(help="number of the version; default: the challenger, the version trained last")
    ] = None,
    why: Why = "",
    force: Annotated[bool, typer.Option("--force", help="promote although checks fail; needs --why")] = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Make a version the champion, the one that classifies, if it passes the checks of the gate."""
    registry = open_registry(load_settings(settings, set))
    from pipelines.registry.promotion import promote
    from pipelines.registry.versions import CHALLENGER

    number = registry.resolve(f"models:/{registry.name}" + (f"/{version}" if version else f"@{CHALLENGER}"))
    print_champion(registry.name, promote.promote(registry, number, why, force=force, on_checks=print_gate))


def rollback(
    settings: File,
    to: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="version to return to; default: the one that the champion replaced"),
    ] = None,
    why: Why = "",
    set: Set = [],  # noqa: B006
) -> None:
    """Return to an earlier champion, if it loads and predicts."""
    registry = open_registry(load_settings(settings, set))
    from pipelines.registry.promotion import promote

    print_champion(registry.name, promote.rollback(registry, why, to))


def history(settings: File, set: Set = []) -> None:  # noqa: B006
    """List every change of champion, the oldest first: when, who, from, to, why, and its run in MLflow."""
    registry = open_registry(load_settings(settings, set))
    from pipelines.registry.promotion import promote

    print_history(registry.name, promote.history(registry))


def models(settings: File, set: Set = []) -> None:  # noqa: B006
    """List the registered versions and their metrics, the newest first."""
    registry = open_registry(load_settings(settings, set))
    print_versions(registry.name, registry.versions())
