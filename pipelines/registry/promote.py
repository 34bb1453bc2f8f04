"""The champion: promotion through the gate, rollback, and the history of both."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pipelines.registry.gate import LOADS, Check, GateReport, inspect, try_out
from pipelines.registry.versions import CHAMPION, Registry
from pipelines.storage.lease import Lease, user_name
from pipelines.storage.object_store import Store
from spin.errors import UserError

_HISTORY, _GATE = "spin.history", "spin.gate"
Event = dict[str, Any]
"""a move of the champion: who, when, move, from, to, why, run, what was forced, score and score_before"""
Say = Callable[[tuple[Check, ...]], None]


class _State(NamedTuple):
    """Who is champion, and the tags of all moves until then."""

    champion: str | None
    moves: frozenset[str]


def promote(registry: Registry, number: str, why: str, *, force: bool = False, say: Say = lambda checks: None) -> Event:
    """Make a version the champion after it has passed the gate; gives the event that the history keeps.

    All checks are told to `say`, tagged at the version and kept in a run, whether it passes or not. `force` moves the
    champion although some fail, but not to a version that does not load or predict. Raises UserError, with nothing
    moved, for a version that does not pass, is the champion already, or where the champion was moved meanwhile by a
    driver with another store; HeldError where a promotion or rollback of this store is under way.
    """
    if force and not why.strip():
        raise UserError("--force without --why; expected the reason why a version that fails the gate is promoted")
    with _alone(registry) as lease:
        before = _state(registry)
        _check_other(registry, before, number)
        frozen = registry.frozen()
        findings = inspect(registry, number, before.champion, frozen["rows"] if frozen else [])
        say(findings.checks)
        failed = findings.failed
        passes = not failed or (force and failed[0].name != LOADS)
        forced = [check.name for check in failed] if passes else []
        run = _keep(registry, "promote", number, before, why, findings, bool(forced))
        if not passes:
            reasons = "; ".join(f"{check.name}: {check.found}, expected {check.expected}" for check in failed)
            remedy = failed[0].remedy + ("" if failed[0].name == LOADS else ", or promote it with --force and --why")
            raise UserError(f"version {number} of {registry.name} is not promoted: {reasons}; {remedy}")
        scores = {name: findings.figures[name] for name in ("score", "score_before") if name in findings.figures}
        return _move(registry, lease, "promote", before, number, why, run=run, forced=forced, **scores)


def rollback(registry: Registry, why: str, to: str | None = None) -> Event:
    """Make the champion that this one replaced, or the version `to`, champion again, if it loads and predicts.

    Raises UserError, with nothing moved, where it does not, or there is no earlier one; HeldError as `promote`.
    """
    with _alone(registry) as lease:
        before = _state(registry)
        current = before.champion
        # what a rollback left is not what to go back to
        past = [event["from"] for event in history(registry) if event["to"] == current and event["move"] == "promote"]
        target = to or (past[-1] if past else None)
        if current is None or target is None:
            raise UserError(f"{registry.name} has no earlier champion to go back to; `spin models` lists the versions")
        number = registry.resolve(f"models:/{registry.name}/{target}")
        _check_other(registry, before, number)
        findings = try_out(registry, number)
        run = _keep(registry, "rollback", number, before, why, findings)
        for check in findings.failed:
            raise UserError(
                f"version {number} of {registry.name} is not champion again: {check.found}; roll back to another "
                "version with --to"
            )
        return _move(registry, lease, "rollback", before, number, why, run=run)


def history(registry: Registry) -> list[Event]:
    """Every move of the champion, the oldest first."""
    tags = registry.tags()
    events = [(name.split(".")[2], json.loads(tags[name])) for name in tags if name.startswith(f"{_HISTORY}.")]
    return [event for _, event in sorted(events, key=lambda pair: (pair[0], pair[1]["when"]))]


def _alone(registry: Registry) -> AbstractContextManager[Lease]:
    """One move at a time among the drivers that share a store."""
    return Lease(Store(registry.settings.store) / "promotion")


def _state(registry: Registry) -> _State:
    moves = frozenset(name for name in registry.tags() if name.startswith(f"{_HISTORY}."))
    return _State(registry.champion(), moves)


def _check_other(registry: Registry, before: _State, number: str) -> None:
    if before.champion == number:
        raise UserError(f"version {number} of {registry.name} is the champion already; `spin models` lists the others")


def _keep(
    registry: Registry,
    move: str,
    number: str,
    before: _State,
    why: str,
    findings: GateReport,
    forced: bool = False,
) -> str:
    """Note what was found at the version and in a run of its own; gives the run's id."""
    rows = [
        {**asdict(check), "value": check.value if math.isfinite(check.value) else None, "passed": check.passed}
        for check in findings.checks
    ]
    facts = {
        "passed": str(not findings.failed).lower(),
        "champion": before.champion or "none",
        "forced": str(forced).lower(),
    }
    report = {**facts, "version": number, "why": why, "checks": rows, "figures": findings.figures}
    run = registry.log_move(
        number, move, {f"{_GATE}.{name}": value for name, value in facts.items()}, findings.figures, report
    )
    short = {row["name"]: f"{'passed' if row['passed'] else 'failed'}: {row['found']}"[:200] for row in rows}
    registry.tag_version(number, _GATE, {**facts, **short, "run": run})
    return run


def _move(registry: Registry, lease: Lease, move: str, before: _State, number: str, why: str, **facts: Any) -> Event:
    """Point the champion at a version; the history first, so that no champion is without its reason.

    The event is taken back where the state is no longer the one before. Of two drivers with stores of their own each
    writes its event before it looks for the other's: at least one sees both, so at most one goes on.
    """
    event = {
        "who": user_name(),
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "move": move,
        "from": before.champion,
        "to": number,
        "why": why,
        **facts,
    }
    # a name of its own: of two events that are written at once, neither takes the other's place
    name = f"{_HISTORY}.{len(before.moves) + 1:06d}.{uuid.uuid4().hex[:8]}"
    lease.check()
    registry.set_tag(name, json.dumps(event))
    now = _state(registry)
    if now != _State(before.champion, before.moves | {name}):
        registry.delete_tag(name)
        raise UserError(
            f"the champion of {registry.name} was moved meanwhile: expected version {before.champion or 'none'}, with "
            f"which version {number} was compared, found {now.champion or 'none'} or a move under way; see `spin "
            "history`, then run it again"
        )
    registry.set_alias(CHAMPION, number)
    return event
