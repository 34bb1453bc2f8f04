"""Feature tables in Parquet and Arrow: values, labels and splits are read back exactly as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.data.feature_store import FeatureShards
from pipelines.data.training_labels import Labels
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import fingerprint
from spin.activations.extract import Features
from spin.activations.feature_table import bytes_per_document, from_lists, to_lists, to_table
from spin.labels.label_space import Label, LabelSpace
from spin.settings import parse_settings
from spin.sites import FeatureColumn

HALF, FULL = FeatureColumn.parse("ffn.01.mean"), FeatureColumn.parse("resid.02.max")


def draw_features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    columns: dict[FeatureColumn, NDArray[np.floating]] = {
        HALF: rng.normal(size=(n, 5)).astype(np.float16),
        FULL: rng.normal(size=(n, 3)).astype(np.float32) * 1e30,
    }
    return Features(columns, np.arange(n, dtype=np.int32), np.zeros(n, np.int32), 0)


def build_table(n: int, seed: int = 0) -> tuple[pa.Table, Features]:
    features = draw_features(n, seed)
    ids, labels = [f"é{i}" for i in range(n)], ["good"] * n
    splits = ["train" if i % 2 else None for i in range(n)]
    hashes = [2**64 - 1 - i for i in range(n)]
    return to_table(ids, labels, splits, features, text_hashes=hashes, groups=list(range(n))), features


def check_values(table: pa.Table, features: Features) -> None:
    for column, expected in features.columns.items():
        actual = from_lists(table.column(str(column)))
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_feature_shard_round_trips_through_parquet(n: int, tmp_path: Path) -> None:
    """float16 and float32 values, ids, missing splits and token counts are unchanged, also in a shard without rows."""
    table, features = build_table(n)
    pq.write_table(table, tmp_path / "shard.parquet")
    stored = pq.read_table(tmp_path / "shard.parquet")
    check_values(stored, features)
    assert stored.column("id").to_pylist() == [f"é{i}" for i in range(n)]
    assert stored.column("split").to_pylist() == ["train" if i % 2 else None for i in range(n)]
    assert stored.column("text_hash").to_pylist() == [2**64 - 1 - i for i in range(n)]
    assert stored.column("group").to_pylist() == list(range(n))
    assert stored.column("n_tokens").to_pylist() == list(range(n))
    assert stored.schema.field(str(HALF)).type == pa.list_(pa.float16(), 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_a_slice_of_several_shards_is_read_as_one_matrix(sizes: list[int], start: int, drop: int) -> None:
    """Shards of any sizes, also empty ones, are concatenated and cut at both ends."""
    shards = [build_table(n, seed) for seed, n in enumerate(sizes)]
    table = pa.concat_tables([shard for shard, _ in shards])
    stop = max(start, sum(sizes) - drop)
    part = table.slice(start, stop - start)
    joined = {c: np.concatenate([features.columns[c] for _, features in shards])[start:stop] for c in (HALF, FULL)}
    check_values(part, Features(joined, np.empty(0, np.int32), np.empty(0, np.int32), 0))


def test_a_column_without_chunks_keeps_its_width_and_type() -> None:
    """Arrow returns such a column for a table without shards."""
    column = pa.chunked_array([], pa.list_(pa.float16(), 5))
    assert from_lists(column).shape == (0, 5)
    assert from_lists(column).dtype == np.float16


@pytest.mark.parametrize(
    ("labels", "arrow_type"),
    [
        (["good", "bad"], pa.string()),
        ([["good", "bad"], []], pa.list_(pa.string())),
        ([[], ["bad"]], pa.list_(pa.string())),
        ([[], []], pa.list_(pa.string())),
        ([], pa.string()),
    ],
)
def test_labels_are_stored_as_strings_or_lists_of_strings(
    labels: list[Label], arrow_type: pa.DataType, tmp_path: Path
) -> None:
    """A column of empty lists has the type list of strings too."""
    n = len(labels)
    ids = [f"d{i}" for i in range(n)]
    table = to_table(ids, labels, [None] * n, draw_features(n), text_hashes=range(n), groups=range(n))
    pq.write_table(table, tmp_path / "shard.parquet")
    stored = pq.read_table(tmp_path / "shard.parquet").column("label")
    assert table.column("label").type == stored.type == arrow_type
    assert stored.to_pylist() == labels


def test_shards_with_lists_of_labels_can_be_concatenated() -> None:
    """One of the shards has empty lists only."""
    shards: list[list[Label]] = [[[], []], [["a"], []], [["b", "a"]]]
    tables = [
        to_table(
            ["x"] * len(s), s, [None] * len(s), draw_features(len(s)), text_hashes=[1] * len(s), groups=[1] * len(s)
        )
        for s in shards
    ]
    assert pa.concat_tables(tables).column("label").to_pylist() == [[], [], ["a"], [], ["b", "a"]]


def test_lists_of_labels_in_a_store_become_a_boolean_matrix(tmp_path: Path) -> None:
    """Each split has its rows; the digest depends on the labels but not on their order within a list."""
    shard_labels: list[list[Label]] = [[[], []], [["a"], ["b", "a"]], [["b"], ["a", "b"]]]
    splits = ["train", "train", "train", "train", "valid", "valid"]
    config = parse_settings({"backbone": {"model": "m"}, "data": {"train": "t", "split": "split"}, "store": "s"}, "s")

    def read_labels(shards: list[list[Label]]) -> Labels:
        store = Store(str(tmp_path / fingerprint(shards)))
        for index, shard in enumerate(shards):
            rows = range(2 * index, 2 * index + 2)
            ids, own_splits = [f"d{row}" for row in rows], [splits[row] for row in rows]
            table = to_table(ids, shard, own_splits, draw_features(2), text_hashes=rows, groups=rows)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            store.write(f"parts/{index:06d}.parquet", sink.getvalue().to_pybytes())
        keys = tuple(f"parts/{index:06d}.parquet" for index in range(3))
        return Labels.of(FeatureShards(store, keys, (0,) * len(keys), {}), config)

    labels = read_labels(shard_labels)
    assert (labels.label_space, labels.classes) == (LabelSpace(("a", "b"), multilabel=True), ["a", "b"])
    rows, y = labels.part("valid")
    assert rows.tolist() == [4, 5]
    np.testing.assert_array_equal(y, [[False, True], [True, True]])
    np.testing.assert_array_equal(labels.y[:4], [[False, False], [False, False], [True, False], [True, True]])
    reordered = read_labels([[[], []], [["a"], ["a", "b"]], [["b"], ["a", "b"]]])
    changed = read_labels([[[], ["b"]], [["a"], ["b", "a"]], [["b"], ["a", "b"]]])
    assert labels.digest == reordered.digest != changed.digest


def test_a_matrix_that_is_not_contiguous_is_stored_row_by_row() -> None:
    """A transposed matrix, for example, has its rows scattered in memory."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(from_lists(pa.chunked_array([to_lists(values)])), values)


def test_bytes_per_document_equals_the_size_of_the_stored_values() -> None:
    """A float16 value takes two bytes, a float32 value four."""
    features = draw_features(6)
    stored = sum(values.nbytes for values in features.columns.values()) / 6
    assert bytes_per_document({HALF: 5, FULL: 3}, {HALF: np.float16, FULL: np.float32}) == stored
