"""Words that some documents have more often than others: what many have and few others, never a word of one text."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from spin.monitor.drift_words import different_words, frequent_words

Documents = list[tuple[str, ...]]


def test_words_of_a_text_are_kept_once_in_lower_case_and_in_order() -> None:
    text = "Straße, strasse! The the café_1 — ÉTÉ 42"
    assert different_words(text) == ("strasse", "the", "café_1", "été", "42")
    assert different_words(" \n") == ()


def test_of_a_long_text_the_first_thousand_words_are_kept() -> None:
    assert different_words(" ".join(f"the w{n}" for n in range(5000))) == ("the", *(f"w{n}" for n in range(999)))


def make_documents(counts: dict[str, int], size: int) -> Documents:
    """Return documents of which so many have each word."""
    return [tuple(word for word, count in counts.items() if row < count) for row in range(size)]


def plain_p_value(n: int, size: int, m: int, others: int) -> float:
    """Return the probability that of n + m documents with a word at least n are in the group, by counting."""
    ways = [comb(size, k) * comb(others, n + m - k) for k in range(n, min(size, n + m) + 1)]
    return sum(ways) / comb(size + others, n + m)


def test_words_are_ranked_as_by_fishers_exact_test() -> None:
    """Words as frequent as elsewhere are left out, words of no other document are not; no more than asked for."""
    here, others = {"the": 10, "late": 6, "storm": 9, "plain": 3}, {"the": 980, "late": 30, "plain": 600}
    p_values = {word: plain_p_value(n, 10, others.get(word, 0), 1000) for word, n in here.items()}
    expected = sorted((word for word in here if p_values[word] < 0.01 / 4), key=p_values.__getitem__)
    assert expected == ["storm", "late"]
    groups = make_documents(here, 10), make_documents(others, 1000)
    assert frequent_words(*groups, 8) == tuple(expected)
    assert frequent_words(*groups, 1) == ("storm",)


def test_chance_is_corrected_for_the_number_of_words() -> None:
    """A word that is so frequent in less than one of a hundred groups is named alone, and not among several."""
    assert 0.005 < plain_p_value(3, 10, 42, 1000) < 0.01
    alone = make_documents({"odd": 3}, 10), make_documents({"odd": 42}, 1000)
    assert frequent_words(*alone, 8) == ("odd",)
    among = make_documents({"odd": 3, "the": 10}, 10), make_documents({"odd": 42, "the": 1000}, 1000)
    assert frequent_words(*among, 8) == ()


@pytest.mark.slow
def test_where_nothing_differs_a_word_is_named_in_one_of_a_hundred_comparisons_at_most() -> None:
    """Most words are rare, so that few are in three documents of a group; 100 groups of 40 of 1,000 documents."""
    draw = np.random.default_rng(0)
    named = 0
    for _ in range(100):
        documents = [tuple(map(str, draw.choice(3000, 20, replace=False))) for _ in range(1000)]
        named += bool(frequent_words(documents[:40], documents[40:], 8))
    assert named <= 4  # of 1 expected; more has a probability of 0.003


@pytest.mark.slow
def test_a_word_of_fewer_than_three_documents_is_not_named() -> None:
    others = make_documents({}, 1_000_000)
    assert plain_p_value(2, 10, 0, 1_000_000) < 1e-9
    assert frequent_words(make_documents({"secret": 2}, 10), others, 8) == ()
    assert frequent_words(make_documents({"secret": 3}, 10), others, 8) == ("secret",)


def test_words_that_are_equally_clear_are_in_order() -> None:
    group = make_documents(dict.fromkeys(["b", "c", "a"], 8), 10)
    assert frequent_words(group, make_documents({}, 1000), 8) == ("a", "b", "c")


@pytest.mark.parametrize("others", [0, 1])
def test_nothing_is_named_where_there_is_next_to_nothing_to_compare(others: int) -> None:
    assert frequent_words(make_documents({"late": 3}, 3), make_documents({}, others), 8) == ()
    assert frequent_words([], make_documents({"late": 1}, others), 8) == ()


def test_a_word_of_all_documents_is_not_named() -> None:
    assert frequent_words(make_documents({"the": 10}, 10), make_documents({"the": 10}, 10), 8) == ()
