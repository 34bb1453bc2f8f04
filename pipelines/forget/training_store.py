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
from pipelines.storage.stage_plan import clear_stage
from pipelines.training.neurons import NEURONS
from pipelines.training.suspects import SUSPECTS
from pipelines.training.workflow import STAGES
from spin.settings import Settings

_FOLDERS = ("kept", *STAGES.values())
"""folders of the stages, and of the second pass of an extraction"""
_FILES = (SUSPECTS, "report.json")


def forget_in_store(settings: Settings, ids: Collection[str], *, dry_run: bool = False) -> bool:
    """Empty the store of a training if it holds one of some documents, and return whether it does.

    Features follow from all documents of a shard, and heads from all features, so nothing of the training is kept but
    the versions that it has registered; the next training begins anew. Extraction refuses a corpus that still holds
    one of the documents. With `dry_run`, nothing is changed. Raises HeldError while a training is at work in the store.
    """
    store = Store(settings.store)
    forgotten = ForgottenIds.of(ids) if dry_run else add_forgotten(store, ids)
    if not _holds(store, forgotten):
        return False
    if not dry_run:
        with ExitStack() as leases:
            held = [(store / name, leases.enter_context(Lease(store / name))) for name in _FOLDERS]
            store.delete_many(_FILES)
            # the features come last: by them the next call sees that this one has not ended
            for folder, lease in sorted(held, key=lambda pair: pair[0].uri.endswith(STAGES["extract"])):
                clear_stage(folder, lease)
    return True


def _holds(store: Store, forgotten: ForgottenIds) -> bool:
    """Whether the store of a training holds a document."""
    suspects = store.read(SUSPECTS)
    if suspects is not None and _find_in(suspects, forgotten):
        return True
    neurons = store.read(f"{STAGES['train']}/{NEURONS}")
    if neurons is not None and without_top_documents(neurons, forgotten) is not None:
        return True
    for key in store.list(STAGES["extract"]):
        data = store.read(key) if key.endswith(f".{DOCUMENTS}") else None
        if data is not None and _find_in(data, forgotten):
            return True
    return False


def _find_in(parquet: bytes, forgotten: ForgottenIds) -> bool:
    return bool(forgotten.find(pq.read_table(io.BytesIO(parquet), columns=["id"])["id"].to_pylist()))
