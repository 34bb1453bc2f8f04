"""Perturbations of a text: changes that keep its class for a reader, and negation, which may change it.

Another one is a subclass of `Perturbation` and a place in `PERTURBATIONS`.
"""

from __future__ import annotations

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random
from typing import ClassVar

SEVERITIES: Mapping[int, str] = {1: "slight", 2: "moderate", 3: "strong"}

_WORD = re.compile(r"\S+")
_AUXILIARY = re.compile(
    r"\b(am|is|are|was|were|do|does|did|have|has|had|will|would|can|could|shall|should|may|might|must)\b"
    r"(?!\s+not\b|n?['’]t\b)",
    re.IGNORECASE,
)
_KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_HOMOGLYPHS = str.maketrans("aceijopsxyABCEHIJKMOPSTX", "асеіјорѕхуАВСЕНІЈКМОРЅТХ")
"""Latin letters and the Cyrillic ones that look the same"""
_ZERO_WIDTH = ("\u200b", "\u200c", "\u2060", "\u00ad")
_SPACES = ("  ", "\u00a0", "\t", "\n", "\u2003")
_NEUTRAL = (
    "This was written on a Tuesday.",
    "The page has a number at the bottom.",
    "There is a table in the next room.",
    "The clock shows a quarter past three.",
    "A bus stops at the corner.",
    "The list has seven entries.",
    "The window faces the street.",
    "It is the third message today.",
)


class Perturbation(ABC):
    """One way to change a text, at three severities."""

    name: ClassVar[str]
    description: ClassVar[str]
    """the change at each severity, for a reader of the report"""
    keeps_label: ClassVar[bool] = True
    """whether a reader would give the changed text the same class"""

    @abstractmethod
    def change(self, text: str, severity: int, rng: Random) -> str:
        """The text changed at a severity from 1 to 3; `rng` is the only source of random numbers."""

    def apply(self, texts: Sequence[str], severity: int, seed: int = 0) -> list[str]:
        """The n texts, changed at a severity from 1 to 3; one that offers nothing to change stays as it is.

        How a text is changed depends on the text and the seed alone, not on the texts beside it.
        """
        return [self.change(text, severity, Random(f"{seed} {self.name} {severity} {text}")) for text in texts]


class Typos(Perturbation):
    name = "typos"
    description = "typing errors in 5, 10 or 20 % of the words of four letters or more"

    def change(self, text: str, severity: int, rng: Random) -> str:
        share = (0.05, 0.1, 0.2)[severity - 1]
        return _change_words(text, share, rng, lambda word: self._misspell(word, rng), least=4)

    def _misspell(self, word: str, rng: Random) -> str:
        """The word with two letters swapped, or one left out, doubled or replaced by its neighbour on a keyboard."""
        at = rng.randrange(len(word) - 1)
        before, here, after = word[:at], word[at], word[at + 1 :]
        error = rng.choice(("swap", "omit", "double", "neighbour"))
        if error == "swap":
            return before + after[0] + here + after[1:]
        if error == "omit":
            return before + after
        return before + (here + here if error == "double" else self._neighbour(here, rng)) + after

    def _neighbour(self, letter: str, rng: Random) -> str:
        """A letter next to another one on a keyboard, or the same character where it is no Latin letter."""
        for row in _KEY_ROWS:
            at = row.find(letter.lower())
            if at >= 0:
                beside = rng.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
                return beside.upper() if letter.isupper() else beside
        return letter


class Case(Perturbation):
    name = "case"
    description = "lower case, upper case, or either at random per letter"

    def change(self, text: str, severity: int, rng: Random) -> str:
        if severity == 3:
            return "".join(rng.choice((letter.lower(), letter.upper())) for letter in text)
        return text.lower() if severity == 1 else text.upper()


class Homoglyphs(Perturbation):
    name = "homoglyphs"
    description = "2, 10 or 30 % of the Latin letters replaced by Cyrillic ones"

    def change(self, text: str, severity: int, rng: Random) -> str:
        places = [at for at, letter in enumerate(text) if ord(letter) in _HOMOGLYPHS]
        chosen = _choose(places, (0.02, 0.1, 0.3)[severity - 1], rng)
        return "".join(letter.translate(_HOMOGLYPHS) if at in chosen else letter for at, letter in enumerate(text))


