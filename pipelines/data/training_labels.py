"""The labelled documents of a corpus: read, checked and divided into splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.arrow_strings import ArrowStrings, shared_values
from pipelines.data.feature_store import FeatureShards
from pipelines.data.readers import ALL_COLUMNS, FIELDS, read_shard
from pipelines.data.shards import Shard
from pipelines.data.text_values import is_unicode
from spin.arrays import Hashes, Rows
from spin.errors import UserError
from spin.labels.label_space import Label, LabelSpace, Targets
from spin.labels.split_groups import choose_group, hash_text
from spin.labels.splits import DROPPED, SPLITS, assign_split, rows_in_split
from spin.labels.training_data import TrainingData
from spin.settings import DataSettings, Settings

_HASHED = 10_000
"""documents whose ids are hashed at once"""


@dataclass(frozen=True)
class Labelled:
    """The checked documents of a labelled corpus, in plan order."""

    ids: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    """None where the settings name no split column"""
    text_hashes: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """see `spin.labels.split_groups`"""
    texts: list[str] = field(default_factory=list)
    """of the first documents, as many as requested"""
    shard_rows: list[int] = field(default_factory=list)
    """number of documents in each shard"""


def read_labelled(shards: Sequence[Shard], data: DataSettings, *, keep_texts: int | None = 0) -> Labelled:
    """Read and check a labelled corpus once, before any work is spent on one that cannot be trained on.

    `keep_texts` is the number of texts to keep, counted from the first document; None keeps all. An empty list is a
    label: the document belongs to no class. Raises UserError, naming file and row, for the first of: an id or label
    that is null, a list of labels with an element that is not a name, a text that is empty or not a string, lone
    surrogates in any of these, an id that occurs twice, a split other than train, valid and test; and for a group
    column that holds nothing but nulls.
    """
    corpus = Labelled()
    seen: set[str] = set()
    grouped = False
    for shard in shards:
        documents = read_shard(shard, data, columns=ALL_COLUMNS)
        for row, (id, text, label, split, group) in enumerate(
            zip(*(getattr(documents, name) for name in FIELDS), strict=True)
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
            corpus.text_hashes.append(hash_text(text))
            corpus.groups.append(choose_group(corpus.text_hashes[-1], group))
            grouped = grouped or group is not None
            if keep_texts is None or len(corpus.texts) < keep_texts:
                corpus.texts.append(text)
        corpus.shard_rows.append(len(documents))
    if data.group and corpus.ids and not grouped:
        raise UserError(
            f"data.group: '{data.group}' is null in all {len(corpus.ids):,} documents; expected a column with values, "
            "or leave the setting out"
        )
    return corpus


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
class FrozenDocuments:
    """The documents of a registered model's evaluation set, which no fit and no choice may see."""

    ids: frozenset[str] = frozenset()
    """of documents that test, whatever their split"""
    text_hashes: frozenset[int] = frozenset()
    """of texts that neither train nor validate under another id"""

    @classmethod
    def of(cls, ids: Iterable[str], texts: Iterable[str]) -> FrozenDocuments:
        """The documents with these ids, and all with near-identical texts."""
        return cls(frozenset(ids), frozenset(hash_text(text) for text in texts))


NOTHING_FROZEN = FrozenDocuments()


@dataclass(frozen=True)
class SplitOverlap:
    """Near-identical texts, and groups, that would have been or are on both sides of a split."""

    dropped: int = 0
    """documents to train or validate that are left out: a near-identical text is in the frozen evaluation set"""
    test_texts: int = 0
    """test documents with a near-identical text among those that train or validate"""
    test_groups: int = 0
    """test documents with their group among those that train or validate"""

    def notes(self, test: int, data: DataSettings) -> list[str]:
        """A sentence for each number that is not zero; `test` is the number of test documents."""
        notes = []
        if self.dropped:
            documents = "1 document is" if self.dropped == 1 else f"{self.dropped:,} documents are"
            notes.append(
                f"{documents} left out of training: a near-identical text is in the model's frozen evaluation set"
            )
        shared = [(self.test_texts, "a near-identical text")]
        if data.group:
            shared.append((self.test_groups, f"the same {data.group}"))
        notes += [
            f"warning: {count:,} of {test:,} test documents ({100 * count / test:.1f} %) have {what} among those that "
            "trained, so the figures may be too good"
            for count, what in shared
            if count
        ]
        return notes


