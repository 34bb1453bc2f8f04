"""Feature shards give back what was put in, bit for bit."""

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


def features(n: int, seed: int = 0) -> Features:
    draw = np.random.default_rng(seed)
    columns: dict[FeatureColumn, NDArray[np.floating]] = {
        HALF: draw.normal(size=(n, 5)).astype(np.float16),
        FULL: draw.normal(size=(n, 3)).astype(np.float32) * 1e30,
    }
    return Features(columns, np.arange(n, dtype=np.int32), np.zeros(n, np.int32), 0)


def table_of(n: int, seed: int = 0) -> tuple[pa.Table, Features]:
    found = features(n, seed)
    ids, labels = [f"é{i}" for i in range(n)], ["good"] * n
    return to_table(ids, labels, ["train" if i % 2 else None for i in range(n)], found), found


def check(table: pa.Table, found: Features) -> None:
    for column, values in found.columns.items():
        back = from_lists(table.column(str(column)))
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_shard_round_trips_through_parquet(n: int, tmp_path: Path) -> None:
    """float16 and float32, no rows at all included; ids, labels, a split that may be missing, token counts."""
    table, found = table_of(n)
    pq.write_table(table, tmp_path / "shard.parquet")
    back = pq.read_table(tmp_path / "shard.parquet")
    check(back, found)
    assert back.column("id").to_pylist() == [f"é{i}" for i in range(n)]
    assert back.column("split").to_pylist() == ["train" if i % 2 else None for i in range(n)]
    assert back.column("n_tokens").to_pylist() == list(range(n))
    assert back.schema.field(str(HALF)).type == pa.list_(pa.float16(), 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_chunks_and_slices_are_joined(sizes: list[int], start: int, drop: int) -> None:
    """Shards of any sizes, empty ones too, put together and cut at both ends, come back as one matrix."""
    made = [table_of(n, seed) for seed, n in enumerate(sizes)]
    table = pa.concat_tables([t for t, _ in made])
    stop = max(start, sum(sizes) - drop)
    cut = table.slice(start, stop - start)
    joined = {c: np.concatenate([found.columns[c] for _, found in made])[start:stop] for c in (HALF, FULL)}
    check(cut, Features(joined, np.empty(0, np.int32), np.empty(0, np.int32), 0))


def test_a_column_without_chunks_has_its_width() -> None:
    """What Arrow gives for no shards at all still knows its width and type."""
    nothing = pa.chunked_array([], pa.list_(pa.float16(), 5))
    assert from_lists(nothing).shape == (0, 5)
    assert from_lists(nothing).dtype == np.float16


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["good", "bad"], pa.string()),
        ([["good", "bad"], []], pa.list_(pa.string())),
        ([[], ["bad"]], pa.list_(pa.string())),
        ([[], []], pa.list_(pa.string())),
        ([], pa.string()),
    ],
)
def test_labels_are_strings_or_lists(labels: list[Label], kind: pa.DataType, tmp_path: Path) -> None:
    """Empty lists are lists of strings still."""
    n = len(labels)
    table = to_table([f"d{i}" for i in range(n)], labels, [None] * n, features(n))
    pq.write_table(table, tmp_path / "shard.parquet")
    back = pq.read_table(tmp_path / "shard.parquet").column("label")
    assert table.column("label").type == back.type == kind
    assert back.to_pylist() == labels


def test_shards_of_lists_are_joined() -> None:
    """One in which every list is empty, and others."""
    shards: list[list[Label]] = [[[], []], [["a"], []], [["b", "a"]]]
    tables = [to_table(["x"] * len(s), s, [None] * len(s), features(len(s))) for s in shards]
    assert pa.concat_tables(tables).column("label").to_pylist() == [[], [], ["a"], [], ["b", "a"]]


def test_the_labels_of_a_store(tmp_path: Path) -> None:
    """Lists over shards become booleans, rows of splits with them; other labels have another digest."""
    given: list[list[Label]] = [[[], []], [["a"], ["b", "a"]], [["b"], ["a", "b"]]]
    splits = ["train", "train", "train", "train", "valid", "valid"]
    chosen = parse_settings({"backbone": {"model": "m"}, "data": {"train": "t", "split": "split"}, "store": "s"}, "s")

    def labels(of: list[list[Label]]) -> Labels:
        store = Store(str(tmp_path / fingerprint(of)))
        for index, shard in enumerate(of):
            rows = range(2 * index, 2 * index + 2)
            table = to_table([f"d{row}" for row in rows], shard, [splits[row] for row in rows], features(2))
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            store.write(f"parts/{index:06d}.parquet", sink.getvalue().to_pybytes())
        return Labels.of(FeatureShards(store, ("000000", "000001", "000002"), {}), chosen)

    found = labels(given)
    assert (found.label_space, found.classes) == (LabelSpace(("a", "b"), multilabel=True), ["a", "b"])
    rows, y = found.part("valid")
    assert rows.tolist() == [4, 5]
    np.testing.assert_array_equal(y, [[False, True], [True, True]])
    np.testing.assert_array_equal(found.y[:4], [[False, False], [False, False], [True, False], [True, True]])
    again = labels([[[], []], [["a"], ["a", "b"]], [["b"], ["a", "b"]]])
    other = labels([[[], ["b"]], [["a"], ["b", "a"]], [["b"], ["a", "b"]]])
    assert found.digest == again.digest != other.digest


def test_a_view_is_stored_as_it_reads() -> None:
    """Rows that do not lie together in memory, as a transposed matrix, are stored in their own order."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(from_lists(pa.chunked_array([to_lists(values)])), values)


def test_document_bytes_counts_what_is_stored() -> None:
    """Two bytes a half, four a single."""
    found = features(6)
    stored = sum(values.nbytes for values in found.columns.values()) / 6
    assert bytes_per_document({HALF: 5, FULL: 3}, {HALF: np.float16, FULL: np.float32}) == stored
