"""The champion: the gate that a version passes, promotion, rollback, and the history of both."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from typing import Any

from pipelines.registry import CHAMPION, Registry
from spin.calibrate import Decision
from spin.errors import UserError
from spin.metric import score
from spin.task import Task, names_of

_HISTORY = "spin.history"


def promote(registry: Registry, number: str, why: str) -> dict[str, Any]:
    """Make a version the champion after it has passed the gate; gives the event that the history keeps.

    Raises UserError for one that does not pass, or is the champion already.
    """
    current = registry.champion()
    if current == number:
        raise UserError(f"version {number} of {registry.name} is the champion already")
    return _move(registry, current, number, why, _gate(registry, number, current))


def rollback(registry: Registry, why: str, to: str | None = None) -> dict[str, Any]:
    """Make the champion before this one, or the version `to`, champion again, if it loads and predicts."""
    current = registry.champion()
    past = [event["from"] for event in history(registry) if event["to"] == current and event["from"]]
    target = to or (past[-1] if past else None)
    if current is None or target is None:
        raise UserError(f"{registry.name} has no earlier champion to roll back to; `spin models` lists the versions")
    number = registry.resolve(f"models:/{registry.name}/{target}")
    return _move(registry, current, number, why, {"score": _score(registry, number, None)})


def history(registry: Registry) -> list[dict[str, Any]]:
    """Every move of the champion, the oldest first: who, when, from, to, why, and what the gate found."""
    tags = registry.tags()
    return [json.loads(tags[name]) for name in sorted(tags) if name.startswith(f"{_HISTORY}.")]


def _gate(registry: Registry, number: str, current: str | None) -> dict[str, Any]:
    """What a version must show before it is champion: it loads, predicts and is no worse on the frozen evaluation set.

    Gives the figures for the history. Raises UserError, saying by how much, for one that is worse than the champion.
    """
    frozen = registry.frozen()
    mine = _score(registry, number, frozen)
    before = None if current is None else _score(registry, current, frozen)
    if before is not None and mine is not None and mine < before:
        raise UserError(
            f"version {number} of {registry.name} scores {mine:.4f} {registry.settings.metric} on the frozen "
            f"evaluation set, the champion (version {current}) {before:.4f}; not promoted"
        )
    return {"score": mine, "score_before": before}


def _score(registry: Registry, number: str, frozen: dict[str, Any] | None) -> float | None:
    """The metric of a version on the evaluation set; without rows, only that it predicts."""
    spin = registry.load(number)
    if frozen is None or not frozen["rows"]:
        spin.predict(["Does it predict?"])
        return None
    rows = frozen["rows"]
    y, _ = Decision.of(spin.task, spin.decision).labels(spin.predict_proba([row["text"] for row in rows]))
    predicted, truth = spin.task.names(y), [row["label"] for row in rows]
    # the set may have classes that this version does not know
    every = sorted({name for label in [*truth, *predicted] for name in names_of(label)})
    both = Task(tuple(every), spin.task.multilabel)
    return score(registry.settings.metric, both.index(truth), both.index(predicted))


def _move(registry: Registry, current: str | None, number: str, why: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Point the champion at a version; the history first, so that no champion is without its reason."""
    event = {
        "who": getpass.getuser(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": current,
        "to": number,
        "why": why,
        **figures,
    }
    registry.set_tag(f"{_HISTORY}.{len(history(registry)) + 1:06d}", json.dumps(event))
    registry.set_alias(CHAMPION, number)
    return event