@dataclass(frozen=True)
class Labels:
    """Targets and splits of the n documents of a feature store, in its order."""

    ids: Sequence[str]
    label_space: LabelSpace
    y: Targets
    """class indices (n,), or in a multi-label task the classes of each document (n, K)"""
    splits: list[str]
    """train, valid or test, or `DROPPED`"""
    groups: Hashes | None = None
    """(n,) of the documents, which cross-validation does not divide; None if each stands for itself"""
    overlap: SplitOverlap = SplitOverlap()
    extracted: Rows | None = None
    """the rows with all feature columns, from which samples are drawn; None if all rows have them"""

    @classmethod
    def of(
        cls,
        features: FeatureShards,
        settings: Settings,
        frozen: FrozenDocuments = NOTHING_FROZEN,
    ) -> Labels:
        """Read the labels and divide the documents into splits; see `split_all` for those that are frozen.

        Raises UserError for classes that cannot be learned, as `LabelSpace.of` does.
        """
        table = features.documents(["id", "label", "split", "text_hash", "group"])
        ids = ArrowStrings(table["id"])
        labels, given = (shared_values(table[name]) for name in ("label", "split"))
        text_hashes, groups = (table[name].to_numpy() for name in ("text_hash", "group"))
        splits = split_all(ids, given, text_hashes, groups, settings, frozen=frozen)
        label_space = LabelSpace.of(labels, splits, groups)
        overlap = _find_overlap(splits, text_hashes, groups)
        del table, text_hashes
        pa.default_memory_pool().release_unused()  # Arrow would keep the memory of the table
        return cls(ids, label_space, label_space.index(labels), splits, groups, overlap, features.extracted)

    @property
    def classes(self) -> list[str]:
        """The names of the K classes, in the order of `y`."""
        return list(self.label_space.classes)

    @property
    def digest(self) -> str:
        """sha256 of ids, classes, targets, splits and groups."""
        total = hashlib.sha256(json.dumps([self.classes, self.label_space.multilabel, self.y.shape]).encode())
        for first in range(0, len(self.ids), _HASHED):  # as JSON, all ids at once would take more memory than the ids
            rows = slice(first, first + _HASHED)
            total.update(json.dumps([list(self.ids[rows]), self.splits[rows]]).encode())
        total.update(np.ascontiguousarray(self.y).data)
        total.update(b"" if self.groups is None else np.ascontiguousarray(self.groups).data)
        return total.hexdigest()

    def without_ids(self) -> Labels:
        """The same labels for workers, which know documents by their rows."""
        return replace(self, ids=[])

    def training_data(self, settings: Settings, device: str) -> TrainingData:
        """The data for fitting and judging probes and heads, on a device.

        Its folds hold a sample of the documents if there are more than `search.documents`, or if only a sample has all
        feature columns.
        """
        return TrainingData.from_splits(
            self.y,
            self.splits,
            self.label_space,
            groups=self.groups,
            metric=settings.metric,
            class_weights=settings.probe.class_weights,
            seed=settings.seed,
            device=device,
            documents=settings.search.documents,
            sampled_from=self.extracted,
        )

    def part(self, split: str) -> tuple[NDArray[np.int64], Targets]:
        """Row numbers (m,) and targets of a split."""
        rows = rows_in_split(self.splits, split)
        return rows, self.y[rows]


def split_all(
    ids: Sequence[str],
    given: Sequence[str | None],
    text_hashes: Hashes,
    groups: Hashes,
    settings: Settings,
    *,
    frozen: FrozenDocuments,
) -> list[str]:
    """The split of every document: that of its split column, else by the hash of its group.

    A document whose id is frozen tests. Any other whose text is frozen is `DROPPED` if it would train or validate.
    """
    data = settings.data
    splits = [
        "test"
        if id in frozen.ids
        else named or assign_split(group, settings.seed, data.valid_fraction, data.test_fraction)
        for id, named, group in zip(ids, given, groups.tolist(), strict=True)
    ]
    known = np.isin(text_hashes, np.array(list(frozen.text_hashes), np.uint64))
    for row in np.flatnonzero(known):
        if splits[row] != "test":
            splits[row] = DROPPED
    return splits


def _find_overlap(splits: Sequence[str], text_hashes: Hashes, groups: Hashes) -> SplitOverlap:
    """Count what the splits leave out, and what they have in common."""
    trained = np.array([split in ("train", "valid") for split in splits], bool)
    tested = rows_in_split(splits, "test")
    texts, own_groups = (int(np.isin(keys[tested], keys[trained]).sum()) for keys in (text_hashes, groups))
    return SplitOverlap(splits.count(DROPPED), texts, own_groups)