class ZeroWidth(Perturbation):
    name = "zero_width"
    description = "a zero-width character in 5, 20 or 50 % of the words"

    def change(self, text: str, severity: int, rng: Random) -> str:
        def insert(word: str) -> str:
            at = rng.randrange(1, len(word))
            return word[:at] + rng.choice(_ZERO_WIDTH) + word[at:]

        return _change_words(text, (0.05, 0.2, 0.5)[severity - 1], rng, insert, least=2)


class WhiteSpace(Perturbation):
    name = "white_space"
    description = "10, 30 or 100 % of the spaces replaced by other white space"

    def change(self, text: str, severity: int, rng: Random) -> str:
        places = [match.start() for match in re.finditer(" ", text)]
        chosen = _choose(places, (0.1, 0.3, 1.0)[severity - 1], rng)
        return "".join(rng.choice(_SPACES) if at in chosen else letter for at, letter in enumerate(text))


class Markup(Perturbation):
    """A paragraph in HTML, in which `<`, `>` and `&` are entities."""

    name = "markup"
    description = "an HTML paragraph, with 20 % of the words bold, or 50 % links"

    def change(self, text: str, severity: int, rng: Random) -> str:
        escaped = html.escape(text, quote=False)
        if severity == 1:
            return f"<p>{escaped}</p>"
        before, after, share = ("<b>", "</b>", 0.2) if severity == 2 else ('<a href="/page">', "</a>", 0.5)
        marked = _change_words(escaped, share, rng, lambda word: f"{before}{word}{after}")
        return f"<p>{marked}</p>"


class Truncation(Perturbation):
    name = "truncation"
    description = "the first 90, 75 or 50 % of the words"

    def change(self, text: str, severity: int, rng: Random) -> str:
        words = list(_WORD.finditer(text))
        kept = max(1, round((0.9, 0.75, 0.5)[severity - 1] * len(words)))
        return text[: words[kept - 1].end()] if words else text


class Appended(Perturbation):
    name = "appended"
    description = "one, two or four neutral sentences at the end"

    def change(self, text: str, severity: int, rng: Random) -> str:
        return " ".join([text, *rng.sample(_NEUTRAL, 2 ** (severity - 1))])


class Negation(Perturbation):
    name = "negation"
    description = "one or every auxiliary verb negated, or the whole text"
    keeps_label = False

    def change(self, text: str, severity: int, rng: Random) -> str:
        if severity == 3:
            return f"It is not true that {text}"
        return _AUXILIARY.sub(lambda match: f"{match[0]} not", text, count=1 if severity == 1 else 0)


PERTURBATIONS: tuple[Perturbation, ...] = (
    Typos(),
    Case(),
    Homoglyphs(),
    ZeroWidth(),
    WhiteSpace(),
    Markup(),
    Truncation(),
    Appended(),
    Negation(),
)


def mix_perturbations(texts: Sequence[str], severity: int = 2, seed: int = 0) -> list[str]:
    """Each of n texts under one of the perturbations that keep its class, which the text and the seed choose."""
    kept = [perturbation for perturbation in PERTURBATIONS if perturbation.keeps_label]
    chosen = [Random(f"{seed} {text}").choice(kept) for text in texts]
    return [perturbation.apply([text], severity, seed)[0] for perturbation, text in zip(chosen, texts, strict=True)]


def _change_words(text: str, share: float, rng: Random, change: Callable[[str], str], *, least: int = 1) -> str:
    """The text with a share of its words changed, of those with `least` characters, and at least one."""
    words = _WORD.findall(text)
    chosen = _choose([index for index, word in enumerate(words) if len(word) >= least], share, rng)
    number = count()
    return _WORD.sub(lambda match: change(match[0]) if next(number) in chosen else match[0], text)


def _choose(places: Sequence[int], share: float, rng: Random) -> set[int]:
    """A share of some places, at least one if there are any."""
    return set(rng.sample(places, min(len(places), max(1, round(share * len(places))))))
