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
from spin.attribution.place_shares import Places

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
_WORDS_KEPT = 1 << 16
"""words whose terms a vocabulary keeps, at most"""
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
class TermPlaces:
    """The m places of the terms of a vocabulary in some texts, those of the first text first."""

    owners: NDArray[np.int64]
    """(m,) the position of each place's text"""
    terms: NDArray[np.int64]
    """(m,) the index of the term"""
    spans: NDArray[np.int64]
    """(m, 2) (start, end) in the text"""
    values: Floats
    """(m,) the place's part of the value of the term: all places of a term in a text have equal parts"""


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
            vocabulary=self._index,
            sublinear_tf=True,
            dtype=np.float32,
            **UNITS[self.unit],
        )
        vectorizer.idf_ = self.idf
        return vectorizer

    def find_terms(self, texts: Sequence[str]) -> TermPlaces:
        """The places of the terms in n texts, one entry for each time that a term occurs in one."""
        find = self._find_words if self.unit == "words" else self._find_characters
        terms: list[NDArray[np.int64]] = []
        spans: list[NDArray[np.int64]] = []
        for text in read_part(self.unit, texts):
            lowered, origin = _lower(text)
            found, places = find(lowered)
            terms.append(found)
            spans.append(places if origin is None else origin[places])
        owners = np.repeat(np.arange(len(texts)), list(map(len, terms)))
        if not terms:
            return TermPlaces(owners, owners, np.empty((0, 2), np.int64), np.empty(0))
        return self._weigh(len(texts), owners, np.concatenate(terms), np.concatenate(spans))

    def _find_words(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The terms of a text in lower case, and the (start, end) of their places: of a word pair each of its words."""
        known, terms, spans = self._index, [], []
        before, last = "", (0, 0)
        for match in re.finditer(UNITS["words"]["token_pattern"], text):
            word, span = match.group(), match.span()
            if (index := known.get(word)) is not None:
                terms.append(index)
                spans.append(span)
            if before and (index := known.get(f"{before} {word}")) is not None:
                terms += [index, index]
                spans += [last, span]
            before, last = word, span
        return np.array(terms, np.int64), np.array(spans, np.int64).reshape(-1, 2)

    def _find_characters(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The terms of a text in lower case, and the (start, end) of the words that hold them."""
        terms, spans = [], []
        for match in re.finditer(r"\S+", text):
            terms.append(self._terms_of_word(match.group()))
            spans.append(match.span())
        if not terms:
            return np.empty(0, np.int64), np.empty((0, 2), np.int64)
        return np.concatenate(terms), np.repeat(np.array(spans, np.int64), list(map(len, terms)), axis=0)

    def _terms_of_word(self, word: str) -> NDArray[np.int64]:
        """The terms within a word, which are kept: few words make most of any text."""
        terms = self._terms_of_words.get(word)
        if terms is None:
            found = (self._index.get(term) for term in self._analyze(word))
            terms = np.array([index for index in found if index is not None], np.int64)
            if len(self._terms_of_words) >= _WORDS_KEPT:
                self._terms_of_words.clear()
            self._terms_of_words[word] = terms
        return terms

    def _weigh(
        self, texts: int, owners: NDArray[np.int64], terms: NDArray[np.int64], spans: NDArray[np.int64]
    ) -> TermPlaces:
        """The places with their parts of the values of terms, as `transform` has them."""
        places, counter = np.empty(len(terms), np.int64), np.zeros(len(self.terms), np.int64)
        ends = np.cumsum(np.bincount(owners, minlength=texts))
        for start, end in pairwise([0, *ends.tolist()]):
            of_text = terms[start:end]
            np.add.at(counter, of_text, 1)
            places[start:end] = counter[of_text]
            counter[of_text] = 0
        weights = (1 + np.log(places / self._places_at_once[terms])) * self.idf[terms]
        length = np.sqrt(np.bincount(owners, np.square(weights) / places, texts))
        return TermPlaces(owners, terms, spans, weights / length[owners] / places)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {term: index for index, term in enumerate(self.terms)}

    @cached_property
    def _places_at_once(self) -> NDArray[np.int64]:
        """The places of each term where it occurs once: a word pair has two."""
        return np.array([1 + (self.unit == "words" and " " in term) for term in self.terms], np.int64)

    @cached_property
    def _analyze(self) -> Any:
        return self._vectorizer.build_analyzer()

    @cached_property
    def _terms_of_words(self) -> dict[str, NDArray[np.int64]]:
        return {}


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
        terms: list[TermContribution] = []
        offset = 0
        for vocabulary in self.vocabularies:
            found = vocabulary.find_terms([text])
            of_terms: dict[int, list[int]] = {}
            for position, index in enumerate(found.terms.tolist()):
                of_terms.setdefault(index, []).append(position)
            for index in sorted(of_terms, key=lambda index: vocabulary.terms[index]):
                at = of_terms[index]
                logits = np.float32(found.values[at].sum()) * self.coef[:, offset + index]
                places = tuple((start, end) for start, end in found.spans[at].tolist())
                terms.append(TermContribution(vocabulary.unit, vocabulary.terms[index], logits, places))
            offset += len(vocabulary.terms)
        return terms

    def places(self, texts: Sequence[str], weights: Floats) -> Places:
        """What stands at the places of all terms in n texts: their parts of the sum of logits, by weights (n, K)."""
        parts, offset = [], 0
        for vocabulary in self.vocabularies:
            found = vocabulary.find_terms(texts)
            logits = _weighted_sum(self.coef[:, offset : offset + len(vocabulary.terms)], found, weights)
            parts.append((found.owners, *found.spans.T, found.values * logits))
            offset += len(vocabulary.terms)
        owners, starts, ends, sums = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(owners, kind="stable")
        return Places(owners[order], starts[order], ends[order], sums[order])

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


def _weighted_sum(coef: Floats, found: TermPlaces, weights: Floats) -> Floats:
    """(m,) the coefficients (K, v) of the terms at some places, summed over the classes by weights (n, K)."""
    if ((weights != 0).sum(1) <= 1).all():  # as in all heads: the logit of a class reads that of the same class
        only = np.abs(weights).argmax(1)
        return coef[only[found.owners], found.terms] * weights[np.arange(len(weights)), only][found.owners]
    total = np.zeros(len(found.terms))
    for of_class, weight in zip(coef, weights.T, strict=True):
        total += of_class[found.terms] * weight[found.owners]
    return total


def _transform(vocabularies: Sequence[Vocabulary], texts: Sequence[str]) -> Any:
    """The sparse features (n, v) of n texts."""
    from scipy.sparse import hstack

    return hstack([vocabulary.transform(texts) for vocabulary in vocabularies], format="csr")


def read_part(unit: Unit, texts: Sequence[str]) -> Sequence[str]:
    """The part of each text in which the terms of a unit are counted."""
    return texts if unit == "words" else [text[:CHARACTERS_READ] for text in texts]


def _lower(text: str) -> tuple[str, NDArray[np.int64] | None]:
    """A text in lower case, and for each of its positions and its end the position in the text; None: the same one.

    Lower case may be longer: that of one letter may be two.
    """
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered, None
    origin = [index for index, character in enumerate(text) for _ in character.lower()]
    return lowered, np.array([*origin, len(text)], np.int64)
