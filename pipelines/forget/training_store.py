"""Forget documents in the store of a training, which holds features of all documents of a corpus."""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import ExitStack

import pyarrow.parquet as pq

from pipelines.data.feature_store import DOCUMENTS
from pipelines.data.forgotten_ids import ForgottenIds, add_forgotten
from pipelines.forget.neuron_documents import without_top_documents
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import clear_stage, finished_fingerprint
from pipelines.training.neurons import NEURONS
from pipelines.training.suspects import SUSPECTS
from pipelines.training.workflow import STAGES
from spin.settings import Settings

_FOLDERS = (*STAGES.values(), "kept")
"""folders of the stages in order, and of the second pass of an extraction, whose lease is taken within the last"""
_FILES = (SUSPECTS, "report.json")


def forget_in_store(settings: Settings, ids: Collection[str], *, dry_run: bool = False) -> bool:
    """Empty the store of a training if it holds one of some documents, and return whether it does.

    Features follow from all documents of a shard, and heads from all features, so nothing of the training is kept but
    the versions that it has registered; the next training begins anew. Its extraction refuses a corpus that still holds
    one of the documents. An extraction that has not finished may hold any of them. With `dry_run`, nothing is changed.
    Raises HeldError while a training is at work in the store.
    """
    store = Store(settings.store.uri)
    if dry_run:
        return _holds(store, ForgottenIds.of(ids))
    forgotten = add_forgotten(store, ids)
    if not any(store.list(name) for name in _FOLDERS):
        return False
    with ExitStack() as leases:
        held = {name: leases.enter_context(Lease(store / name)) for name in _FOLDERS}
        if not _holds(store, forgotten):
            return False
        store.delete_many(_FILES)
        for name in reversed(_FOLDERS):  # the features come last: they show the next call that this one has not ended
            clear_stage(store / name, held[name])
            store.delete_many([item.key for item in store.list_temporary(name)])
    return True


def _holds(store: Store, forgotten: ForgottenIds) -> bool:
    """Whether the store of a training holds a document, or may hold it."""
    suspects = store.read(SUSPECTS)
    if suspects is not None and _find_in(suspects, forgotten):
        return True
    neurons = store.read(f"{STAGES['train']}/{NEURONS}")
    if neurons is not None and without_top_documents(neurons, forgotten) is not None:
        return True
    keys = [key for key in store.list(STAGES["extract"]) if "/_lease/" not in key]
    if keys and finished_fingerprint(store / STAGES["extract"]) is None:
        return True
    documents = (store.read(key) for key in keys if key.endswith(f".{DOCUMENTS}"))
    return any(_find_in(data, forgotten) for data in documents if data is not None)


def _find_in(parquet: bytes, forgotten: ForgottenIds) -> bool:
    return bool(forgotten.find(pq.read_table(io.BytesIO(parquet), columns=["id"])["id"].to_pylist()))
