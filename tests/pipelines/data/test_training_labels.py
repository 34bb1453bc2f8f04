"""Splits of a corpus: near-identical texts stay together, and what is frozen is learned from under no id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.feature_pool import Places
from pipelines.data.feature_store import LABELS, FeatureShards, add_places
from pipelines.data.training_labels import (
    NOTHING_FROZEN,
    FrozenDocuments,
    Labels,
    SplitOverlap,
    _count_shared,
    split_all,
)
from pipelines.storage.object_store import Store
from spin.activations.feature_table import documents_table
from spin.errors import UserError
from spin.labels.split_groups import choose_group, hash_text
from spin.labels.splits import CROSS_VALIDATION_BELOW, DROPPED
from spin.settings import DataSettings, Settings, parse_settings

N = 600


def make_settings(**data: Any) -> Settings:
    return parse_settings({"backbone": {"model": "m"}, "data": {"train": "t", **data}, "store": "s"})


def read_labels(
    folder: Path,
    texts: Sequence[str],
    config: Settings,
    *,
    names: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
    authors: Sequence[str | None] | None = None,
    frozen: FrozenDocuments = NOTHING_FROZEN,
) -> Labels:
    """The labels of a store with these documents, whose ids count from d0, and whose classes alternate by default."""
    n = len(texts)
    hashes = [hash_text(text) for text in texts]
    table = documents_table(
        [f"d{row}" for row in range(n)],
        names or ["ab"[row // 2 % 2] for row in range(n)],
        splits or [None] * n,
        text_hashes=hashes,
        groups=[choose_group(*pair) for pair in zip(hashes, authors or [None] * n, strict=True)],
    )
    pq.write_table(add_places(table, Places.of_sizes([n])), folder / LABELS)
    return Labels.of(FeatureShards(Store(str(folder)), (n,), ("no features",), {}), config, frozen)


def vary(text: str) -> str:
    return f"RT @someone: {text.upper()}!! http://t.co/x"


PAIRS = [text for row in range(N) for text in (f"text number {row}", vary(f"text number {row}"))]
"""each text with a near-identical one after it"""


def test_near_identical_texts_have_one_split(tmp_path: Path) -> None:
    """All three splits are there, and nothing is on two sides."""
    labels = read_labels(tmp_path, PAIRS, make_settings())
    assert labels.splits[::2] == labels.splits[1::2]
    assert set(labels.splits) == {"train", "valid", "test"}
    assert labels.overlap == SplitOverlap(0, 0)
    assert labels.overlap.notes(100, DataSettings(train="t")) == []


def test_documents_of_one_group_have_one_split(tmp_path: Path) -> None:
    """A document without a group is with those of the same text. Texts of several groups are counted."""
    authors = [f"author {row // 20}" if row < 2 * N - 100 else None for row in range(2 * N)]
    labels = read_labels(tmp_path, PAIRS, make_settings(group="author"), authors=authors)
    for author in set(authors) - {None}:
        assert len({split for split, own in zip(labels.splits, authors, strict=True) if own == author}) == 1
    assert labels.splits[-100::2] == labels.splits[-99::2]
    assert len(set(labels.splits[-100:])) > 1
    copied = [*PAIRS, *(vary(text) for text in PAIRS[:500])]
    labels = read_labels(tmp_path, copied, make_settings(group="author"), authors=[*authors, *["copier"] * 500])
    assert len(set(labels.splits[-500:]) - {DROPPED}) == 1
    tested = {hash_text(copied[row]) for row in labels.part("test")[0]}
    assert not tested & {hash_text(copied[row]) for split in ("train", "valid") for row in labels.part(split)[0]}
    assert labels.overlap == SplitOverlap(labels.splits.count(DROPPED), 0)
    assert labels.overlap.dropped > 0


def test_a_split_column_moves_no_row_but_copies_of_test_documents_do_not_train(tmp_path: Path) -> None:
    """Every eleventh pair has one document in test and one elsewhere; the report has a line about them."""
    elsewhere = ("train", "valid", "valid", "train")
    splits = ["train" if row % 22 > 1 else "test" if row % 2 else elsewhere[row // 22 % 4] for row in range(2 * N)]
    labels = read_labels(tmp_path, PAIRS, make_settings(split="split"), splits=splits)
    pairs = list(zip(splits[::2], splits[1::2], strict=True))
    left_out = [
        [DROPPED if set(pair) != {"test"} and "test" in pair and own != "test" else own for own in pair]
        for pair in pairs
    ]
    assert labels.splits == [split for pair in left_out for split in pair]
    assert labels.overlap == SplitOverlap(55, 0)
    [note] = labels.overlap.notes(220, DataSettings(train="t"))
    assert note.startswith("55 documents are left out of training: a near-identical text is among the test documents")
    [of_groups] = SplitOverlap(0, 30).notes(240, DataSettings(train="t", group="author"))
    assert of_groups.startswith("warning: 30 of 240 test documents (12.5 %) have the same author among")


@pytest.mark.parametrize("column", [None, "split"])
def test_a_text_of_the_frozen_evaluation_set_is_learned_from_under_no_id(tmp_path: Path, column: str | None) -> None:
    """Rows of test stay there; others are dropped from every fold and count. The frozen id itself tests."""
    frozen = FrozenDocuments.of(["d0", "elsewhere"], [PAIRS[0], vary(PAIRS[100]), PAIRS[200], "in no corpus"])
    splits = None if column is None else ["train", "valid", "test"] * (2 * N // 3)
    config = make_settings(split=column)
    free = read_labels(tmp_path, PAIRS, config, splits=splits)
    labels = read_labels(tmp_path, PAIRS, config, splits=splits, frozen=frozen)
    touched = {0, 1, 100, 101, 200, 201}
    for row in range(2 * N):
        before = free.splits[row]
        expected = before if row not in touched or before == "test" else DROPPED
        assert labels.splits[row] == ("test" if row == 0 else expected), row
    assert labels.overlap.dropped == labels.splits.count(DROPPED) > 0
    assert not {1, 100, 101, 200, 201} & set(labels.training_data(config).all_rows.tolist())
    assert labels.digest != free.digest
    [note, *_] = labels.overlap.notes(100, config.data)
    assert note == (
        f"{labels.overlap.dropped} documents are left out of training: a near-identical text is among the test "
        "documents, or in the model's frozen evaluation set"
    )


def test_dropped_documents_do_not_count_as_labelled(tmp_path: Path) -> None:
    """Where less than enough are left, cross-validation makes the choices."""
    texts = [f"text number {row}" for row in range(CROSS_VALIDATION_BELOW + 8)]
    splits = ["train"] * (len(texts) - 100) + ["valid"] * 100
    config = make_settings(split="split")
    assert len(read_labels(tmp_path, texts, config, splits=splits).training_data(config).folds) == 1
    frozen = FrozenDocuments.of([], texts[:20])
    labels = read_labels(tmp_path, texts, config, splits=splits, frozen=frozen)
    assert len(labels.training_data(config).folds) > 1
    assert labels.training_data(config).rows.tolist() == list(range(20, len(texts)))


def test_cross_validation_keeps_near_identical_texts_together(tmp_path: Path) -> None:
    """Also those that a split column divides between training and validation."""
    texts, splits = PAIRS[:200], ["train", "valid"] * 100
    config = make_settings(split="split")
    labels = read_labels(tmp_path, texts, config, splits=splits)
    hashes = np.array([hash_text(text) for text in texts], np.uint64)
    folds = labels.training_data(config).folds
    assert len(folds) > 1
    assert not any(np.isin(hashes[fold.train], hashes[fold.valid]).any() for fold in folds)
    np.testing.assert_array_equal(labels.groups, hashes)
    other = read_labels(tmp_path, [*texts[:-1], "another text"], config, splits=splits)
    assert other.digest != labels.digest


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20), st.data())
def test_more_documents_never_move_one(texts: list[str], data: st.DataObject) -> None:
    """The split depends on the document's own group alone, in whatever order and company."""
    more = data.draw(st.permutations([*texts, *data.draw(st.lists(st.text(min_size=1), max_size=8))]))
    config = make_settings(valid_fraction=0.3, test_fraction=0.3)

    def split(texts: Sequence[str]) -> dict[str, str]:
        hashes = np.array([hash_text(text) for text in texts], np.uint64)
        ids, given = [str(row) for row in range(len(texts))], [None] * len(texts)
        return dict(
            zip(texts, split_all(ids, texts, given, hashes, hashes, config, frozen=NOTHING_FROZEN), strict=True)
        )

    before, after = split(texts), split(more)
    assert {text: after[text] for text in texts} == before


