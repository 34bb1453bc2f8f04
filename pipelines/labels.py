"""The labels that probes and heads are fitted on: classes of documents, and which rows train, choose and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.features import FeatureShards
from pipelines.manifest import fingerprint
from spin.folds import Fold, folds_of
from spin.settings import Settings
from spin.split import rows_of, split_of
from spin.task import Targets, Task


@dataclass(frozen=True)
class Labels:
    """The n documents of a feature store, in its order."""

    ids: list[str]
    task: Task
    y: Targets
    """class indices (n,), or in a multi-label task which classes each document has (n, K)"""
    splits: list[str]

    @classmethod
    def of(cls, features: FeatureShards, settings: Settings, frozen: Collection[str] = ()) -> Labels:
        """Read the labels; ids of the frozen evaluation set are test rows whatever their hash or split says.

        Raises UserError for classes that cannot be learned, as `Task.of` does.
        """
        table = features.table(["id", "label", "split"])
        ids, labels, given = (table[name].to_pylist() for name in ("id", "label", "split"))
        splits = split_all(ids, given, settings, frozen=frozenset(frozen))
        task = Task.of(labels, splits)
        return cls(ids, task, task.index(labels), splits)

    @property
    def classes(self) -> list[str]:
        """The names of the K classes, in the order of `y`."""
        return list(self.task.classes)

    @property
    def digest(self) -> str:
        return fingerprint([self.ids, self.classes, self.task.multilabel, self.y.tolist(), self.splits])

    def folds(self, seed: int) -> tuple[Fold, ...]:
        """On which rows fits are made and judged: the splits, or cross-validation where labels are few."""
        return folds_of(self.task, self.y, rows_of(self.splits, "train"), rows_of(self.splits, "valid"), seed)

    def part(self, split: str) -> tuple[NDArray[np.int64], Targets]:
        """Row numbers and targets of a split."""
        rows = rows_of(self.splits, split)
        return rows, self.y[rows]


def split_all(
    ids: Sequence[str], given: Sequence[str | None], settings: Settings, *, frozen: Collection[str]
) -> list[str]:
    """The split of every document: test if frozen, else as its column says, else by the hash of its id."""
    data = settings.data
    return [
        "test" if id in frozen else (named or split_of(id, settings.seed, data.valid_fraction, data.test_fraction))
        for id, named in zip(ids, given, strict=True)
    ]
