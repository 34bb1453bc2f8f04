"""The labelled documents of a corpus: read, checked and divided into splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data.feature_store import FeatureShards
from pipelines.data.readers import ALL_COLUMNS, TEXTS, read_shard
from pipelines.data.shards import Shard
from pipelines.data.text_values import is_unicode
from pipelines.storage.stage_plan import fingerprint
from spin.errors import UserError
from spin.labels.cross_validation import Fold, make_folds
from spin.labels.label_space import Label, LabelSpace, Targets
from spin.labels.splits import SPLITS, assign_split, rows_in_split
from spin.labels.training_data import TrainingData
from spin.settings import DataSettings, Settings


@dataclass(frozen=True)
class Labelled:
    """The checked documents of a labelled corpus, in plan order."""

    ids: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    """None where the settings name no split column"""
    texts: list[str] = field(default_factory=list)
    """of the first documents, as many as requested"""
    shard_rows: list[int] = field(default_factory=list)
    """number of documents in each shard"""


def read_labelled(shards: Sequence[Shard], data: DataSettings, *, keep_texts: int | None = 0) -> Labelled:
    """Read and check a labelled corpus once, before any work is spent on one that cannot be trained on.

    `keep_texts` is the number of texts to keep, counted from the first document; None keeps all. An empty list is a
    label: the document belongs to no class. Raises UserError, naming file and row, for the first of: an id or label
    that is null, a list of labels with an element that is not a name, a text that is empty or not a string, lone
    surrogates in any of these, an id that occurs twice, a split other than train, valid and test.
    """
    corpus = Labelled()
    seen: set[str] = set()
    for shard in shards:
        documents = read_shard(shard, data, columns=ALL_COLUMNS)
        for row, (id, text, label, split) in enumerate(
            zip(documents.ids, documents.texts, documents.labels, documents.splits, strict=True)
        ):
            mistake = documents.malformed.get(row) or _find_mistake(id, text, label, split, data, seen)
            if mistake:
                first = 0 if shard.by_bytes else shard.start
                after = f" after byte {shard.start}" if shard.by_bytes and shard.start else ""
                raise UserError(f"{shard.uri} row {first + row}{after}: {mistake}")
            assert id is not None
            assert label is not None
            seen.add(id)
            corpus.ids.append(id)
            corpus.labels.append(label)
            corpus.splits.append(split)
            if keep_texts is None or len(corpus.texts) < keep_texts:
                corpus.texts.append(text)
        corpus.shard_rows.append(len(documents))
    return corpus


@dataclass(frozen=True)
class Corpus:
    """The texts of a corpus that `read_labelled` has checked. A stage opens one and passes it on."""

    shards: tuple[Shard, ...]
    """of the corpus, in plan order"""
    data: DataSettings

    @cached_property
    def texts(self) -> list[str]:
        """All texts in plan order. They are read at first use, from Parquet without the other columns, and cached."""
        return [text for shard in self.shards for text in read_shard(shard, self.data, columns=TEXTS).texts]


def _find_mistake(
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
    """Targets and splits of the n documents of a feature store, in its order."""

    ids: list[str]
    label_space: LabelSpace
    y: Targets
    """class indices (n,), or in a multi-label task the classes of each document (n, K)"""
    splits: list[str]
    """train, valid or test"""

    @classmethod
    def of(cls, features: FeatureShards, settings: Settings, frozen: Collection[str] = ()) -> Labels:
        """Read the labels; the ids in `frozen`, those of a registered evaluation set, are always test rows.

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
        """sha256 of ids, classes, targets and splits."""
        return fingerprint([self.ids, self.classes, self.label_space.multilabel, self.y.tolist(), self.splits])

    def folds(self, seed: int) -> tuple[Fold, ...]:
        """The rows of training and validation: the splits, or cross-validation if there are few labels."""
        return make_folds(
            self.label_space, self.y, rows_in_split(self.splits, "train"), rows_in_split(self.splits, "valid"), seed
        )

    def training_data(self, settings: Settings, device: str) -> TrainingData:
        """The data for fitting and judging probes and heads, on a device."""
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
        """Row numbers (m,) and targets of a split."""
        rows = rows_in_split(self.splits, split)
        return rows, self.y[rows]


def split_all(
    ids: Sequence[str], given: Sequence[str | None], settings: Settings, *, frozen: Collection[str]
) -> list[str]:
    """The split of every document: test if frozen, else that of its split column, else by the hash of its id."""
    data = settings.data
    return [
        "test" if id in frozen else (named or assign_split(id, settings.seed, data.valid_fraction, data.test_fraction))
        for id, named in zip(ids, given, strict=True)
    ]
