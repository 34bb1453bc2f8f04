"""Word regressions with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from spin.words.vocabulary import UNITS, Vocabulary
from spin.words.word_regression import WordRegression


def build_word_regression(texts: Sequence[str], classes: int = 3) -> WordRegression:
    """Return a regression on all terms of some texts."""
    draw = np.random.default_rng(0)
    vocabularies = []
    for unit, arguments in UNITS.items():
        vectorizer = TfidfVectorizer(**arguments).fit(texts)
        idf = vectorizer.idf_.astype(np.float32)
        vocabularies.append(Vocabulary(unit, tuple(vectorizer.get_feature_names_out()), idf))
    width = sum(len(vocabulary.terms) for vocabulary in vocabularies)
    coef = draw.normal(size=(classes, width)).astype(np.float16).astype(np.float32)
    return WordRegression(tuple(vocabularies), coef, draw.normal(size=classes).astype(np.float32))
