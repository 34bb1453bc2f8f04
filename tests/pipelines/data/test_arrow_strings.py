"""Strings in Arrow's memory: a sequence like a list of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipelines.data import arrow_strings
from pipelines.data.arrow_strings import ArrowStrings, shared_values

VALUES = [f"é{n}" for n in range(23)]


@pytest.mark.parametrize("borders", [[], [0], [5, 5, 20]])
def test_a_sequence_of_strings_is_like_a_list(borders: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its chunks."""
    monkeypatch.setattr(arrow_strings, "_READ", 4)
    edges = [0, *borders, len(VALUES)]
    chunks = [pa.array(VALUES[first:last], pa.string()) for first, last in pairwise(edges)]
    strings = ArrowStrings(pa.chunked_array(chunks))
    assert len(strings) == 23
    assert list(strings) == VALUES
    assert [strings[0], strings[22], strings[int(np.int64(7))]] == [VALUES[0], VALUES[22], VALUES[7]]
    assert strings[3:9] == VALUES[3:9]
    assert strings[20:99] == VALUES[20:]
    assert "é4" in strings


@pytest.mark.parametrize("count", [0, 4, 9])
def test_strings_of_an_iterator_are_those_of_a_list(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_strings, "_READ", 4)
    assert list(ArrowStrings.of(iter(VALUES[:count]))) == VALUES[:count]


def test_no_strings_are_an_empty_sequence() -> None:
    strings = ArrowStrings(pa.chunked_array([], pa.string()))
    assert (len(strings), list(strings), strings[0:3]) == (0, [], [])


def test_equal_values_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists stay as they are, and so do nulls."""
    monkeypatch.setattr(arrow_strings, "_READ", 2)
    names = ["a class", None, "a class", "another", "a class"]
    values = shared_values(pa.chunked_array([names]))
    assert values == names
    assert values[0] is values[2] is values[4]
    lists = [["a", "b"], [], ["a"]]
    assert shared_values(pa.chunked_array([lists])) == lists
    assert shared_values(pa.chunked_array([[None, None]], pa.null())) == [None, None]
