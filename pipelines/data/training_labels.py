"""The labelled documents of a corpus: read, checked and divided into splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data.feature_store import FeatureShards
from pipelines.data.readers import Shard, is_unicode, read_shard
from pipelines.storage.stage_plan import fingerprint
from spin.errors import UserError
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import Label, LabelSpace, Targets
from spin.labels.splits import SPLITS, assign_split, rows_in_split
from spin.labels.training_data import TrainingData
from spin.settings import DataSettings, Settings


@dataclass(frozen=True)
class Labelled:
    """What training needs to know of every document, in plan order; the texts stay in their files."""

    ids: list[str]
    labels: list[Label]
    splits: list[str | None]
    shard_rows: list[int]


def read_labelled(shards: Sequence[Shard], data: DataSettings) -> Labelled:
    """Read every label once, before any work is spent on a corpus that cannot be trained on.

    An empty list is a label: a document of no class. Raises UserError, naming file and row, for the first id or label
    that is null, list of labels with what is no name, text that is not text or empty, lone surrogates in any of them,
    an id seen before or a split that is none.
    """
    found = Labelled([], [], [], [])
    seen: set[str] = set()
    for shard in shards:
        documents = read_shard(shard, data, labelled=True)
        for row, (id, text, label, split) in enumerate(
            zip(documents.ids, documents.texts, documents.labels, documents.splits, strict=True)
        ):
            wrong = documents.malformed.get(row) or _mistake(id, text, label, split, data, seen)
            if wrong:
                first = 0 if shard.by_bytes else shard.start
                after = f" after byte {shard.start}" if shard.by_bytes and shard.start else ""
                raise UserError(f"{shard.uri} row {first + row}{after}: {wrong}")
            assert id is not None
            assert label is not None
            seen.add(id)
            found.ids.append(id)
            found.labels.append(label)
            found.splits.append(split)
        found.shard_rows.append(len(documents))
    return found


def _mistake(
    id: str | None, text: Any, label: Label | None, split: str | None, data: DataSettings, seen: set[str]
) -> str | None:
    if not id:
        return f"the id ({data.id}) is null; expected a unique one"
    labels = label if isinstance(label, list) else [label]
    for name, value in ((data.id, id), (data.text, text), *((data.label, label) for label in labels)):
        if isinstance(value, str) and not is_unicode(value):
            return f"'{name}' holds lone surrogates, expected Unicode"
    if id in seen:
        return f"the id '{id}' was seen before; expected unique ids in '{data.id}'"
    if not isinstance(text, str) or not text.strip():
        return f"the text ({data.text}) is {'empty' if isinstance(text, str) else 'not text'}; leave the row out"
    if label is None:
        return f"the label ({data.label}) is null; label the row or leave it out"
    if data.split and split not in SPLITS:
        return f"the split ({data.split}) is {split!r}; expected train, valid or test"
    return None


@dataclass(frozen=True)
class Labels:
    """The n documents of a feature store, in its order."""

    ids: list[str]
    label_space: LabelSpace
    y: Targets
    """class indices (n,), or in a multi-label task which classes each document has (n, K)"""
    splits: list[str]

    @classmethod
    def of(cls, features: FeatureShards, settings: Settings, frozen: Collection[str] = ()) -> Labels:
        """Read the labels; ids of the frozen evaluation set are test rows whatever their hash or split says.

        Raises UserError for classes that cannot be learned, as `LabelSpace.of` does.
        """
        table = features.table(["id", "label", "split"])
        ids, labels, given = (table[name].to_pylist() for name in ("id", "label", "split"))
        splits = split_all(ids, given, settings, frozen=frozenset(frozen))
        label_space = LabelSpace.of(labels, splits)
        return cls(ids, label_space, label_space.index(labels), splits)

    @property
    def classes(self) -> list[str]:
        """The names of the K classes, in the order of `y`."""
        return list(self.label_space.classes)

    @property
    def digest(self) -> str:
        return fingerprint([self.ids, self.classes, self.label_space.multilabel, self.y.tolist(), self.splits])

    def folds(self, seed: int) -> tuple[Fold, ...]:
        """On which rows fits are made and judged: the splits, or cross-validation where labels are few."""
        return make_folds(
            self.label_space, self.y, rows_in_split(self.splits, "train"), rows_in_split(self.splits, "valid"), seed
        )

    def training_data(self, settings: Settings, device: str) -> TrainingData:
        """What probes and heads are fitted on and judged by, on a device."""
        return TrainingData.from_splits(
            self.y,
            self.splits,
            self.label_space,
            metric=settings.metric,
            class_weights=settings.probe.class_weights,
            seed=settings.seed,
            device=device,
        )

    def part(self, split: str) -> tuple[NDArray[np.int64], Targets]:
        """Row numbers and targets of a split."""
        rows = rows_in_split(self.splits, split)
        return rows, self.y[rows]


def split_all(
    ids: Sequence[str], given: Sequence[str | None], settings: Settings, *, frozen: Collection[str]
) -> list[str]:
    """The split of every document: test if frozen, else as its column says, else by the hash of its id."""
    data = settings.data
    return [
        "test" if id in frozen else (named or assign_split(id, settings.seed, data.valid_fraction, data.test_fraction))
        for id, named in zip(ids, given, strict=True)
    ]
