"""Move the champion: promotion through the gate, rollback, and the history of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipelines.registry.champion_history import ChampionEvent, Move, event_tags, next_tag, read_events
from pipelines.registry.promotion.earlier_gates import (
    AFTER,
    LABELS,
    MOVE,
    PREDICTIONS,
    evaluation_key,
    predictions_json,
    read_earlier_gates,
)
from pipelines.registry.promotion.gate import GateReport, check_loads, run_gate
from pipelines.registry.promotion.gate_checks import CheckResult
from pipelines.registry.versions import CHAMPION, Registry
from pipelines.storage.lease import Lease, user_name
from pipelines.storage.object_store import Store
from pipelines.storage.records import to_json
from spin.errors import SpinError, UserError

_logger = logging.getLogger(__name__)
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
        return max(self.events, default=None)


def promote(
    registry: Registry,
    number: str,
    why: str,
    *,
    force: bool = False,
    on_checks: Callable[[tuple[CheckResult, ...]], None] = lambda checks: None,
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
        # guarded by test_the_gate_reads_no_document_that_proves_a_promise; broken by:
        #   evaluation_set = registry.evaluation_set()
        evaluation_set = registry.evaluation_set().gate_half
        key = evaluation_key(registry.settings, evaluation_set)
        earlier = read_earlier_gates(registry, history(registry), before.last_move, key)
        report = run_gate(registry, number, before.champion, evaluation_set, earlier)
        on_checks(report.checks)
        failed = report.failed
        can_be_forced = all(check.can_be_forced for check in failed)
        promoted = not failed or (force and can_be_forced)
        forced = tuple(check.name for check in failed) if promoted else ()
        run = _log(registry, "promote", number, before, why, report, forced=bool(forced))
        if not promoted:
            reasons = "; ".join(f"{check.name}: {check.measured}, expected {check.expected}" for check in failed)
            remedy = failed[0].remedy + (", or promote it with --force and --why" if can_be_forced else "")
            raise UserError(f"version {number} of {registry.name} is not promoted: {reasons}; {remedy}")
        event = replace(
            _event("promote", number, before, why, run),
            forced=forced,
            score=report.figures.get("score"),
            measured=report.measured_score,
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
        if target is None:
            raise UserError(
                f"{registry.name} has no earlier champion to go back to; `spin promote` of another version makes one, "
                "and --to names a version"
            )
        number = registry.resolve(f"models:/{registry.name}/{target}")
        _check_not_champion(registry, before, number)
        report = check_loads(registry, number)
        run = _log(registry, "rollback", number, before, why, report)
        for check in report.failed:
            raise UserError(
                f"version {number} of {registry.name} is not champion again: {check.measured}; roll back to another "
                "version with --to"
            )
        return _move_champion(registry, lease, before, _event("rollback", number, before, why, run))


def history(registry: Registry) -> list[ChampionEvent]:
    """Every move of the champion, oldest first."""
    return read_events(registry.tags())


def _promotion_lease(registry: Registry) -> Lease:
    """One move at a time among the drivers that share a store."""
    return Lease(Store.of(registry.settings) / "promotion")


def _state(registry: Registry) -> _State:
    return _State(registry.champion(), event_tags(registry.tags()))


def _check_not_champion(registry: Registry, before: _State, number: str) -> None:
    if before.champion == number:
        raise UserError(f"version {number} of {registry.name} is the champion already; `spin models` lists the others")


def _log(
    registry: Registry, move: Move, number: str, before: _State, why: str, report: GateReport, *, forced: bool = False
) -> str:
    """Log the checks as an MLflow run and as tags of the version; returns the run's id."""
    tags = {
        "passed": str(not report.failed).lower(),
        "champion": before.champion or "none",
        "forced": str(forced).lower(),
    }
    # later gates find the run of a promotion by these
    found = {MOVE: move, AFTER: before.last_move if move == "promote" else None, LABELS: report.labels_digest}
    content = {
        **tags,
        "version": number,
        "why": why,
        "checks": [check.to_dict() for check in report.checks],
        "figures": report.figures,
    }
    files = {"gate.json": json.dumps(content, indent=2)}
    if report.predictions:
        files[PREDICTIONS] = predictions_json(report.predictions)
    run_tags = {
        "spin.version": number,
        **{f"{_GATE}.{name}": value for name, value in tags.items()},
        **{name: value for name, value in found.items() if value},
    }
    run = registry.log_run(f"{move} {number}", run_tags, report.figures, files)
    # each check in words, cut to the length that MLflow allows
    checks = {c.name: f"{'passed' if c.passed else 'failed'}: {c.measured}"[:200] for c in report.checks}
    registry.tag_version(number, _GATE, {**tags, **checks, "run": run})
    return run


def _event(move: Move, number: str, before: _State, why: str, run: str) -> ChampionEvent:
    """The event that a version becomes the champion now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return ChampionEvent(
        when=now, who=user_name(), move=move, from_version=before.champion, to_version=number, why=why, run=run
    )


def _move_champion(registry: Registry, lease: Lease, before: _State, event: ChampionEvent) -> ChampionEvent:
    """Write the event, then point the champion's alias at the version, so that no champion is without its reason.

    The event is removed again where the state is no longer `before`, or the move fails. Two drivers with different
    stores each write their event before they look for the other's: at least one sees both, so at most one moves the
    champion.
    """
    tag = next_tag(before.events)
    lease.check()
    try:
        registry.set_tag(tag, json.dumps(to_json(event)))
        now = _state(registry)
        unchanged = now == _State(before.champion, before.events | {tag})
        if unchanged:
            registry.set_alias(CHAMPION, event.to_version)
    except BaseException:
        _take_back(registry, tag, event)
        raise
    if not unchanged:
        registry.delete_tag(tag)
        raise UserError(
            f"the champion of {registry.name} was moved meanwhile: expected version {before.champion or 'none'}, with "
            f"which version {event.to_version} was compared, found {now.champion or 'none'} or a move under way; see "
            "`spin history`, then run it again"
        )
    return event


def _take_back(registry: Registry, tag: str, event: ChampionEvent) -> None:
    """Remove the event of a move that failed, unless the champion was moved all the same.

    The error of the move is the one to raise: that the event cannot be removed is only logged.
    """
    try:
        if registry.champion() != event.to_version:
            registry.delete_tag(tag)
    except SpinError as error:
        _logger.warning(
            "%s: the tag %s names a move to version %s that may have failed, and was not removed: %s",
            registry.name,
            tag,
            event.to_version,
            error,
        )
