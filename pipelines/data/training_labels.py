"""The labels of the documents of a feature store, divided into splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.arrow_strings import ArrowStrings, shared_values
from pipelines.data.feature_store import FeatureShards
from spin.arrays import Hashes, Rows
from spin.labels.label_space import Label, LabelSpace, Targets, divide_rare_classes
from spin.labels.split_groups import hash_text
from spin.labels.splits import DROPPED, SPLITS, assign_split, rows_in_split
from spin.labels.training_data import TrainingData
from spin.pages.number_format import counted
from spin.settings import DataSettings, Settings

_HASHED = 10_000
"""documents whose ids are hashed at once"""
_DIGESTS = 100_000
"""digests that are kept of the documents: those of all of so few, and of a sample of more"""


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
    """Near-identical texts that would have been on both sides of a split, and groups that are."""

    dropped: int = 0
    """documents to train or validate that are left out: a near-identical text tests, or is frozen"""
    test_groups: int = 0
    """test documents with their group among those that train or validate"""

    def notes(self, test: int, data: DataSettings) -> list[str]:
        """A sentence for each number that is not zero; `test` is the number of test documents."""
        notes = []
        if self.dropped:
            documents = counted(self.dropped, "document is", "documents are")
            notes.append(
                f"{documents} left out of training: a near-identical text is among the test documents, or in the "
                "model's frozen evaluation set"
            )
        if data.group and self.test_groups:
            share = f"{self.test_groups:,} of {counted(test, 'test document')} ({100 * self.test_groups / test:.1f} %)"
            notes.append(
                f"warning: {share} have the same {data.group} among those that trained, so the figures may be too good"
            )
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
    groups: Hashes
    """(n,) of the documents, which cross-validation does not divide"""
    overlap: SplitOverlap = SplitOverlap()
    extracted: Rows | None = None
    """the rows with all feature columns, from which samples are drawn; None if all rows have them"""
    digests: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    """(m,) ascending: a digest of text, label and split of each document, without its id; the least ones of many"""

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
        names = ["id", "label", "split", "text_hash", "group"]
        columns = dict(zip(names, features.documents(names).columns, strict=True))  # each is given up once it is read
        ids = ArrowStrings(columns.pop("id"))
        labels, given = (shared_values(columns.pop(name)) for name in ("label", "split"))
        text_hashes, groups = (columns.pop(name).to_numpy() for name in ("text_hash", "group"))
        splits = split_all(ids, labels, given, text_hashes, groups, settings, frozen=frozen)
        label_space = LabelSpace.of(labels, splits, groups)
        y, overlap = label_space.index(labels), _find_overlap(splits, groups)
        digests = _digest_documents(text_hashes, y, splits, label_space)
        pa.default_memory_pool().release_unused()  # Arrow would keep the memory of the columns
        return cls(ids, label_space, y, splits, groups, overlap, features.extracted, digests)

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
        total.update(np.ascontiguousarray(self.groups).data)
        return total.hexdigest()

    def training_data(self, settings: Settings) -> TrainingData:
        """The data for fitting and judging probes and heads.

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
            documents=settings.search.documents,
            sampled_from=self.extracted,
        )

    def part(self, split: str) -> tuple[NDArray[np.int64], Targets]:
        """Row numbers (m,) and targets of a split."""
        rows = rows_in_split(self.splits, split)
        return rows, self.y[rows]


@dataclass(frozen=True)
class Sample:
    """The documents that rank neurons and make all choices, apart from the others: what workers get to do so."""

    data: TrainingData
    """whose rows are 0 to m - 1"""
    rows: Rows
    """(m,) where these stand in the feature store, ascending"""

    @classmethod
    def of(cls, data: TrainingData) -> Sample:
        """The documents in the folds of training data."""
        return cls(data.of_folds(), data.rows)


def split_all(
    ids: Sequence[str],
    labels: Sequence[Label],
    given: Sequence[str | None],
    text_hashes: Hashes,
    groups: Hashes,
    settings: Settings,
    *,
    frozen: FrozenDocuments,
) -> list[str]:
    """The split of every document: from its split column, else by the hash of its group.

    A document whose id is frozen tests. Any other whose text is frozen, or tests under another id, is `DROPPED` if it
    would train or validate. The splits are the same before and after the test documents are frozen.
    Without a split column, a rare class that the hash left without documents to train or to validate gets some; see
    `divide_rare_classes`.
    """
    data = settings.data
    splits = [
        "test"
        if id in frozen.ids
        else named or assign_split(group, settings.seed, data.valid_fraction, data.test_fraction)
        for id, named, group in zip(ids, given, map(int, groups), strict=True)
    ]
    known = np.isin(text_hashes, np.fromiter(frozen.text_hashes, np.uint64))
    known |= np.isin(text_hashes, text_hashes[rows_in_split(splits, "test")])
    for row in np.flatnonzero(known):
        if splits[row] != "test":
            splits[row] = DROPPED
    return splits if any(given) else divide_rare_classes(labels, splits, groups)


def _digest_documents(text_hashes: Hashes, y: Targets, splits: Sequence[str], label_space: LabelSpace) -> Hashes:
    """The least `_DIGESTS` digests of documents, ascending, by which two corpora are compared (Broder 1997)."""
    digests = text_hashes.copy()
    for split in SPLITS:
        digests[rows_in_split(splits, split)] ^= _hash_name(split)
    for index, name in enumerate(label_space.classes):
        digests[y[:, index] if y.ndim == 2 else y == index] ^= _hash_name(name)
    return np.unique(digests)[:_DIGESTS]


def _hash_name(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))


def share_of_changes(ours: Hashes, theirs: Hashes) -> float:
    """The share of the documents of two corpora together that only one of them has, by their digests.

    One whose label was corrected counts as one that went and one that came. The share is exact for corpora of at most
    `_DIGESTS` documents, and else an estimate (MinHash, Broder 1997).
    """
    least = np.union1d(ours, theirs)[:_DIGESTS]
    return 1 - float((np.isin(least, ours) & np.isin(least, theirs)).mean()) if len(least) else 0.0


def _find_overlap(splits: Sequence[str], groups: Hashes) -> SplitOverlap:
    """Count what the splits leave out, and the groups that they have in common."""
    trained, tested = rows_in_split(splits, "train", "valid"), rows_in_split(splits, "test")
    return SplitOverlap(splits.count(DROPPED), _count_shared(groups[tested], groups[trained]))


def _count_shared(hashes: Hashes, others: Hashes) -> int:
    """Count the hashes that are among others, which are sorted in place: `np.isin` takes six times the memory."""
    others.sort()
    places = np.searchsorted(others, hashes)
    within = places < len(others)
    return int((others[places[within]] == hashes[within]).sum())
