"""The history of the champion: one event per promotion or rollback, kept as tags of the registered model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.storage.records import from_json

BEST_CHAMPION = "best_champion"
"""the check of the gate that compares a version with the best of all champions that count"""
_PREFIX = "spin.history."

Move = Literal["promote", "rollback"]


@dataclass(frozen=True, kw_only=True)
class ChampionEvent:
    """A version became the champion."""

    when: str
    """ISO 8601, UTC, milliseconds"""
    who: str
    """the user whose command it was"""
    move: Move
    from_version: str | None = None
    """the champion before; None for the first"""
    to_version: str
    why: str
    """as given with --why, or empty"""
    run: str
    """the MLflow run that holds gate.json"""
    forced: tuple[str, ...] = ()
    """the checks that failed and were overridden by --force"""
    score: float | None = None
    """of `to_version` on the frozen evaluation set; None where it was not measured"""
    measured: str | None = None
    """this score in words: with its interval, and on which documents and how it was measured"""
    score_before: float | None = None
    """of `from_version` on the same documents"""
    evaluation: str | None = None
    """what the predictions in the run depend on, see `evaluation_key`; None where the run keeps none"""


def event_tags(tags: Mapping[str, str]) -> frozenset[str]:
    """The names of those tags of a registered model that hold events."""
    return frozenset(name for name in tags if name.startswith(_PREFIX))


def next_tag(tags: frozenset[str]) -> str:
    """A name for the event after those in `tags`, numbered and unique: simultaneous events never share a name."""
    return f"{_PREFIX}{len(tags) + 1:06d}.{uuid.uuid4().hex[:8]}"


def read_events(tags: Mapping[str, str]) -> list[ChampionEvent]:
    """The events in the tags of a registered model, oldest first."""
    numbered = [(name.split(".")[2], from_json(ChampionEvent, json.loads(tags[name]))) for name in event_tags(tags)]
    return [event for _, event in sorted(numbered, key=lambda pair: (pair[0], pair[1].when))]


def standing_champions(events: Sequence[ChampionEvent]) -> tuple[str, ...]:
    """The versions whose quality a new version must keep: the champion and those before it, oldest first.

    Two kinds of former champions do not count. One is a version that a rollback left: it had disappointed, whatever its
    score, and a version that fits the evaluation set by mistake would close the gate for good. The other is every
    version before a promotion that was forced although the check `best_champion` failed: whoever forced it has accepted
    the loss, with a reason in the history, and without this each later promotion would have to be forced too. A
    rollback to a version before that takes it back: then those count that counted when that version became champion.
    """
    line: tuple[str, ...] = ()
    lines: dict[str, tuple[str, ...]] = {}
    for event in events:
        if event.move == "promote":
            kept = () if BEST_CHAMPION in event.forced else line
        else:
            kept = lines.get(event.to_version, line[:-1])
        line = (*(number for number in kept if number != event.to_version), event.to_version)
        lines[event.to_version] = line
    return line
