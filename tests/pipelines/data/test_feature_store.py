"""Feature tables in Parquet and Arrow: values, labels and splits are read back exactly as they were written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.data.feature_pool import Places
from pipelines.data.feature_store import LABELS, FeatureShards, KeptFeatures, KeptShard, add_places
from pipelines.data.training_labels import Labels
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.stage_plan import fingerprint
from spin.activations.feature_table import bytes_per_document, documents_table, features_table, from_lists, to_lists
from spin.activations.features import Features
from spin.heads.selection import Selection
from spin.labels.label_space import Label, LabelSpace
from spin.settings import parse_settings
from spin.sites import FeatureColumn
from tests.support.selected_features import read_selection

HALF, FULL = FeatureColumn.parse("ffn.01.mean"), FeatureColumn.parse("resid.02.max")


def draw_features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    columns: dict[FeatureColumn, NDArray[np.floating]] = {
        HALF: rng.normal(size=(n, 5)).astype(np.float16),
        FULL: rng.normal(size=(n, 3)).astype(np.float32) * 1e30,
    }
    return Features(columns, np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.zeros(n, np.bool_))


def build_tables(n: int, seed: int = 0) -> tuple[pa.Table, pa.Table, Features]:
    """A table of documents, one of their features, and these."""
    features = draw_features(n, seed)
    ids, labels = [f"é{i}" for i in range(n)], ["good"] * n
    splits = ["train" if i % 2 else None for i in range(n)]
    hashes = [2**64 - 1 - i for i in range(n)]
    documents = documents_table(ids, labels, splits, text_hashes=hashes, groups=list(range(n)))
    return documents, features_table(features), features


def check_values(table: pa.Table, features: Features) -> None:
    for column, expected in features.columns.items():
        actual = from_lists(table.column(str(column)))
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_feature_shard_round_trips_through_parquet(n: int, tmp_path: Path) -> None:
    """float16 and float32 values, ids, missing splits and token counts are unchanged, also in a shard without rows."""
    documents, table, features = build_tables(n)
    pq.write_table(table, tmp_path / "features.parquet")
    pq.write_table(documents, tmp_path / "documents.parquet")
    values, stored = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("features", "documents"))
    check_values(values, features)
    assert stored.column("id").to_pylist() == [f"é{i}" for i in range(n)]
    assert stored.column("split").to_pylist() == ["train" if i % 2 else None for i in range(n)]
    assert stored.column("text_hash").to_pylist() == [2**64 - 1 - i for i in range(n)]
    assert stored.column("group").to_pylist() == list(range(n))
    assert values.column("n_tokens").to_pylist() == list(range(n))
    assert values.schema.field(str(HALF)).type == pa.list_(pa.float16(), 5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_a_slice_of_several_shards_is_read_as_one_matrix(sizes: list[int], start: int, drop: int) -> None:
    """Shards of any sizes, also empty ones, are concatenated and cut at both ends."""
    shards = [build_tables(n, seed)[1:] for seed, n in enumerate(sizes)]
    table = pa.concat_tables([shard for shard, _ in shards])
    stop = max(start, sum(sizes) - drop)
    part = table.slice(start, stop - start)
    joined = {c: np.concatenate([features.columns[c] for _, features in shards])[start:stop] for c in (HALF, FULL)}
    check_values(part, Features(joined, np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.bool_)))


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
    table = documents_table(ids, labels, [None] * n, text_hashes=range(n), groups=range(n))
    pq.write_table(table, tmp_path / "shard.parquet")
    stored = pq.read_table(tmp_path / "shard.parquet").column("label")
    assert table.column("label").type == stored.type == arrow_type
    assert stored.to_pylist() == labels


def test_shards_with_lists_of_labels_can_be_concatenated() -> None:
    """One of the shards has empty lists only."""
    shards: list[list[Label]] = [[[], []], [["a"], []], [["b", "a"]]]
    tables = [
        documents_table(["x"] * len(s), s, [None] * len(s), text_hashes=[1] * len(s), groups=[1] * len(s))
        for s in shards
    ]
    assert pa.concat_tables(tables).column("label").to_pylist() == [[], [], ["a"], [], ["b", "a"]]


def test_lists_of_labels_in_a_store_become_a_boolean_matrix(tmp_path: Path) -> None:
    """Each split has its rows; the digest depends on the labels but not on their order within a list."""
    lists: list[Label] = [[], [], ["a"], ["b", "a"], ["b"], ["a", "b"]]
    splits = ["train", "train", "train", "train", "valid", "valid"]
    config = parse_settings({"backbone": {"model": "m"}, "data": {"train": "t", "split": "split"}, "store": "s"}, "s")

    def read_labels(labels: list[Label]) -> Labels:
        store, ids = Store(str(tmp_path / fingerprint(labels))), [f"d{row}" for row in range(6)]
        table = documents_table(ids, labels, splits, text_hashes=range(6), groups=range(6))
        store.write(LABELS, to_parquet(add_places(table, Places.of_sizes([6]))))
        return Labels.of(FeatureShards(store, (6,), ("no features",), {}), config)

    labels = read_labels(lists)
    assert (labels.label_space, labels.classes) == (LabelSpace(("a", "b"), multilabel=True), ["a", "b"])
    rows, y = labels.part("valid")
    assert rows.tolist() == [4, 5]
    np.testing.assert_array_equal(y, [[False, True], [True, True]])
    np.testing.assert_array_equal(labels.y[:4], [[False, False], [False, False], [True, False], [True, True]])
    reordered = read_labels([[], [], ["a"], ["a", "b"], ["b"], ["a", "b"]])
    changed = read_labels([[], ["b"], ["a"], ["b", "a"], ["b"], ["a", "b"]])
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


N = 23
EXTRACTED = np.array([0, 3, 4, 11, 12, 13, 20])
"""rows of the first pass"""
TESTED = np.array([1, 2, 9, 10, 22])
"""rows of the second pass that test"""
DROPPED = np.array([5])
"""a row that is in neither"""


def select(neurons: Mapping[FeatureColumn, list[int]]) -> Selection:
    arrays = {column: np.array(indices) for column, indices in neurons.items()}
    return Selection(arrays, {column: np.zeros(len(indices)) for column, indices in arrays.items()}, 1.0)


@pytest.fixture
def two_passes(tmp_path: Path) -> tuple[FeatureShards, Features]:
    """Shards of 10, 0 and 13 documents after two passes, of which the second kept FULL whole where documents test."""
    features, store, selection = draw_features(N, seed=5), Store(str(tmp_path)), select({HALF: [1, 4], FULL: [0, 2]})
    first_pass, kept = list[str](), list[KeptShard]()
    files, places = np.full(N, -1, np.int32), np.zeros(N, np.int32)

    def write(key: str, rows: NDArray[np.int64], columns: dict[FeatureColumn, NDArray[np.floating]]) -> str:
        part = {column: values[rows] for column, values in columns.items()}
        sink = pa.BufferOutputStream()
        counts = np.zeros(len(rows), np.int32)
        pq.write_table(features_table(Features(part, counts, counts, counts > 0)), sink)
        store.write(key, sink.getvalue().to_pybytes())
        return key

    of_kept = {column: values[:, selection.neurons[column]] for column, values in features.columns.items()}
    others = np.setdiff1d(np.arange(N), np.concatenate([EXTRACTED, TESTED, DROPPED]))
    for index, (first, last) in enumerate([(0, 10), (10, 10), (10, N)]):
        own = [rows[(rows >= first) & (rows < last)] for rows in (EXTRACTED, others, TESTED)]
        first_pass.append(write(f"first/{index}", own[0][::-1], features.columns))
        files[own[0]], places[own[0]] = index, np.arange(len(own[0]))[::-1]
        keys = [
            write(f"second/{index}", own[1], of_kept),
            write(f"tested/{index}", own[2], {**of_kept, FULL: features.columns[FULL]}),
        ]
        kept.append(KeptShard(keys[0], own[1] - first, keys[1], own[2] - first))
    widths = {column: values.shape[1] for column, values in features.columns.items()}
    second = KeptFeatures(store, tuple(kept), selection, frozenset({FULL}))
    store.write(LABELS, to_parquet(add_places(pa.table({}), Places(files, places), EXTRACTED)))
    return FeatureShards(store, (10, 0, 13), tuple(first_pass), widths, second), features


def test_after_two_passes_the_kept_neurons_of_all_documents_are_read(
    two_passes: tuple[FeatureShards, Features],
) -> None:
    """Any neurons that are kept, of any rows, of whichever pass; float16 beside float32 is read as float32."""
    shards, features = two_passes
    np.testing.assert_array_equal(shards.extracted, EXTRACTED)
    draw = np.random.default_rng(0)
    for size in (0, 1, 5, N - 1):
        rows = np.sort(draw.choice(np.setdiff1d(np.arange(N), DROPPED), size, replace=False))
        for neurons in ({HALF: [4]}, {FULL: [0, 2]}, {HALF: [1, 4], FULL: [2]}):
            selection = select(neurons)
            expected = np.concatenate([features.columns[c][np.ix_(rows, n)] for c, n in neurons.items()], axis=1)
            np.testing.assert_array_equal(read_selection(shards, selection, rows), expected)
        nothing = read_selection(shards, Selection({}, {}, 0.0), rows)
        assert nothing.shape == (len(rows), 0)


def test_the_logits_of_the_words_stay_with_their_rows(two_passes: tuple[FeatureShards, Features]) -> None:
    """They come before the neurons, also in blocks after the first and without any neuron."""
    shards, features = two_passes
    rows, words = np.array([0, 1, 9, 10, 11, 22]), np.arange(12, dtype=np.float32).reshape(6, 2)
    expected = np.concatenate([words, features.columns[HALF][rows][:, [4]]], axis=1)
    selection = select({HALF: [4]}).join_words(2)
    np.testing.assert_array_equal(read_selection(shards, selection, rows, words), expected)
    assert [len(block) for block in shards.selection_blocks(selection, rows, words)] == [3, 3]
    np.testing.assert_array_equal(read_selection(shards, select({}).join_words(2), rows, words), words)


def test_whole_columns_are_read_of_the_sample_and_of_documents_that_test(
    two_passes: tuple[FeatureShards, Features],
) -> None:
    shards, features = two_passes
    both = np.sort(np.concatenate([EXTRACTED, TESTED]))
    np.testing.assert_array_equal(shards.read_rows(FULL, both), features.columns[FULL][both])
    np.testing.assert_array_equal(shards.read_rows(HALF, EXTRACTED), features.columns[HALF][EXTRACTED])
    assert shards.read_rows(HALF, np.array([], np.int64)).shape == (0, 5)


@pytest.mark.parametrize("first", [FULL, HALF])
def test_a_whole_column_beside_kept_neurons_keeps_its_place(
    two_passes: tuple[FeatureShards, Features], first: FeatureColumn
) -> None:
    """Neuron 1 of FULL was not kept, but documents that test have all of them."""
    shards, features = two_passes
    wanted = {FULL: [1], HALF: [4]}
    neurons = {first: wanted[first], **wanted}
    expected = np.concatenate([features.columns[c][np.ix_(TESTED, n)] for c, n in neurons.items()], axis=1)
    np.testing.assert_array_equal(read_selection(shards, select(neurons), TESTED), expected)


@pytest.mark.parametrize(
    ("column", "neurons", "row"),
    [(HALF, None, 1), (FULL, None, 6), (HALF, [0], 6), (HALF, [1], 5), (HALF, [1, 2], 22)],
)
def test_what_was_not_extracted_is_refused(
    two_passes: tuple[FeatureShards, Features], column: FeatureColumn, neurons: list[int] | None, row: int
) -> None:
    """A neuron that was not kept, a whole column that was not kept, a document that was dropped."""
    shards, rows = two_passes[0], np.array([row])
    reads_neurons = neurons is not None
    selection = select({column: neurons or []})
    read = partial(read_selection, shards, selection) if reads_neurons else partial(shards.read_rows, column)
    with pytest.raises(ValueError, match="1 of 1 documents have no values"):
        read(rows)
