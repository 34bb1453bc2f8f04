"""The vocabulary of a word regression: its terms, their weights, and where they stand in texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np

from spin.arrays import Floats
from spin.attribution.text_words import Ints
from spin.words.token_table import Entry, TokenTable

Unit = Literal["words", "characters"]
"""unit that the terms of a vocabulary are made of"""
UNITS: Mapping[Unit, Mapping[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w\w+\b"},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 4)},
}
"""arguments of scikit-learn's vectorizers: words and word pairs, and strings of 3 or 4 characters within words"""
CHARACTERS_READ = 1_000
"""characters at the start of a text whose strings are counted; its words are counted to the end"""
UNKNOWN = -1
"""number of a word that is in no term, and the term that words make which are no term"""


@dataclass(frozen=True)
class TermPlaces:
    """The m places of the terms of a vocabulary in some texts, those of the first text first."""

    owners: Ints
    """(m,) the position of each place's text"""
    terms: Ints
    """(m,) the index of the term"""
    spans: Ints
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
        """The sparse matrix (n, v) of the terms of n texts, as scikit-learn's TfidfVectorizer computes it."""
        from scipy.sparse import csr_matrix

        owners, _, entries = self._read([text.lower().split() for text in read_part(self.unit, texts)])
        index, terms = self._match(owners, entries)
        counts = csr_matrix((np.ones(len(terms), np.float32), (owners[index], terms)), (len(texts), len(self.terms)))
        return self.weigh(counts)

    def weigh(self, counts: Any) -> Any:
        """The sparse matrix (n, v) of (1 + log count) * idf from float32 counts, each row scaled to length 1."""
        from sklearn.feature_extraction.text import TfidfTransformer  # takes a second; a model without words needs none

        transformer = TfidfTransformer(sublinear_tf=True)
        transformer.idf_ = self.idf
        return transformer.transform(counts)

    def find_terms(self, texts: Sequence[str]) -> TermPlaces:
        """The places of the terms in n texts, one entry for each time that a term occurs in one."""
        lowered = [_lower(text) for text in read_part(self.unit, texts)]
        split = [text.split() for text, _ in lowered]
        owners, tokens, entries = self._read(split)
        index, terms = self._match(owners, entries)
        pairs = self._places_at_once[terms] == 2
        index, terms = np.append(index, index[pairs] + 1), np.append(terms, terms[pairs])
        order = np.argsort(index, kind="stable")
        index, terms = index[order], terms[order]
        starts = _find_starts([text for text, _ in lowered], split)
        spans = starts[tokens[index], None] + entries[index, 1:]
        owners = owners[index]
        for row, (_, origin) in enumerate(lowered):
            if origin is not None:
                spans[owners == row] = origin[spans[owners == row]]
        return TermPlaces(owners, terms, spans, self._part_values(len(texts), owners, terms))

    def _read(self, tokens: Sequence[list[str]]) -> tuple[Ints, Ints, Ints]:
        """The entries (m, 3) of `_analyze` in the tokens of n texts, after the positions (m,) of texts and tokens."""
        entries, at = self._table.look_up(list(chain.from_iterable(tokens)))
        return np.repeat(np.arange(len(tokens)), list(map(len, tokens)))[at], at, entries

    def _match(self, owners: Ints, entries: Ints) -> tuple[Ints, Ints]:
        """The terms that occur, and the index of each term's entry; a word pair has the index of its first word."""
        numbers = entries[:, 0]
        if self.unit == "characters":
            return np.arange(len(numbers)), numbers
        lexicon = self._lexicon
        terms = lexicon.terms[numbers]
        single = np.flatnonzero(terms >= 0)
        first = np.flatnonzero((owners[1:] == owners[:-1]) & (numbers[1:] >= 0) & (numbers[:-1] >= 0))
        found = lexicon.find_pairs(numbers[first], numbers[first + 1])
        first = first[found >= 0]
        return np.append(single, first), np.append(terms[single], found[found >= 0])

    def _part_values(self, texts: int, owners: Ints, terms: Ints) -> Floats:
        """(m,) the parts that places have of the values of their terms, as `transform` computes these."""
        places, counter = np.empty(len(terms), np.int64), np.zeros(len(self.terms), np.int64)
        ends = np.cumsum(np.bincount(owners, minlength=texts))
        for start, end in pairwise([0, *ends.tolist()]):
            of_text = terms[start:end]
            np.add.at(counter, of_text, 1)
            places[start:end] = counter[of_text]
            counter[of_text] = 0
        weights = (1 + np.log(places / self._places_at_once[terms])) * self.idf[terms]
        length = np.sqrt(np.bincount(owners, np.square(weights) / places, texts))
        return np.asarray(weights / length[owners] / places)

    def _analyze(self, token: str) -> list[Entry]:
        """The number, start and end of each word of a token in lower case, or of each term of characters."""
        if self.unit == "words":
            number = self._lexicon.numbers.get
            words = re.finditer(UNITS["words"]["token_pattern"], token)
            return [(number(word.group(), UNKNOWN), *word.span()) for word in words]
        terms = map(self._index.get, _strings_of(token))
        return [(term, 0, len(token)) for term in terms if term is not None]

    @cached_property
    def _table(self) -> TokenTable:
        return TokenTable(self._analyze)

    @cached_property
    def _lexicon(self) -> _Lexicon:
        return _Lexicon.of(self.terms)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {term: index for index, term in enumerate(self.terms)}

    @cached_property
    def _places_at_once(self) -> Ints:
        """The places of each term where it occurs once: a word pair has two."""
        return np.array([1 + (self.unit == "words" and " " in term) for term in self.terms], np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the tables that each process computes for itself, which are larger."""
        return {"unit": self.unit, "terms": self.terms, "idf": self.idf}


@dataclass(frozen=True)
class _Lexicon:
    """The words that occur in the terms of a vocabulary of words, by number, and the terms that they make."""

    numbers: dict[str, int]
    terms: Ints
    """(w + 1,) the term that is each word alone, `UNKNOWN` if none is; the last entry stands for unknown words"""
    pairs: Ints
    """(p,) the numbers of both words of each pair as one, ascending"""
    terms_of_pairs: Ints
    """(p,) the term that is each of these pairs"""

    @classmethod
    def of(cls, terms: Sequence[str]) -> _Lexicon:
        """The lexicon of terms, each a word or two words with a space between them."""
        words = [term.split(" ") for term in terms]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(chain.from_iterable(words)))}
        alone = np.full(len(numbers) + 1, UNKNOWN)
        pairs: list[tuple[int, int]] = []
        for term, own in enumerate(words):
            if len(own) == 1:
                alone[numbers[own[0]]] = term
            else:
                pairs.append((numbers[own[0]] * len(numbers) + numbers[own[1]], term))
        keys, of_pairs = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
        return cls(numbers, alone, keys, of_pairs)

    def find_pairs(self, first: Ints, second: Ints) -> Ints:
        """(m,) the term that two known words make, by their numbers (m,) each; `UNKNOWN` if they make none."""
        if not len(self.pairs):
            return np.full(len(first), UNKNOWN)
        keys = first * len(self.numbers) + second
        at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        return np.where(self.pairs[at] == keys, self.terms_of_pairs[at], UNKNOWN)


def read_part(unit: Unit, texts: Sequence[str]) -> Sequence[str]:
    """The part of each text in which the terms of a unit are counted."""
    return texts if unit == "words" else [text[:CHARACTERS_READ] for text in texts]


def _strings_of(token: str) -> list[str]:
    """The strings of characters of a token, with a space on either side, as scikit-learn's `char_wb` finds them.

    What is not longer than a string is one string, and is counted once.
    """
    padded, strings = f" {token} ", []
    shortest, longest = UNITS["characters"]["ngram_range"]
    for length in range(shortest, longest + 1):
        strings += [padded[start : start + length] for start in range(max(1, len(padded) - length + 1))]
        if len(padded) <= length:
            break
    return strings


def _find_starts(texts: Sequence[str], tokens: Sequence[list[str]]) -> Ints:
    """The start of each token in its text, by the texts and their tokens, which white space divides."""
    lengths = np.fromiter(map(len, chain.from_iterable(tokens)), np.int64)
    ends = np.cumsum([0, *map(len, tokens)])
    before = np.concatenate([[0], np.cumsum(lengths + 1)])  # where each token starts if a space stands between any two
    starts = before[:-1] - np.repeat(before[ends[:-1]], np.diff(ends))
    for row in np.flatnonzero(np.diff(before[ends]) - 1 != [len(text) for text in texts]).tolist():
        starts[ends[row] : ends[row + 1]] = [match.start() for match in re.finditer(r"\S+", texts[row])]
    return starts


def _lower(text: str) -> tuple[str, Ints | None]:
    """A text in lower case, and for each of its positions and its end the position in the text; None: the same one.

    Lower case may be longer: that of one letter may be two.
    """
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered, None
    origin = [index for index, character in enumerate(text) for _ in character.lower()]
    return lowered, np.array([*origin, len(text)], np.int64)
