"""Contributions of words, and of what stands at places of texts: the one definition of what a place gives to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.attribution.text_words import Ints, TextWords, find_stretches, sum_by_text


@dataclass(frozen=True)
class Places:
    """Places of n texts, and what stands at each."""

    owners: Ints
    """(m,) the position of each place's text, ascending"""
    starts: Ints
    """(m,) position of the first character in the text"""
    ends: Ints
    """(m,) position behind the last character"""
    sums: Floats
    """(m, ...) what the place contributes"""


@dataclass(frozen=True)
class WordSums(Places):
    """The contributions of the words of n texts to the logits, each of which is a place. Those of a text follow on."""

    classes: Ints
    """(n,) the class to whose logit the words of each text contribute"""

    @classmethod
    def of_tokens(cls, classes: Ints, words: TextWords, by_token: Floats) -> WordSums:
        """The sums over the tokens (t,) of every word. Words that overlap are one; special tokens are left out."""
        owners, starts, ends, stretch_of = find_stretches(words.owners, words.starts, words.ends)
        stretch = stretch_of[words.word_of]
        inside = stretch >= 0
        return cls(owners, starts, ends, sum_by_text(by_token[inside], stretch[inside], len(owners)), classes)

    def add(self, places: Places) -> WordSums:
        """The sums with what stands at places of the texts added to the words there, or as words of their own."""
        found = add_places(self, places)
        order = np.argsort(found.owners, kind="stable")
        return WordSums(found.owners[order], found.starts[order], found.ends[order], found.sums[order], self.classes)

    @classmethod
    def concatenate(cls, parts: Sequence[WordSums]) -> WordSums:
        """The sums of the texts of several parts."""
        offsets = np.cumsum([0, *(len(part.classes) for part in parts)])
        shifted = [replace(part, owners=part.owners + offset) for part, offset in zip(parts, offsets, strict=False)]
        names = ("owners", "starts", "ends", "sums", "classes")
        return cls(*(np.concatenate([getattr(part, name) for part in shifted]) for name in names))


def add_places(words: Places, places: Places) -> Places:
    """The words with the sums of the places that lie in them.

    The characters of a place have equal parts of its sum, and a character that is in several words is of the first.
    Characters of places that are in no word, such as those beyond the limit of a backbone, are words of their own. They
    come after the others.
    """
    if not len(places.owners):
        return words
    owners, starts, ends, sums = words.owners, words.starts, words.ends, words.sums
    texts = 1 + int(max(places.owners[-1], owners[-1] if len(owners) else 0))
    lengths = np.zeros(texts, np.int64)
    np.maximum.at(lengths, owners, ends)
    np.maximum.at(lengths, places.owners, places.ends)
    bases = np.concatenate([[0], np.cumsum(lengths + 1)])  # one further character keeps the words of texts apart
    word_of = np.full(bases[-1], -1)
    at, index = _characters(bases[owners] + starts, ends - starts)
    word_of[at[::-1]] = index[::-1]  # of several words the first stays
    place_starts = bases[places.owners] + places.starts
    covered = _cover(place_starts, bases[places.owners] + places.ends, bases[-1])
    edges = np.diff(np.concatenate([[0], (covered & (word_of < 0)).astype(np.int8), [0]]))
    new_starts, new_ends = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
    at, index = _characters(new_starts, new_ends - new_starts)
    word_of[at] = len(owners) + index
    new_owners = np.searchsorted(bases, new_starts, side="right") - 1
    at, place = _characters(place_starts, places.ends - places.starts)
    parts = places.sums / (places.ends - places.starts).reshape(-1, *[1] * (places.sums.ndim - 1))
    before = np.concatenate([sums, np.zeros((len(new_starts), *sums.shape[1:]))])
    return Places(
        np.concatenate([owners, new_owners]),
        np.concatenate([starts, new_starts - bases[new_owners]]),
        np.concatenate([ends, new_ends - bases[new_owners]]),
        before + sum_by_text(parts[place], word_of[at], len(before)),
    )


def merge_places(places: Places) -> Places:
    """The places without those that follow an equal one, which then has the sum of all of these.

    As all strings of characters within a word stand at the same place, few of them are left.
    """
    if not len(places.owners):
        return places
    changes = [np.diff(each) != 0 for each in (places.owners, places.starts, places.ends)]
    first = np.concatenate([[0], 1 + np.flatnonzero(np.logical_or.reduce(changes))])
    sums = np.add.reduceat(places.sums, first)
    return Places(places.owners[first], places.starts[first], places.ends[first], sums)


def _characters(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """The position of every character of some stretches, and the index of its stretch."""
    index = np.repeat(np.arange(len(starts)), lengths)
    before = np.cumsum(lengths) - lengths
    return np.arange(len(index)) + (starts - before)[index], index


def _cover(starts: Ints, ends: Ints, count: int) -> NDArray[np.bool_]:
    """Mask (count,) of the characters that are in any of some stretches."""
    steps = np.bincount(starts, minlength=count + 1) - np.bincount(ends, minlength=count + 1)
    covered: NDArray[np.bool_] = np.cumsum(steps)[:count] > 0
    return covered
