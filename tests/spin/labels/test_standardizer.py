"""Means and standard deviations of activations; those of few rows are shrunk."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from spin.labels.standardizer import Standardizer


@pytest.mark.parametrize("rows", [5, 149, 150, 400])
def test_the_deviations_of_few_rows_are_shrunk_towards_their_median(rows: int) -> None:
    """By a plain loop; from 150 rows on they are those of the rows, and a constant activation has none."""
    draw = np.random.default_rng(rows)
    values = (draw.normal(size=(rows, 7)) * np.geomspace(1e-3, 10, 7)).astype(np.float32)
    values[:, 3] = 2.5
    plain = [statistics.pstdev(column.tolist()) for column in values.T]
    usual = statistics.median(plain[:3] + plain[4:])
    more = max(0.0, 30 * (1 - rows / 150))
    expected = [math.sqrt((rows * s**2 + more * usual**2) / (rows + more)) for s in plain]
    expected[3] = 1
    standardizer = Standardizer.fit(values)
    assert standardizer.scale.tolist() == pytest.approx(expected, rel=1e-4)
    assert standardizer.mean.tolist() == pytest.approx(
        [statistics.fmean(column.tolist()) for column in values.T], abs=1e-5
    )


def test_constant_activations_alone_have_no_usual_deviation() -> None:
    assert Standardizer.fit(np.full((10, 2), 3.0, np.float32)).scale.tolist() == [1, 1]
