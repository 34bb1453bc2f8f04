"""The values of terms, against scikit-learn, bit for bit."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from spin.words.vocabulary import UNITS, Unit, Vocabulary, read_part

TEXTS = [
    "the crew was lovely, the film was fine",
    "awful crew and a broken film; don't",
    "İstanbul was Warm and lovely",
    "naïve – so   what?\nthe crew 😀😀 WAS late",
    "a b cd a b cd a",
]
SEPARATORS = " \t\n\u2028\u00a0\x1c"


@cache
def fit(unit: Unit) -> tuple[Vocabulary, Any]:
    """A vocabulary, and scikit-learn's vectorizer that has the same terms and weights."""
    oracle = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **UNITS[unit]).fit(read_part(unit, TEXTS))
    return Vocabulary(unit, tuple(oracle.get_feature_names_out()), oracle.idf_), oracle


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(TEXTS), st.text(), st.text(alphabet=f"lovelycrwİßabd.'{SEPARATORS}", max_size=60)),
        min_size=1,
        max_size=4,
    )
)
def test_values_are_those_of_scikit_learn(texts: list[str]) -> None:
    for unit in UNITS:
        vocabulary, oracle = fit(unit)
        actual = vocabulary.transform(texts)
        assert actual.shape == (len(texts), len(vocabulary.terms))
        expected = oracle.transform(read_part(unit, texts))
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual.toarray(), expected.toarray())


def test_a_pickled_vocabulary_leaves_the_tokens_behind() -> None:
    vocabulary, _ = fit("characters")
    data = pickle.dumps(vocabulary)
    vocabulary.transform(TEXTS)
    assert len(pickle.dumps(vocabulary)) == len(data)
    loaded = pickle.loads(data)
    np.testing.assert_array_equal(loaded.transform(TEXTS).toarray(), vocabulary.transform(TEXTS).toarray())
