"""The word regression: logits that the words of a text give without the backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats

Unit = Literal["words", "characters"]
"""what the terms of a vocabulary are made of"""
Place = tuple[int, int]
"""(start, end) in a text"""
UNITS: Mapping[Unit, Mapping[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w\w+\b"},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 4)},
}
"""arguments of scikit-learn's vectorizers: words and word pairs, and strings of 3 or 4 characters within words"""
CHARACTERS_READ = 1_000
"""characters at the start of a text whose strings are counted; its words are counted to the end"""
_PART = 2_048
"""texts whose terms are counted at a time"""


@dataclass(frozen=True)
class TermContribution:
    """What a term in a text adds to the logits of a word regression."""

    unit: Unit
    term: str
    logits: Floats
    """(K,)"""
    places: tuple[Place, ...]
    """where the term stands in the text: each of its words, or for characters each word that holds them"""


@dataclass(frozen=True)
class Vocabulary:
    """The terms of one unit, with the weights that make a vector of length 1 of the terms of a text."""

    unit: Unit
    terms: tuple[str, ...]
    idf: Floats
    """(v,) inverse document frequency, as scikit-learn defines it"""

    def transform(self, texts: Sequence[str]) -> Any:
        """The sparse matrix (n, v) of the terms of n texts: (1 + log count) * idf, each row with length 1."""
        return self._vectorizer.transform(read_part(self.unit, texts))

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second; a model without words needs none

        vectorizer = TfidfVectorizer(
            vocabulary={term: index for index, term in enumerate(self.terms)},
            sublinear_tf=True,
            dtype=np.float32,
            **UNITS[self.unit],
        )
        vectorizer.idf_ = self.idf
        return vectorizer

    def places(self, text: str) -> dict[str, list[Place]]:
        """For each term in a text its places, one entry for each time that it occurs in one."""
        [read] = read_part(self.unit, [text])
        lowered, origin = _lower(read)
        found: dict[str, list[Place]] = {}
        if self.unit == "words":
            words = [(m.group(), m.span()) for m in re.finditer(UNITS["words"]["token_pattern"], lowered)]
            for word, span in words:
                found.setdefault(word, []).append(span)
            for (first, before), (second, after) in pairwise(words):
                found.setdefault(f"{first} {second}", []).extend([before, after])
        else:
            analyze = self._vectorizer.build_analyzer()
            for match in re.finditer(r"\S+", lowered):
                for term in analyze(match.group()):
                    found.setdefault(term, []).append(match.span())
        known = found.keys() & self._vectorizer.vocabulary.keys()
        return {term: [(origin[a], origin[b]) for a, b in found[term]] for term in sorted(known)}


@dataclass(frozen=True)
class WordRegression:
    """Logistic regression on the terms of a text: words, word pairs, and strings of characters within words.

    Multinomial, or one regression per class in a multi-label task.
    """

    vocabularies: tuple[Vocabulary, ...]
    coef: Floats
    """(K, v) for the terms of all vocabularies, one after the other"""
    intercept: Floats
    """(K,)"""

    def __len__(self) -> int:
        """Number of terms."""
        return self.coef.shape[1]

    def logits(self, texts: Sequence[str]) -> Floats:
        """(n, K) logits of n texts, which do not depend on the other texts."""
        return predict_with_each([self], texts)[0]

    def contributions(self, text: str) -> list[TermContribution]:
        """What each term in a text adds to its logits: the sum, plus the intercept, is the logits."""
        row = _transform(self.vocabularies, [text])
        values = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
        terms: list[TermContribution] = []
        offset = 0
        for vocabulary in self.vocabularies:
            places, index_of = vocabulary.places(text), {term: i for i, term in enumerate(vocabulary.terms)}
            for term, of_term in places.items():
                index = offset + index_of[term]
                logits = values[index] * self.coef[:, index]
                terms.append(TermContribution(vocabulary.unit, term, logits, tuple(of_term)))
            offset += len(vocabulary.terms)
        return terms

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The regression as arrays by name; `coef` as float16, in which `fit_words` has rounded it."""
        tensors: dict[str, NDArray[Any]] = {"coef": self.coef.astype(np.float16), "intercept": self.intercept}
        for vocabulary in self.vocabularies:
            text = "\n".join(vocabulary.terms).encode(
                errors="surrogatepass"
            )  # no term holds a line break, as both units end at white space
            tensors |= {
                f"{vocabulary.unit}.terms": np.frombuffer(text, np.uint8),
                f"{vocabulary.unit}.idf": vocabulary.idf,
            }
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> WordRegression:
        """The regression of the arrays that `to_tensors` returned. Raises KeyError if one is missing."""
        vocabularies = tuple(
            Vocabulary(
                unit,
                tuple(tensors[f"{unit}.terms"].tobytes().decode(errors="surrogatepass").split("\n")),
                tensors[f"{unit}.idf"],
            )
            for unit in UNITS
            if f"{unit}.idf" in tensors
        )
        return cls(vocabularies, tensors["coef"].astype(np.float32), tensors["intercept"])


def predict_with_each(regressions: Sequence[WordRegression], texts: Sequence[str]) -> list[Floats]:
    """The logits (n, K) of n texts by each of several regressions; terms of equal vocabularies are counted once."""
    logits = [np.empty((len(texts), len(each.intercept)), np.float32) for each in regressions]
    coefs = [np.ascontiguousarray(each.coef.T) for each in regressions]
    groups = _group_by_vocabularies(regressions)
    for start in range(0, len(texts), _PART):
        part = slice(start, start + _PART)
        for group in groups:
            X = _transform(regressions[group[0]].vocabularies, texts[part])
            for index in group:
                logits[index][part] = X @ coefs[index] + regressions[index].intercept
    return logits


def _group_by_vocabularies(regressions: Sequence[WordRegression]) -> list[list[int]]:
    """The indices of the regressions, those with equal vocabularies together."""
    groups: list[list[int]] = []
    for index, each in enumerate(regressions):
        equal = (group for group in groups if _equal(regressions[group[0]].vocabularies, each.vocabularies))
        if (group := next(equal, None)) is None:
            groups.append(group := [])
        group.append(index)
    return groups


def _equal(some: Sequence[Vocabulary], others: Sequence[Vocabulary]) -> bool:
    """Whether the vocabularies have the same units, terms and weights."""
    return some is others or (
        len(some) == len(others)
        and all(
            (a.unit, a.terms) == (b.unit, b.terms) and np.array_equal(a.idf, b.idf)
            for a, b in zip(some, others, strict=True)
        )
    )


def _transform(vocabularies: Sequence[Vocabulary], texts: Sequence[str]) -> Any:
    """The sparse features (n, v) of n texts."""
    from scipy.sparse import hstack

    return hstack([vocabulary.transform(texts) for vocabulary in vocabularies], format="csr")


def read_part(unit: Unit, texts: Sequence[str]) -> Sequence[str]:
    """The part of each text in which the terms of a unit are counted."""
    return texts if unit == "words" else [text[:CHARACTERS_READ] for text in texts]


def _lower(text: str) -> tuple[str, list[int]]:
    """A text in lower case, and for each of its positions and its end the position in the text.

    Lower case may be longer: that of one letter may be two.
    """
    origin = [index for index, character in enumerate(text) for _ in character.lower()]
    return text.lower(), [*origin, len(text)]
