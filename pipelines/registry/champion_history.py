"""The history of the champion: one event per promotion or rollback, kept as tags of the registered model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_PREFIX = "spin.history."

Move = Literal["promote", "rollback"]


@dataclass(frozen=True)
class ChampionEvent:
    """A version became the champion."""

    when: str
    """ISO 8601, UTC, milliseconds"""
    who: str
    """the user whose command it was"""
    move: Move
    from_version: str | None
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
    score_before: float | None = None
    """of `from_version` on the same documents"""

    def to_json(self) -> str:
        event: dict[str, Any] = {
            "who": self.who,
            "when": self.when,
            "move": self.move,
            "from": self.from_version,
            "to": self.to_version,
            "why": self.why,
            "run": self.run,
        }
        if self.move == "promote":
            event["forced"] = list(self.forced)
        scores = {"score": self.score, "score_before": self.score_before}
        return json.dumps(event | {name: score for name, score in scores.items() if score is not None})

    @classmethod
    def from_json(cls, text: str) -> ChampionEvent:
        event = json.loads(text)
        return cls(
            when=event["when"],
            who=event["who"],
            move=event["move"],
            from_version=event["from"],
            to_version=event["to"],
            why=event["why"],
            run=event["run"],
            forced=tuple(event.get("forced", ())),
            score=event.get("score"),
            score_before=event.get("score_before"),
        )


def event_tags(tags: Mapping[str, str]) -> frozenset[str]:
    """The names of those tags of a registered model that hold events."""
    return frozenset(name for name in tags if name.startswith(_PREFIX))


def next_tag(tags: frozenset[str]) -> str:
    """A name for the event after those in `tags`, numbered and unique: simultaneous events never share a name."""
    return f"{_PREFIX}{len(tags) + 1:06d}.{uuid.uuid4().hex[:8]}"


def read_events(tags: Mapping[str, str]) -> list[ChampionEvent]:
    """The events in the tags of a registered model, oldest first."""
    numbered = [(name.split(".")[2], ChampionEvent.from_json(tags[name])) for name in event_tags(tags)]
    return [event for _, event in sorted(numbered, key=lambda pair: (pair[0], pair[1].when))]
