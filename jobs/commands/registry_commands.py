"""The commands of the registry: `spin promote`, `rollback`, `history` and `models`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from jobs import terminal
from jobs.figures import format_minute
from jobs.options import File, Set, Why, open_registry
from spin.settings import load_settings

if TYPE_CHECKING:
    from pipelines.registry.champion_history import ChampionEvent
    from pipelines.registry.promotion.gate_checks import CheckResult
    from pipelines.registry.version_records import Version


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


def print_gate(checks: Sequence[CheckResult]) -> None:
    """Print one row per check of the gate and, below, what to do about those that failed."""
    table = Table("check", "found", "expected", "")
    for check in checks:
        mark = Text("passed", "green") if check.passed else Text("failed", "red")
        table.add_row(check.name, check.measured, check.expected, mark)
    terminal.show(table)
    for check in checks:
        if not check.passed:
            terminal.say(f"{check.name}: {check.remedy}")


def print_champion(name: str, event: ChampionEvent) -> None:
    """Print which version is champion now."""
    before = f" in place of version {event.from_version}" if event.from_version else ""
    figure = f", on the frozen evaluation set {event.measured}" if event.measured else ""
    forced = f", forced although these failed: {', '.join(event.forced)}" if event.forced else ""
    terminal.say(f"{name} version {event.to_version} is champion{before}{figure}{forced}")


def print_versions(name: str, versions: Sequence[Version]) -> None:
    """Print the registered versions, the newest first."""
    if not versions:
        terminal.say(f"{name} has no versions; `spin run` registers one")
        return
    number, created, fingerprint = (Column(name, no_wrap=True) for name in ("version", "created (UTC)", "fingerprint"))
    table = Table(number, "aliases", created, "metrics", fingerprint)
    for version in versions:
        figures = ", ".join(f"{k} {v:.4f}" for k, v in sorted(version.metrics.items()))
        aliases = ", ".join(version.aliases)
        table.add_row(version.number, aliases, format_minute(version.created), figures, version.fingerprint[:12])
    terminal.show(table)


def print_history(name: str, events: Sequence[ChampionEvent]) -> None:
    """Print one line per change of champion, the oldest first."""
    if not events:
        terminal.say(f"{name} has had no champion; `spin promote` makes one")
    for event in events:
        forced = f" --force ({', '.join(event.forced)})" if event.forced else ""
        why = f": {event.why}" if event.why else ""
        move = f"{event.move}{forced} from {event.from_version or 'none'} to {event.to_version}"
        terminal.say(f"{event.when} {event.who} {move}, run {event.run}{why}")
