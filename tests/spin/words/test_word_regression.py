"""The word regression at prediction time: its logits, its terms and its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from spin.words.vocabulary import CHARACTERS_READ, UNITS, Vocabulary
from spin.words.word_regression import WordRegression, predict_with_each
from tests.support.word_regression import build_word_regression

TEXTS = [
    "the crew was lovely, the film was fine",
    "awful crew and a broken film",
    "İstanbul was Warm and lovely",  # its lower case is longer
    "naïve – so   what?\nthe crew 😀😀 WAS late",
    "x",
    "",
    "lovely " * 400 + "broken tail",  # longer than the characters that are counted
]


@cache
def build_binary() -> WordRegression:
    """Return a regression of two classes; hypothesis takes no fixture."""
    return build_word_regression(TEXTS, 2)


@pytest.fixture(scope="module")
def regression() -> WordRegression:
    return build_word_regression(TEXTS)


def test_logits_are_those_of_scikit_learn(regression: WordRegression) -> None:
    """The oracle fits its own vectorizers on the same texts."""
    parts = []
    for unit, arguments in UNITS.items():
        read = [text[:CHARACTERS_READ] for text in TEXTS] if unit == "characters" else TEXTS
        parts.append(TfidfVectorizer(sublinear_tf=True, **arguments).fit(TEXTS).transform(read))
    expected = hstack(parts) @ regression.coef.T + regression.intercept
    np.testing.assert_allclose(regression.logits(TEXTS), expected, rtol=1e-5, atol=1e-5)


def test_logits_of_a_text_do_not_depend_on_the_others(
    regression: WordRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also across the parts in which texts are counted."""
    together = regression.logits(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([regression.logits([text]) for text in TEXTS]))
    monkeypatch.setattr("spin.words.word_regression._PART", 2)
    np.testing.assert_array_equal(together, regression.logits(TEXTS))


def test_several_regressions_count_the_terms_of_equal_vocabularies_once(
    regression: WordRegression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are the same object or were loaded anew; logits are those of each regression alone, bit for bit."""
    loaded = WordRegression.from_tensors(regression.to_tensors())
    first, second = regression.vocabularies
    heavier = WordRegression(
        (Vocabulary(first.unit, first.terms, 2 * first.idf), second), loaded.coef, loaded.intercept
    )
    several = [regression, build_word_regression(TEXTS[:2]), loaded, build_word_regression(TEXTS, 2), heavier]
    expected = [each.logits(TEXTS) for each in several]
    counted, transform = [], Vocabulary.transform

    def record_and_transform(self: Vocabulary, texts: Sequence[str]) -> Any:
        counted.append(self.unit)
        return transform(self, texts)

    monkeypatch.setattr(Vocabulary, "transform", record_and_transform)
    for actual, alone in zip(predict_with_each(several, TEXTS), expected, strict=True):
        np.testing.assert_array_equal(actual, alone)
    assert counted == ["words", "characters"] * 3


def test_no_texts_have_no_logits(regression: WordRegression) -> None:
    assert regression.logits([]).shape == (0, 3)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.one_of(st.sampled_from(TEXTS), st.text(), st.text(alphabet="lovely crew İß\u2028\t.x", max_size=60)))
def test_contributions_of_terms_add_up_to_the_logits(text: str) -> None:
    """And every place of a term holds it: its words stand there, or the characters in one of its words."""
    fitted = build_binary()
    terms = fitted.contributions(text)
    total = fitted.intercept + np.sum([np.zeros(2), *(term.logits for term in terms)], axis=0)
    np.testing.assert_allclose(total, fitted.logits([text])[0], atol=1e-4)
    for term in terms:
        assert term.places
        pieces = [text[start:end].lower() for start, end in term.places]
        if term.unit == "words":
            assert set(pieces) == set(term.term.split(" "))
        else:
            assert all(term.term.strip() in piece for piece in pieces)


def test_arrays_hold_the_whole_regression(regression: WordRegression) -> None:
    loaded = WordRegression.from_tensors(regression.to_tensors())
    assert [v.terms for v in loaded.vocabularies] == [v.terms for v in regression.vocabularies]
    np.testing.assert_array_equal(loaded.logits(TEXTS), regression.logits(TEXTS))


def test_places_have_the_parts_of_the_contributions(regression: WordRegression) -> None:
    """Against the contributions of each text alone, whose parts are equal; for any weights of the classes."""
    draw = np.random.default_rng(0)
    one_each = np.zeros((len(TEXTS), 3))
    one_each[np.arange(len(TEXTS)), draw.integers(0, 3, len(TEXTS))] = draw.normal(size=len(TEXTS))
    for weights in (one_each, draw.normal(size=(len(TEXTS), 3))):
        found = regression.places(TEXTS, weights)
        assert (np.diff(found.owners) >= 0).all()
        for row, text in enumerate(TEXTS):
            expected: dict[tuple[int, int], float] = {}
            for term in regression.contributions(text):
                for place in term.places:
                    part = float(weights[row] @ term.logits) / len(term.places)
                    expected[place] = expected.get(place, 0.0) + part
            actual: dict[tuple[int, int], float] = {}
            own = found.owners == row
            for start, end, value in zip(found.starts[own], found.ends[own], found.sums[own], strict=True):
                actual[int(start), int(end)] = actual.get((int(start), int(end)), 0.0) + float(value)
            assert actual == pytest.approx(expected, abs=1e-5)
    assert len(regression.places([], np.empty((0, 3))).owners) == 0


def test_kept_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    regression, weights = build_word_regression(TEXTS), np.ones((len(TEXTS), 3))
    expected = regression.places(TEXTS, weights)
    monkeypatch.setattr("spin.words.token_table.CHARACTERS_KEPT", 10)
    regression = build_word_regression(TEXTS)
    np.testing.assert_array_equal(regression.places(TEXTS, weights).sums, expected.sums)
    for vocabulary in regression.vocabularies:
        vocabulary.transform(TEXTS[4:5])
        assert len(vocabulary._table) == 1
