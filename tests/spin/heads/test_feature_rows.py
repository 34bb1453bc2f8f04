"""Features in blocks of rows: in memory or in a temporary file, with the same values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import spin.heads.feature_rows
from spin.arrays import Floats
from spin.heads.feature_rows import FeatureRows, RowFile
from spin.labels.standardizer import Standardizer

pytestmark = pytest.mark.usefixtures("plain_deviations")


@pytest.fixture
def raw() -> Floats:
    """Activations as a backbone has them: 50 rows of 7 neurons whose means differ by orders of magnitude."""
    draw = np.random.default_rng(0)
    return (draw.normal(size=(50, 7)) * 10.0 ** np.arange(-3, 4) + 5).astype(np.float16)


@pytest.fixture(params=["memory", "file"])
def kept(request: pytest.FixtureRequest, raw: Floats, monkeypatch: pytest.MonkeyPatch) -> FeatureRows:
    """These rows from three blocks, of which one is empty; in a file a block holds six of them."""
    if request.param == "file":
        monkeypatch.setattr(spin.heads.feature_rows, "MOST_IN_MEMORY", 4 * raw.size - 1)
        monkeypatch.setattr(spin.heads.feature_rows, "BLOCK_BYTES", 6 * 4 * 7)
    else:
        monkeypatch.setattr(spin.heads.feature_rows, "MOST_IN_MEMORY", 4 * raw.size)
    rows = FeatureRows.collect((part for part in (raw[:20], raw[20:20], raw[20:])), len(raw))
    assert isinstance(rows.values, RowFile) is not rows.in_memory is (request.param == "memory")
    return rows


def test_blocks_hold_all_rows_in_order(kept: FeatureRows, raw: Floats) -> None:
    blocks = list(kept.blocks())
    assert [len(block) for block in blocks] == ([50] if kept.in_memory else [6] * 8 + [2])
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.concatenate(blocks), raw)
    assert (len(kept), kept.shape) == (50, (50, 7))


def test_standardised_blocks_equal_the_whole(kept: FeatureRows, raw: Floats) -> None:
    """The values are bit for bit those of the standardiser, which a plain formula confirms."""
    standardizer = Standardizer.fit(raw)
    actual = np.concatenate(list(kept.standardize(standardizer).blocks()))
    np.testing.assert_array_equal(actual, standardizer.transform(raw))
    exact = raw.astype(np.float64)
    np.testing.assert_allclose(actual, (exact - exact.mean(0)) / exact.std(0), atol=1e-4)


@pytest.mark.parametrize("rows", [[], [0], [49], [3, 4, 5, 6, 7, 30, 48, 49], list(range(50))])
def test_take_gives_rows_and_features_at_positions(kept: FeatureRows, raw: Floats, rows: list[int]) -> None:
    features = np.array([6, 0, 3])
    taken = kept.take(np.array(rows, np.int64), features)
    np.testing.assert_array_equal(np.concatenate(list(taken.blocks())), raw[np.ix_(rows, features)])
    assert taken.shape == (len(rows), 3)
    assert taken.values.dtype == np.float16


@pytest.mark.parametrize("rows", [[3, 1], [2, 2], list(range(49, -1, -1))])
def test_rows_out_of_order_are_refused(kept: FeatureRows, rows: list[int]) -> None:
    """Whether they are in memory or not, so that no small corpus hides a mistake."""
    with pytest.raises(ValueError, match="ascending"):
        kept.take(np.array(rows), np.arange(7))


def test_a_file_keeps_the_type_of_its_rows(raw: Floats) -> None:
    """float16 takes half of the disk; slices are those of an array."""
    file = RowFile(7, np.dtype(np.float16))
    file.append(raw[:30])
    file.append(raw[30:])
    for rows in (slice(0, 50), slice(7, 9), slice(45, 99), slice(9, 9)):
        np.testing.assert_array_equal(file[rows], raw[rows])
        assert file[rows].dtype == np.float16


def test_a_file_leaves_nothing_behind(tmp_path: Path, raw: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name from the start, so that not even a killed process leaves one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = RowFile(7, raw.dtype)
    file.append(raw)
    assert os.listdir(tmp_path) == []
    assert len(file[0:50]) == 50


@pytest.mark.slow
def test_the_memory_of_the_process_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through 256 MB takes less than a quarter of that."""
    monkeypatch.setattr(spin.heads.feature_rows, "MOST_IN_MEMORY", 0)

    def make_blocks() -> Iterator[Floats]:
        block = np.ones((1 << 14, 1 << 10), np.float16)
        return (block for _ in range(8))

    kept = FeatureRows.collect(make_blocks(), 1 << 17)
    process, largest, before = psutil.Process(), 0, psutil.Process().memory_info().rss
    total = 0.0
    for block in kept.standardize(Standardizer(np.zeros(1 << 10, np.float32), np.ones(1 << 10, np.float32))).blocks():
        total += float(block[:, 0].sum())
        largest = max(largest, process.memory_info().rss - before)
    assert total == 1 << 17
    assert largest < 1 << 26
