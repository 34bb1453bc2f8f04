"""The word regression: logits that the words of a text give without the backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.word_sums import Places, merge_places
from spin.words.vocabulary import UNITS, TermPlaces, Unit, Vocabulary

Place = tuple[int, int]
"""(start, end) in a text"""
_PART = 2_048
"""texts whose terms are counted at a time"""


@dataclass(frozen=True)
class TermContribution:
    """The contribution of a term in a text to the logits of a word regression."""

    unit: Unit
    term: str
    logits: Floats
    """(K,)"""
    places: tuple[Place, ...]
    """where the term stands in the text: each of its words, or for characters each word that holds them"""


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
        """The contributions of the terms in a text: with the intercept they add up to the logits."""
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
        """The places of all terms in n texts with their parts of the sum of logits, by weights (n, K)."""
        parts, offset = [], 0
        for vocabulary in self.vocabularies:
            found = vocabulary.find_terms(texts)
            logits = _weighted_sum(self.coef[:, offset : offset + len(vocabulary.terms)], found, weights)
            parts.append((found.owners, *found.spans.T, found.values * logits))
            offset += len(vocabulary.terms)
        owners, starts, ends, sums = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(owners, kind="stable")
        return merge_places(Places(owners[order], starts[order], ends[order], sums[order]))

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """The regression as arrays by name; `coef` as float16, in which `fit_words` has rounded it."""
        tensors: dict[str, NDArray[Any]] = {"coef": self.coef.astype(np.float16), "intercept": self.intercept}
        for vocabulary in self.vocabularies:
            # no term holds a line break, as both units end at white space
            text = "\n".join(vocabulary.terms).encode(errors="surrogatepass")
            tensors[f"{vocabulary.unit}.terms"] = np.frombuffer(text, np.uint8)
            tensors[f"{vocabulary.unit}.idf"] = vocabulary.idf
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
    groups: dict[object, list[int]] = {}
    for index, each in enumerate(regressions):
        groups.setdefault(tuple((v.unit, v.terms, v.idf.tobytes()) for v in each.vocabularies), []).append(index)
    for start in range(0, len(texts), _PART):
        part = slice(start, start + _PART)
        for group in groups.values():
            X = _transform(regressions[group[0]].vocabularies, texts[part])
            for index in group:
                logits[index][part] = X @ coefs[index] + regressions[index].intercept
    return logits


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
