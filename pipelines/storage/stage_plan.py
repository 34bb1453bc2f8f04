"""What a stage did: the plan that is frozen when it starts and the manifest that says it ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from pipelines.storage.object_store import Store
from spin.errors import UserError


def fingerprint(facts: Any) -> str:
    """sha256 of facts as JSON: the same for the same facts, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What decides a stage's results, frozen in `plan.json` before its first write."""

    stage: str
    facts: dict[str, Any]
    """everything that changes results, by name: a difference is told by these names"""
    detail: dict[str, Any]
    """what follows from the facts and is kept so that a resumed run does not work it out again"""

    @property
    def fingerprint(self) -> str:
        return fingerprint({"stage": self.stage, **self.facts})

    @classmethod
    def of(cls, stage: str, facts: dict[str, Any]) -> Plan:
        """A plan of facts as JSON gives them back, its detail not worked out."""
        return cls(stage, json.loads(json.dumps(facts)), {})

    @classmethod
    def kept(cls, store: Store) -> Plan | None:
        found = store.read_json("plan.json")
        return None if found is None else cls(found["stage"], found["facts"], found["detail"])

    def _clear(self, store: Store) -> None:
        """The manifest first: what is half cleared must not look finished."""
        for key in ("manifest.json", "plan.json"):
            store.delete(key)
        for key in store.list():
            if not key.startswith("_lease/"):
                store.delete(key)

    def _refuse(self, store: Store, kept: Plan) -> NoReturn:
        raise UserError(
            f"{self.stage}: {store.uri} was made with other settings or data: {self._differences(kept)}. "
            "Put them back, use another store, or start over with --restart"
        )

    def _differences(self, kept: Plan) -> str:
        flat = _flatten({"stage": self.stage, **self.facts})
        old = _flatten({"stage": kept.stage, **kept.facts})
        names = sorted(name for name in flat.keys() | old.keys() if flat.get(name) != old.get(name))
        said = [f"{name} is {_short(flat.get(name))}, was {_short(old.get(name))}" for name in names[:4]]
        return "; ".join(said) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def freeze(
    store: Store,
    stage: str,
    facts: dict[str, Any],
    detail: Callable[[], dict[str, Any]],
    *,
    restart: bool = False,
) -> Plan:
    """The plan of these facts: the one that the store holds, else a new one, whose `detail` is worked out now.

    Raises UserError, saying what differs, where the store holds another plan; `restart` clears it instead.
    """
    kept, plan = Plan.kept(store), Plan.of(stage, facts)
    if kept is not None and kept.fingerprint == plan.fingerprint:
        return kept
    if kept is not None and not restart:
        plan._refuse(store, kept)
    plan = Plan(stage, plan.facts, detail())
    plan._clear(store)
    store.write_json("plan.json", {"stage": stage, "facts": plan.facts, "detail": plan.detail})
    return plan


def finished(store: Store, plan: Plan) -> dict[str, Any] | None:
    """The manifest of this plan, or None while the stage has not ended."""
    found = store.read_json("manifest.json")
    return found if found is not None and found["fingerprint"] == plan.fingerprint else None


def require(store: Store, stage: str, facts: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan and manifest of an earlier stage, for the one that builds on it.

    Raises UserError where it has not ended, or ended under other facts, saying what differs.
    """
    kept, plan = Plan.kept(store), Plan.of(stage, facts)
    if kept is not None and kept.fingerprint != plan.fingerprint:
        plan._refuse(store, kept)
    manifest = None if kept is None else finished(store, kept)
    if kept is None or manifest is None:
        raise UserError(f"{stage} has not ended in {store.uri}; run `spin {stage}` first")
    return kept, manifest


def finish(store: Store, plan: Plan, **facts: Any) -> dict[str, Any]:
    """Write the manifest, the last thing that a stage does."""
    manifest = {"stage": plan.stage, "fingerprint": plan.fingerprint, **facts}
    store.write_json("manifest.json", manifest)
    return manifest


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of a tree as JSON, by their paths; a list of trees is one too, a list of values is a leaf."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        return {name: leaf for key in value for name, leaf in _flatten(value[key], f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): json.dumps(value)}


def _short(text: str | None) -> str:
    """JSON for a message, cut in the middle: paths differ at their ends."""
    if text is None:
        return "absent"
    return text if len(text) <= 60 else f"{text[:24]}…{text[-35:]}"
