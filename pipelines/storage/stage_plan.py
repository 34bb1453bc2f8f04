"""The plan of a stage, written before its first result, and its manifest, written after its last.

A stage uses the functions in this order: `write_plan` when it starts, `find_manifest` to see whether it has already
finished, `write_manifest` when it ends. The stage that builds on it calls `load_finished`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_bytes, to_json
from pipelines.storage.shard_log import OUTCOMES
from spin.errors import UserError, shorten_message

PLAN, MANIFEST = "plan.json", "manifest.json"
_CONFIRMED_SECONDS = 1.0
"""for which a lease counts as held while a store is cleared"""
D = TypeVar("D")
R = TypeVar("R")


def fingerprint(metadata: Any) -> str:
    """sha256 of JSON values: the same for the same values, whatever the order of keys."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class NothingDerived:
    """The derived values of a stage whose plan holds nothing but its metadata."""


@dataclass(frozen=True)
class StagePlan(Generic[D]):
    """Everything that decides the results of a stage, written to `plan.json` before its first result."""

    stage: str
    """name of the command: extract, probe, train, classify"""
    metadata: dict[str, Any]
    """JSON values of everything that changes results; an error message names what differs"""
    derived: D
    """record of what follows from the metadata and from what the store held; it is not computed again"""

    @property
    def fingerprint(self) -> str:
        """sha256 of stage and metadata, whatever the derived values are."""
        return fingerprint({"stage": self.stage, **self.metadata})

    @property
    def folder(self) -> str:
        """The folder of the stage's results in its store.

        No plan with other metadata has it: what a driver that was overtaken, or one of its workers, still writes is
        never taken for a result of its successor, whose plan may be another one.
        """
        # guarded by test_a_probe_of_an_overtaken_stage_is_not_among_those_of_its_successor; broken by:
        #   return "results"
        return self.fingerprint[:16]


@dataclass(frozen=True)
class StageManifest(Generic[R]):
    """The end of a stage, written to `manifest.json` after all its results."""

    stage: str
    """as in the plan"""
    fingerprint: str
    """of the plan that the results belong to"""
    results: R
    """record of what the stage reports; its fields stand next to `stage` and `fingerprint` in the file"""

    def to_json(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {"stage": self.stage, "fingerprint": self.fingerprint, **to_json(self.results)}


def write_plan(
    store: Store,
    stage: str,
    metadata: dict[str, Any],
    derived_type: type[D],
    derive: Callable[[], D],
    *,
    lease: Lease,
    restart: bool = False,
    may_change: Collection[str] = (),
    keep: Callable[[D], str | None] = lambda derived: None,
) -> StagePlan[D]:
    """The plan for this metadata: the one in the store, or a new one, for which `derive` is called.

    A new plan clears the store, except for a folder that `keep` may name. Raises UserError, naming the differences, if
    the store holds a plan with other metadata, unless `restart` is given or they are in the parts `may_change`. Raises
    HeldError if another run has taken the lease meanwhile.
    """
    metadata = json.loads(json.dumps(metadata))
    if plan := _find_plan(store, stage, metadata, derived_type, restart=restart, may_change=may_change):
        return plan
    plan = StagePlan(stage, metadata, derive())
    kept = ("_lease/", *(f"{folder}/" for folder in [keep(plan.derived)] if folder))
    delete_objects(store, [item.key for item in store.list_all() if not item.key.startswith(kept)], lease)
    lease.check()
    store.write_json(PLAN, _plan_json(plan))
    return plan


def create_plan(
    store: Store, stage: str, metadata: dict[str, Any], derived_type: type[D], derive: Callable[[], D]
) -> StagePlan[D]:
    """The plan for this metadata: the one in the store, or a new one, for which `derive` is called.

    A plan is created only if there is none, and nothing in the store is ever replaced, so several drivers may call this
    at the same time. Raises UserError, naming the differences, if the store holds a plan with other metadata.
    """
    metadata = json.loads(json.dumps(metadata))
    while (plan := _find_plan(store, stage, metadata, derived_type)) is None:
        store.create(PLAN, to_bytes(_plan_json(StagePlan(stage, metadata, derive()))))
    return plan


def read_plan(store: Store, derived_type: type[D]) -> StagePlan[D] | None:
    """The plan in a store, None if there is none. Raises UserError for one of another shape."""
    stored = store.read_json(PLAN)
    if stored is None:
        return None
    try:
        return StagePlan(stored["stage"], stored["metadata"], from_json(derived_type, stored["derived"]))
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"{store.uri}/{PLAN} is damaged or of another version ({shorten_message(str(error))}); delete it to "
            "start over"
        ) from None


def find_manifest(store: Store, plan: StagePlan[Any], results_type: type[R]) -> StageManifest[R] | None:
    """The manifest of this plan, None while the stage has not finished."""
    stored = store.read_json(MANIFEST)
    if stored is None or stored["fingerprint"] != plan.fingerprint:
        return None
    return StageManifest(stored["stage"], stored["fingerprint"], from_json(results_type, stored))


