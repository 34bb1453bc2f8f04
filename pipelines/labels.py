"""The labels that probes and heads are fitted on: classes by index, and which rows train, choose and test."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.features import FeatureShards
from pipelines.manifest import fingerprint
from spin.settings import Settings
from spin.split import index_classes, rows_of, split_of


@dataclass(frozen=True)
class Labels:
    """The n documents of a feature store, in its order."""

    ids: list[str]
    classes: list[str]
    y: NDArray[np.int64]
    """(n,) class indices"""
    splits: list[str]

    @classmethod
    def of(cls, features: FeatureShards, settings: Settings, frozen: Collection[str] = ()) -> Labels:
        """Read the labels; ids of the frozen evaluation set are test rows whatever their hash or split says."""
        table = features.table(["id", "label", "split"])
        ids, labels, given = (table[name].to_pylist() for name in ("id", "label", "split"))
        splits = split_all(ids, given, settings, frozen=frozenset(frozen))
        classes, y = index_classes(labels, splits)
        return cls(ids, classes, y, splits)

    @property
    def digest(self) -> str:
        return fingerprint([self.ids, self.classes, self.y.tolist(), self.splits])

    def part(self, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row numbers and class indices of a split."""
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
