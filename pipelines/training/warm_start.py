"""Warm starts: a training whose documents have hardly changed goes on from the results of the one before."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.training_labels import share_of_changes
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import delete_objects
from spin.arrays import Hashes

MOST_CHANGED = 0.1
"""share of the documents that may change, in one training after the other, until all choices are made anew"""
_DOCUMENTS = "documents.npy"
"""key of the digests of the documents among the results of the probe stage"""


@dataclass(frozen=True)
class WarmStart:
    """The results of the probe stage that a training goes on from, and the search of its heads with it."""

    folder: str
    """of the results in the store of the stage"""
    classes: tuple[str, ...]
    """of the coefficients of the probes"""
    changed: float
    """share of the documents that has changed since all choices were made, added up over the trainings"""


@dataclass(frozen=True)
class ProbeDerived:
    """The derived values of the plan of `probe`."""

    form: str
    """of the features: the digest of all that decides what a neuron is"""
    start: WarmStart | None = None
    """None: all choices are made anew"""

    def for_next(self, store: Store, folder: str, classes: Sequence[str], digests: Hashes) -> WarmStart | None:
        """The start that the results of this plan give to a training on other documents, by the digests of these.

        The results are in a folder of the store of the stage, and `classes` are theirs. Where too many documents have
        changed there is no start.
        """
        stored = (store / folder).read(_DOCUMENTS)
        if stored is None:
            return None
        before = 0.0 if self.start is None else self.start.changed
        changed = before + share_of_changes(np.load(io.BytesIO(stored)), digests)
        return WarmStart(folder, tuple(classes), round(changed, 6)) if changed <= MOST_CHANGED else None


@dataclass(frozen=True)
class HeadsDerived:
    """The derived values of the plan of `train`."""

    folder: str | None = None
    """of the heads, in the store of the stage, next to whose choices is searched; None: the search is made in full"""


def delete_start(store: Store, folder: str | None, lease: Lease) -> None:
    """Delete the results that a stage has started from, if any, before its manifest is written.

    They follow from documents that the corpus may not hold any more, so that a later forget could not tell whose they
    are. Raises HeldError if the lease was taken.
    """
    delete_objects(store, [] if folder is None else store.list(folder), lease)


def note_documents(store: Store, digests: Hashes) -> None:
    """Store the digests of the documents of results beside them, for a training that goes on from them."""
    buffer = io.BytesIO()
    np.save(buffer, digests)
    store.write(_DOCUMENTS, buffer.getvalue())