@pytest.mark.usefixtures("many_labels")
@pytest.mark.parametrize("side", ["train", "valid"])
def test_a_rare_class_trains_and_validates_whatever_the_hash_says(tmp_path: Path, side: str) -> None:
    """Its frozen and its test documents stay what they are; a split column is not changed, and refused."""
    config, texts = make_settings(), [f"text {row}" for row in range(2_000)]
    by_hash = read_labels(tmp_path, texts, config).splits
    rare = [by_hash.index("test"), *[row for row, split in enumerate(by_hash) if split == side][:3]]
    names = ["rare" if row in rare else "ab"[row % 2] for row in range(len(texts))]
    frozen = FrozenDocuments.of([f"d{rare[1]}"], [])
    labels = read_labels(tmp_path, texts, config, names=names, frozen=frozen)
    assert [labels.splits[row] for row in rare[:2]] == ["test", "test"]
    assert {labels.splits[row] for row in rare[2:]} == {"train", "valid"}
    changed = [row for row, (one, other) in enumerate(zip(by_hash, labels.splits, strict=True)) if one != other]
    assert len(changed) == 2
    assert set(changed) < set(rare)
    with pytest.raises(UserError, match="class 'rare' has no document in the .* split"):
        read_labels(tmp_path, texts, config, names=names, splits=by_hash)


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_shared_hashes_are_counted_as_numpy_does(hashes: list[int], others: list[int]) -> None:
    first, second = (np.array(values, np.uint64) for values in (hashes, others))
    expected = int(np.isin(first, second).sum())
    assert _count_shared(first, second) == expected
