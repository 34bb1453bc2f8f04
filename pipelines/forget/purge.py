"""Delete from a store what reveals the documents of a training, once it is old enough: `spin purge`.

Trained models stay, as do the records of the train stage by which `spin run` sees that a model is finished and
registered.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipelines.data.feature_pool import POOL, USES
from pipelines.data.spool import SPOOL
from pipelines.storage.lease import Lease
from pipelines.storage.local_files import is_temporary
from pipelines.storage.object_store import Store, StoredObject
from pipelines.storage.shard_log import ATTEMPTS
from pipelines.storage.stage_plan import MANIFEST, OUTCOMES, PLAN, delete_objects
from pipelines.training.suspects import SUSPECTS
from spin.errors import UserError
from spin.fitted.persistence import CONFIG
from spin.settings import Settings

_log = logging.getLogger(__name__)
FEATURES, KEPT, PROBES, MODEL = "features", "kept", "probes", "model"
"""folders of the stages in a store"""
HEADS = f"{MODEL}/*/heads"
"""the heads that the search of a finished training has fitted; those of the model are among the files of the model"""
UNUSED = f"{FEATURES}/{POOL}/*/parts"
"""the features of texts that are in the corpus no longer"""
STAGE_FOLDERS = (MODEL, KEPT, PROBES, FEATURES)
"""folders in the order in which they are held; a training that holds the first takes the second later"""


@dataclass(frozen=True)
class StoredWork:
    """Objects that a stage has stored and that reveal something of documents."""

    name: str
    """of the folder or file in the store, for messages"""
    stage: str
    """folder of the stage, whose lease protects them"""
    keys: tuple[str, ...]
    """in the store"""
    bytes: int
    """size of all"""
    age: timedelta
    """since the newest object of the stage changed, by the clock of the store"""


@dataclass(frozen=True)
class PurgePlan:
    """The plan of a purge: what it deletes, and what is too young for it."""

    delete: tuple[StoredWork, ...]
    leave: tuple[StoredWork, ...]
    """too young"""

    @property
    def objects(self) -> int:
        """Number of objects that are deleted."""
        return sum(len(work.keys) for work in self.delete)

    @property
    def bytes(self) -> int:
        """Size of what is deleted."""
        return sum(work.bytes for work in self.delete)


def run_purge(settings: Settings, *, older_than: timedelta | None = None, dry_run: bool = False) -> PurgePlan:
    """Delete what has not changed for `older_than`, by default `store.retention`, and return what was done.

    The leases of all stages are held meanwhile, since each stage reads what the ones before it have stored. With
    `dry_run`, nothing is changed and no lease is taken. Raises UserError if neither age is given, HeldError, before
    anything is deleted, if a stage is at work.
    """
    age, store = _choose_age(settings, older_than), Store.of(settings)
    plan = plan_purge(store, now=datetime.now(UTC), age=age)
    if dry_run or not plan.delete:
        return plan
    with ExitStack() as stack:
        # guarded by test_a_purge_deletes_nothing_while_any_stage_is_at_work; broken by:
        #   leases = {work.stage: stack.enter_context(Lease(store / work.stage)) for work in plan.delete[:1]}
        leases = {stage: stack.enter_context(Lease(store / stage)) for stage in STAGE_FOLDERS}
        plan = plan_purge(store, now=datetime.now(UTC), age=age)  # a stage may have run before its lease was held
        for work in plan.delete:
            # CONFIG marks fitted heads as complete
            delete_objects(store, work.keys, leases[work.stage], marks=(MANIFEST, PLAN, CONFIG))
    return plan


def plan_purge(store: Store, *, now: datetime, age: timedelta) -> PurgePlan:
    """Plan a purge: it deletes the work of stages that have not changed for `age`."""
    used, unused = _divide_features(store)
    old = [shard for shard in unused if _age(shard.used, now) >= age]
    young = [shard for shard in unused if _age(shard.used, now) < age]
    found = (
        _describe(FEATURES, FEATURES, used, now),
        *(_describe_unused(shards, now) for shards in (old, young)),
        # the extract stage writes the spool, and the end of a training deletes it
        _describe(SPOOL, FEATURES, list_stage(store, SPOOL), now),
        _describe(KEPT, KEPT, list_stage(store, KEPT), now),
        _describe(PROBES, PROBES, list_stage(store, PROBES), now),
        _find_model_work(store, now),
        _describe(SUSPECTS, MODEL, store.list_objects(SUSPECTS), now),  # the train stage writes them
    )
    work = [each for each in found if each is not None]
    return PurgePlan(
        delete=tuple(each for each in work if each.age >= age), leave=tuple(each for each in work if each.age < age)
    )


@dataclass(frozen=True)
class _UnusedShard:
    """A shard of a pool that the last plan does not name."""

    objects: tuple[StoredObject, ...]
    used: float
    """when it was last used, by the clock of the store, in seconds since 1970"""


def _divide_features(store: Store) -> tuple[list[StoredObject], list[_UnusedShard]]:
    """The objects of the extract stage that its last plan uses, or that belong to no shard, and the other shards."""
    rest: list[StoredObject] = []
    shards: dict[tuple[str, str], list[StoredObject]] = {}
    uses: list[tuple[float, str, frozenset[str]]] = []
    for item in list_stage(store, FEATURES):
        folder, _, path = item.key.removeprefix(f"{FEATURES}/{POOL}/").partition("/")
        kind, name = path.partition("/")[0], item.key.rpartition("/")[2]
        if kind in (OUTCOMES, ATTEMPTS) and not is_temporary(name):
            shards.setdefault((folder, name.partition(".")[0].partition("-")[0]), []).append(item)
            continue
        rest.append(item)
        if kind == USES and not is_temporary(name) and (stored := store.read_json(item.key)) is not None:
            uses.append((item.modified, folder, frozenset(stored["shards"])))
    last, current = _read_planned(store)
    unused: list[_UnusedShard] = []
    for (folder, name), objects in shards.items():
        if folder == last and name in current:
            rest += objects
        else:
            planned = [time for time, of, names in uses if of == folder and name in names]
            unused.append(_UnusedShard(tuple(objects), max([*planned, *(item.modified for item in objects)])))
    return rest, unused


def _read_planned(store: Store) -> tuple[str, frozenset[str]]:
    """The pool of the last plan, and its shards that the plan names; none if the plan is missing or damaged."""
    try:
        plan = store.read_json(f"{FEATURES}/{PLAN}")["derived"]
        return str(plan["form"]), frozenset([*plan["known"], *(shard["key"] for shard in plan["unread"])])
    except (KeyError, TypeError, ValueError):
        _log.debug("the plan of the extraction cannot be read", exc_info=True)
        return "", frozenset()


def _describe_unused(shards: Sequence[_UnusedShard], now: datetime) -> StoredWork | None:
    """The work that consists of shards, as old as the use of the one that was used last; None without shards."""
    if not shards:
        return None
    objects = [item for shard in shards for item in shard.objects]
    keys, age = tuple(item.key for item in objects), min(_age(shard.used, now) for shard in shards)
    return StoredWork(UNUSED, FEATURES, keys, sum(item.size for item in objects), age)


def _age(modified: float, now: datetime) -> timedelta:
    """The time since a change by the clock of the store, which may be ahead."""
    return max(timedelta(0), now - datetime.fromtimestamp(modified, UTC))


def _choose_age(settings: Settings, older_than: timedelta | None) -> timedelta:
    if older_than is not None:
        return older_than
    if settings.store.retention is None:
        raise UserError(
            "the age of what is deleted is not given: expected a number of days in store.retention or --older-than"
        )
    return timedelta(days=settings.store.retention)


def _find_model_work(store: Store, now: datetime) -> StoredWork | None:
    """The files of the train stage besides the model; all of them if it has not finished.

    The files of the model are those of the registered version. The manifest and the records of registrations keep
    `spin run` from training and registering it again. None if there is nothing to delete.
    """
    objects = list_stage(store, MODEL)
    if not any(item.key == f"{MODEL}/{MANIFEST}" for item in objects):
        return _describe(MODEL, MODEL, objects, now)
    heads = [item for item in objects if _is_of_search(item)]
    return _describe(HEADS, MODEL, heads, now, objects)


def list_stage(store: Store, stage: str) -> list[StoredObject]:
    """The objects of a stage, with what killed writes have left behind, and without its lease."""
    return [item for item in store.list_all(stage) if not item.key.startswith(f"{stage}/_lease/")]


def _is_of_search(item: StoredObject) -> bool:
    """Whether an object of the train stage is in a folder `model/PLAN/heads`, or a temporary file."""
    parts = item.key.split("/")
    return parts[2:3] == ["heads"] or is_temporary(parts[-1])


def _describe(
    name: str, stage: str, objects: Sequence[StoredObject], now: datetime, of_stage: Sequence[StoredObject] = ()
) -> StoredWork | None:
    """The work that consists of some objects, as old as the newest of them, or of `of_stage`; None without objects."""
    if not objects:
        return None
    newest = max(item.modified for item in of_stage or objects)
    return StoredWork(
        name=name,
        stage=stage,
        keys=tuple(item.key for item in objects),
        bytes=sum(item.size for item in objects),
        age=_age(newest, now),
    )
