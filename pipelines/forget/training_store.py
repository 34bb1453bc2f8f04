"""Forget documents in the store of a training, which holds features of all documents of a corpus."""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import ExitStack

import pyarrow.parquet as pq

from pipelines.data.feature_store import LABELS
from pipelines.data.forgotten_ids import ForgottenIds, add_forgotten
from pipelines.data.spool import SPOOL
from pipelines.forget.purge import FEATURES, KEPT, MODEL, STAGE_FOLDERS, list_stage
from pipelines.storage.lease import Lease
from pipelines.storage.local_files import is_temporary
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import PLAN, delete_objects, finished_fingerprint
from pipelines.training.neurons import NEURONS, without_named_documents
from pipelines.training.suspects import SUSPECTS
from spin.settings import Settings

_FILES = (SUSPECTS, "report.json")


def forget_in_store(settings: Settings, ids: Collection[str], *, dry_run: bool = False) -> bool:
    """Empty the store of a training if it holds one of some documents, and return whether it does.

    Features follow from all documents of a shard, and heads from all features, so nothing of the training is kept but
    the versions that it has registered; the next training begins anew. Its extraction refuses a corpus that still holds
    one of the documents. Values whose documents are not known may be of any: those of an extraction that has not
    finished, those that outlive the features, and second passes over an earlier corpus. With `dry_run`, nothing is
    changed. Raises HeldError while a training is at work in the store.
    """
    store = Store.of(settings)
    if dry_run:
        return _holds(store, ForgottenIds.of(ids))
    forgotten = add_forgotten(store, ids)
    if not any(store.list(name) for name in STAGE_FOLDERS):  # not even a lease of a training that has just begun
        return False
    with ExitStack() as leases:
        held = {name: leases.enter_context(Lease(store / name)) for name in STAGE_FOLDERS}
        if not _holds(store, forgotten):
            return False
        delete_objects(store, _FILES, held[MODEL])
        delete_objects(store, [item.key for item in list_stage(store, SPOOL)], held[FEATURES])
        for name in STAGE_FOLDERS:  # the features come last, by which the next call sees what this one has left
            delete_objects(store, [item.key for item in list_stage(store, name)], held[name])
    return True


def _holds(store: Store, forgotten: ForgottenIds) -> bool:
    """Whether the store of a training holds a document, or may hold it."""
    suspects = store.read(SUSPECTS)
    if suspects is not None and _find_in(suspects, forgotten):
        return True
    neurons = store.read(f"{MODEL}/{NEURONS}")
    if neurons is not None and without_named_documents(neurons, forgotten) is not None:
        return True
    keys = [item.key for name in STAGE_FOLDERS for item in list_stage(store, name)]
    values = [key for key in keys if not key.startswith(f"{MODEL}/") or "/heads/" in key]
    current = finished_fingerprint(store / FEATURES)
    if values and current is None:
        return True
    passes = {"/".join(key.split("/")[:2]) for key in values if key.startswith(f"{KEPT}/")}
    if any(_features_of(store / folder) != current for folder in passes):
        return True
    spooled = [item.key for item in list_stage(store, SPOOL)]
    if any(is_temporary(key.rpartition("/")[2]) for key in spooled):  # a killed write has left a part of a part
        return True
    documents = (store.read(key) for key in [*spooled, *values] if key in spooled or key.endswith(f"/{LABELS}"))
    return any(_find_in(data, forgotten) for data in documents if data is not None)


def _features_of(kept: Store) -> str | None:
    """The fingerprint of the extraction that a second pass continues; None if its plan is missing or damaged."""
    try:
        return str(kept.read_json(PLAN)["metadata"]["features"])
    except (KeyError, TypeError, ValueError):
        return None


def _find_in(parquet: bytes, forgotten: ForgottenIds) -> bool:
    return bool(forgotten.find(pq.read_table(io.BytesIO(parquet), columns=["id"])["id"].to_pylist()))
