"""Move the champion: promotion through the gate, rollback, and the history of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.registry.champion_history import ChampionEvent, Move, event_tags, last_tag, next_tag, read_events
from pipelines.registry.evaluation_set import EvaluationSet
from pipelines.registry.promotion.earlier_gates import (
    AFTER,
    LABELS,
    PREDICTIONS,
    evaluation_key,
    predictions_json,
    read_earlier_gates,
)
from pipelines.registry.promotion.gate import LOADS, SCORE, GateReport, check_loads, run_gate
from pipelines.registry.promotion.gate_check import GateCheck
from pipelines.registry.versions import CHAMPION, Registry
from pipelines.storage.lease import Lease, user_name
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from spin.errors import UserError

_GATE = "spin.gate"
"""prefix of the tags with a gate's result, at a version and at the gate's MLflow run"""


@dataclass(frozen=True)
class _State:
    """The champion, and the names of the tags of all moves until then."""

    champion: str | None
    events: frozenset[str]

    @property
    def last_move(self) -> str | None:
        """The tag of the last move; None before the first."""
        return last_tag(self.events)


@dataclass(frozen=True)
class _GateRun:
    """A gate report with its circumstances, as gate.json and tags keep it."""

    move: Move
    version: str
    champion: str | None
    why: str
    report: GateReport
    forced: bool = False
    last_move: str | None = None
    """the tag of the last move of the champion before"""

    def run_tags(self) -> dict[str, str]:
        """The tags of the run, by which later gates find it."""
        found = {AFTER: self.last_move or "", LABELS: self.report.labels_digest}
        return {f"{_GATE}.{name}": value for name, value in self.tags().items()} | {
            name: value for name, value in found.items() if value
        }

    def files(self) -> dict[str, str]:
        """The files of the run."""
        predictions = self.report.predictions
        return {"gate.json": self.to_json()} | ({PREDICTIONS: predictions_json(predictions)} if predictions else {})

    def tags(self) -> dict[str, str]:
        return {
            "passed": str(not self.report.failed).lower(),
            "champion": self.champion or "none",
            "forced": str(self.forced).lower(),
        }

    def check_tags(self) -> dict[str, str]:
        """Each check in words, cut to the length that MLflow allows."""
        return {
            check.name: f"{'passed' if check.passed else 'failed'}: {check.measured}"[:200]
            for check in self.report.checks
        }

    def to_json(self) -> str:
        values = {
            **self.tags(),
            "version": self.version,
            "why": self.why,
            "checks": [check.to_dict() for check in self.report.checks],
            "figures": dict(self.report.figures),
        }
        return json.dumps(values, indent=2)


def promote(
    registry: Registry,
    number: str,
    why: str,
    *,
    force: bool = False,
    on_checks: Callable[[tuple[GateCheck, ...]], None] = lambda checks: None,
) -> ChampionEvent:
    """Make a version the champion if it passes the gate; returns the event of the history.

    All checks are passed to `on_checks`, tagged at the version and logged in a run, whether it passes or not. `force`
    moves the champion although checks fail, but not to a version that does not load or predict. Raises UserError, with
    nothing moved, for a version that does not pass, is the champion already, or where a driver with another store has
    moved the champion meanwhile; HeldError while another promotion or rollback of this store runs; StalledError for a
    version that takes longer than `promote.timeout_seconds`. The store is free for another move in all cases.
    """
    if force and not why.strip():
        raise UserError("--force without --why; expected the reason why a version that fails the gate is promoted")
    with _promotion_lease(registry) as lease:
        before = _state(registry)
        _check_not_champion(registry, before, number)
        evaluation_set = registry.evaluation_set() or EvaluationSet()
        key = evaluation_key(registry.settings, evaluation_set)
        earlier = read_earlier_gates(registry, history(registry), before.last_move, key)
        report = run_gate(registry, number, before.champion, evaluation_set, earlier)
        on_checks(report.checks)
        failed = report.failed
        promoted = not failed or (force and failed[0].name != LOADS)
        forced = tuple(check.name for check in failed) if promoted else ()
        run = _log(registry, _GateRun("promote", number, before.champion, why, report, bool(forced), before.last_move))
        if not promoted:
            reasons = "; ".join(f"{check.name}: {check.measured}, expected {check.expected}" for check in failed)
            remedy = failed[0].remedy + ("" if failed[0].name == LOADS else ", or promote it with --force and --why")
            raise UserError(f"version {number} of {registry.name} is not promoted: {reasons}; {remedy}")
        event = ChampionEvent(
            when=_now(),
            who=user_name(),
            move="promote",
            from_version=before.champion,
            to_version=number,
            why=why,
            run=run,
            forced=forced,
            score=report.figures.get("score"),
            measured=next((check.measured for check in report.checks if check.name == SCORE), None),
            score_before=report.figures.get("score_before"),
            evaluation=key if report.predictions else None,
        )
        return _move_champion(registry, lease, before, event)


def rollback(registry: Registry, why: str, to: str | None = None) -> ChampionEvent:
    """Make the version that the champion replaced, or the version `to`, champion again, if it loads and predicts.

    Raises UserError, with nothing moved, where it does not, or there is no earlier champion; HeldError and
    StalledError as `promote`.
    """
    with _promotion_lease(registry) as lease:
        before = _state(registry)
        # versions that were left by a rollback are not returned to
        replaced = [
            event.from_version
            for event in history(registry)
            if event.to_version == before.champion and event.move == "promote"
        ]
        target = to or (replaced[-1] if replaced else None)
        if before.champion is None or target is None:
            raise UserError(
                f"{registry.name} has no earlier champion to go back to; `spin promote` of another version makes one"
            )
        number = registry.resolve(f"models:/{registry.name}/{target}")
        _check_not_champion(registry, before, number)
        report = check_loads(registry, number)
        run = _log(registry, _GateRun("rollback", number, before.champion, why, report))
        for check in report.failed:
            raise UserError(
                f"version {number} of {registry.name} is not champion again: {check.measured}; roll back to another "
                "version with --to"
            )
        event = ChampionEvent(
            when=_now(),
            who=user_name(),
            move="rollback",
            from_version=before.champion,
            to_version=number,
            why=why,
            run=run,
        )
        return _move_champion(registry, lease, before, event)


def history(registry: Registry) -> list[ChampionEvent]:
    """Every move of the champion, oldest first."""
    return read_events(registry.tags())


def _promotion_lease(registry: Registry) -> Lease:
    """One move at a time among the drivers that share a store."""
    return Lease(Store.of(registry.settings) / "promotion")


def _state(registry: Registry) -> _State:
    events = event_tags(registry.tags())
    return _State(registry.champion(), events)


def _check_not_champion(registry: Registry, before: _State, number: str) -> None:
    if before.champion == number:
        raise UserError(f"version {number} of {registry.name} is the champion already; `spin models` lists the others")


def _log(registry: Registry, gate_run: _GateRun) -> str:
    """Log the checks as an MLflow run and as tags of the version; returns the run's id."""
    run = registry.log_gate(
        gate_run.version,
        gate_run.move,
        tags=gate_run.run_tags(),
        metrics=gate_run.report.figures,
        files=gate_run.files(),
    )
    registry.tag_version(gate_run.version, _GATE, {**gate_run.tags(), **gate_run.check_tags(), "run": run})
    return run


def _move_champion(registry: Registry, lease: Lease, before: _State, event: ChampionEvent) -> ChampionEvent:
    """Write the event, then point the champion's alias at the version, so that no champion is without its reason.

    The event is removed again where the state is no longer `before`. Two drivers with different stores each write
    their event before they look for the other's: at least one sees both, so at most one moves the champion.
    """
    tag = next_tag(before.events)
    lease.check()
    registry.set_tag(tag, json.dumps(to_json(event)))
    now = _state(registry)
    if now != _State(before.champion, before.events | {tag}):
        registry.delete_tag(tag)
        raise UserError(
            f"the champion of {registry.name} was moved meanwhile: expected version {before.champion or 'none'}, with "
            f"which version {event.to_version} was compared, found {now.champion or 'none'} or a move under way; see "
            "`spin history`, then run it again"
        )
    registry.set_alias(CHAMPION, event.to_version)
    return event


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