def finished_fingerprint(store: Store) -> str | None:
    """The fingerprint of the plan whose stage has finished in a store, None if there is none."""
    stored = store.read_json(MANIFEST)
    return None if stored is None else str(stored["fingerprint"])


def load_finished(
    store: Store, stage: str, metadata: dict[str, Any], derived_type: type[D], results_type: type[R]
) -> tuple[StagePlan[D], StageManifest[R]]:
    """Plan and manifest of an earlier stage, for the stage that builds on it.

    Raises UserError if it has not finished, or, naming the differences, if it finished with other metadata.
    """
    plan = _find_plan(store, stage, metadata, derived_type, remedy=f"run `spin {stage} --restart` first")
    manifest = None if plan is None else find_manifest(store, plan, results_type)
    if plan is None or manifest is None:
        raise UserError(f"{stage} has not finished in {store.uri}; run `spin {stage}` first")
    return plan, manifest


def write_manifest(store: Store, plan: StagePlan[Any], results: R) -> StageManifest[R]:
    """Write the manifest, which must be the last thing that a stage writes."""
    manifest = StageManifest(plan.stage, plan.fingerprint, results)
    store.write_json(MANIFEST, manifest.to_json())
    return manifest


def delete_objects(store: Store, keys: Sequence[str], lease: Lease, *, marks: Sequence[str] = (MANIFEST, PLAN)) -> None:
    """Delete objects of a stage, those named by `marks` first, then what commits shards, then all others.

    What is deleted in part never looks finished.

    The objects of each mark have requests of their own, since the order within a request is open. Call it under the
    lease of the stage, after the objects were listed. The lease is confirmed again and again: a driver that was
    suspended meanwhile stops, before it deletes more of what its successor has written. Raises HeldError then.
    """
    # guarded by test_a_driver_that_sleeps_while_it_plans_a_restart_deletes_nothing_of_its_successor
    lease.check()
    # guarded by test_a_purge_that_dies_leaves_nothing_that_looks_finished; broken by:
    #   for alike in [sorted(keys)]:
    for alike in _divide_by_mark(keys, marks):
        for start in range(0, len(alike), store.deleted_at_once):
            # guarded by test_a_driver_that_sleeps_while_it_clears_a_store_stops_before_it_deletes_more
            lease.check(max_age=_CONFIRMED_SECONDS)
            store.delete_many(alike[start : start + store.deleted_at_once])


def _find_plan(
    store: Store,
    stage: str,
    metadata: dict[str, Any],
    derived_type: type[D],
    *,
    restart: bool = False,
    may_change: Collection[str] = (),
    remedy: str = "start over with --restart",
) -> StagePlan[D] | None:
    """The plan in a store, None if there is none.

    One that cannot be read, or has other metadata, is refused. With `restart`, or if the differences are in the parts
    `may_change`, it is ignored. The error names the `remedy`.
    """
    try:
        plan = read_plan(store, derived_type)
    except UserError:
        if restart:
            return None
        raise
    # guarded by test_a_run_with_other_settings_is_refused_without_restart
    if plan is not None and plan.fingerprint != StagePlan(stage, metadata, None).fingerprint:
        new, old = ({n: v for n, v in values.items() if n not in may_change} for values in (metadata, plan.metadata))
        if restart or (fingerprint(new) == fingerprint(old) and stage == plan.stage):
            return None
        differences = _differences(stage, new, replace(plan, metadata=old))
        raise UserError(
            f"{stage}: {store.uri} was made with other settings or data: {differences}. "
            f"Put them back, name another folder for the results, or {remedy}"
        )
    return plan


def _plan_json(plan: StagePlan[Any]) -> dict[str, Any]:
    return {"stage": plan.stage, "metadata": plan.metadata, "derived": to_json(plan.derived)}


def _divide_by_mark(keys: Sequence[str], marks: Sequence[str]) -> list[list[str]]:
    """The keys of the objects named by each mark in turn, then those of the outcomes of shards, at last all others."""
    by_kind: dict[str, list[str]] = {kind: [] for kind in (*marks, "outcomes", "others")}
    for key in keys:
        _, _, folder, name = ("///" + key).rsplit("/", 3)
        kind = "outcomes" if folder == OUTCOMES and name.endswith(".json") else "others"
        by_kind[name if name in marks else kind].append(key)
    return list(by_kind.values())


def _differences(stage: str, metadata: dict[str, Any], stored: StagePlan[Any]) -> str:
    """The differences between metadata and a stored plan, by name and with both values."""
    new = _flatten({"stage": stage, **json.loads(json.dumps(metadata))})
    old = _flatten({"stage": stored.stage, **stored.metadata})
    names = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    shown = [f"{name} is {_short(new.get(name))}, was {_short(old.get(name))}" for name in names[:4]]
    return "; ".join(shown) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of a JSON tree by their paths; a list of objects is a subtree, a list of values is a leaf."""
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
