"""Shares of tokens and words, against loops over single tokens and characters."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spin.attribution.reasons import ReasonBuffer, largest_columns
from spin.attribution.token_sums import (
    TokenDirections,
    TokenMasks,
    TokenReadings,
    TokenWeights,
    find_single_tokens,
    share_mean,
    sum_tokens,
)
from spin.attribution.word_sums import Places, WordSums, add_places, merge_places
from spin.sites import FeatureColumn, Site
from tests.support.attribution_loop import Span, add_places_in_a_loop


def test_shares_of_a_mean_add_up_to_its_total() -> None:
    draw = np.random.default_rng(0)
    values, owners, totals = draw.normal(size=(7, 2)), np.array([0, 0, 0, 1, 2, 2, 2]), draw.normal(size=(3, 2))
    shares = share_mean(values, owners, totals)
    for text in range(3):
        own = values[owners == text]
        for token, share in zip(own, shares[owners == text], strict=True):
            np.testing.assert_allclose(share, (token - own.mean(0) + totals[text]) / len(own))
        np.testing.assert_allclose(shares[owners == text].sum(0), totals[text])


def test_the_first_of_the_largest_tokens_has_all_of_a_maximum() -> None:
    column = FeatureColumn(Site(1, "ffn"), "max")
    values, content = np.array([[[9.0, 1], [3, 5], [3, 5], [2, 0]]]), np.array([[False, True, True, True]])
    masks = TokenMasks.of(np.array([0]), np.ones((1, 4), bool), np.ones((1, 4), bool), content)
    readings = TokenReadings.of_values({column: values}, TokenDirections(1, {}, {}), masks)
    assert readings.values.tolist() == [[3, 5]]
    at, has_all = find_single_tokens(readings, masks, {column: slice(0, 2)})
    assert (at.tolist(), has_all.tolist()) == ([[1, 1]], [True, True])
    weights = TokenWeights(np.array([0]), np.zeros((1, 1)), np.array([[2.0, -3]]), np.empty((1, 0)))
    assert sum_tokens(readings, masks, weights, {column: slice(0, 2)}).tolist() == [[0, -1, 0, 0]]


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


@given(st.lists(st.tuples(spans.map(lambda each: sorted(set(each))), spans), min_size=1, max_size=4))
def test_places_are_shared_out_as_in_a_loop(texts: list[tuple[list[Span], list[Span]]]) -> None:
    draw = np.random.default_rng(0)
    sums = [draw.normal(size=len(words)) for words, _ in texts]
    of_places = [draw.normal(size=len(places)) for _, places in texts]

    def flatten(which: int) -> tuple[np.ndarray, np.ndarray]:
        owners = np.repeat(np.arange(len(texts)), [len(text[which]) for text in texts])
        return owners, np.array([span for text in texts for span in text[which]], np.int64).reshape(-1, 2)

    owners, words = flatten(0)
    place_owners, places = flatten(1)
    stacked = Places(place_owners, places[:, 0], places[:, 1], np.concatenate(of_places))
    own_sums = Places(owners, words[:, 0], words[:, 1], np.concatenate(sums))
    found = astuple(add_places(own_sums, stacked))
    for one, other in zip(astuple(add_places(own_sums, merge_places(stacked))), found, strict=True):
        np.testing.assert_allclose(one, other)
    doubled = Places(place_owners, places[:, 0], places[:, 1], np.stack([np.concatenate(of_places)] * 2, 1))
    in_two = add_places(replace(own_sums, sums=np.stack([own_sums.sums] * 2, 1)), doubled)
    np.testing.assert_allclose(in_two.sums, np.stack([found[3]] * 2, 1))
    for number, (own_words, own_places) in enumerate(texts):
        expected = add_places_in_a_loop(own_words, sums[number].tolist(), own_places, of_places[number].tolist())
        mine = found[0] == number
        actual = {(int(a), int(b)): value for _, a, b, value in zip(*(each[mine] for each in found), strict=True)}
        assert actual.keys() == expected.keys()
        for span, value in expected.items():
            np.testing.assert_allclose(actual[span], value, atol=1e-9)


def test_the_largest_columns_come_first_and_of_equal_ones_the_first() -> None:
    values = np.array([[1.0, -3, 2, 3, 0], [0, 0, 0, 0, 1]])
    for count in range(1, 7):
        expected = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :count]
        found = largest_columns(values, count)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1, 0] == 4


def test_top_words_are_the_largest_of_each_text() -> None:
    """Texts may be without words; the earlier of two equal ones comes first, and words without a share never come."""
    sums = WordSums(
        np.array([0, 0, 0, 2, 2]), np.array([0, 2, 4, 0, 3]), np.array([1, 3, 5, 2, 4]), np.array([0.5, -2, 0.5, 1, 0]),
        np.zeros(3, np.int64),
    )  # fmt: skip
    buffer = ReasonBuffer(["xy z", "", "a b c"], 2, [])
    buffer.store(np.array([2, 1, 0]), np.empty((3, 0)), sums)
    top = buffer.reasons().words
    assert (top.counts.tolist(), top.words, top.starts.tolist()) == ([1, 0, 2], ["xy", "b", "a"], [0, 2, 0])
    assert top.contributions.tolist() == [1, -2, 0.5]
