"""Perturbations of a text: changes that keep its class for a reader, and negation, which may change it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

SEVERITIES: Mapping[int, str] = {1: "slight", 2: "moderate", 3: "strong"}

_WORD = re.compile(r"\S+")
_MISSPELT = 4
"""characters of the shortest word that gets a typing error"""
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


@dataclass(frozen=True)
class Perturbation:
    """One way to change a text, at three severities."""

    name: str
    description: str
    change: Callable[[str, int, Random], str]
    """the changed text of a text, a severity and a source of random numbers"""
    keeps_label: bool = True
    """whether a reader would give the changed text the same class"""

    def apply(self, texts: Sequence[str], severity: int, seed: int = 0) -> list[str]:
        """The n texts, changed at a severity from 1 to 3; one that offers nothing to change stays as it is.

        How a text is changed depends on the text and the seed alone, not on the texts beside it.
        """
        return [self.change(text, severity, Random(f"{seed} {self.name} {severity} {text}")) for text in texts]


def _add_typos(text: str, severity: int, rng: Random) -> str:
    share = (0.05, 0.1, 0.2)[severity - 1]
    return _change_words(text, share, rng, lambda word: _misspell(word, rng), least=_MISSPELT)


def _misspell(word: str, rng: Random) -> str:
    """The word with two letters swapped, one left out, one doubled, or one replaced by its neighbour on a keyboard."""
    at = rng.randrange(len(word) - 1)
    before, here, after = word[:at], word[at], word[at + 1 :]
    error = rng.choice(("swap", "omit", "double", "neighbour"))
    if error == "swap":
        return before + after[0] + here + after[1:]
    if error == "omit":
        return before + after
    return before + (here + here if error == "double" else _neighbour(here, rng)) + after


def _neighbour(letter: str, rng: Random) -> str:
    """A letter next to another one on a keyboard, or the same character where it is no Latin letter."""
    for row in _KEY_ROWS:
        at = row.find(letter.lower())
        if at >= 0:
            beside = rng.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
            return beside.upper() if letter.isupper() else beside
    return letter


def _change_case(text: str, severity: int, rng: Random) -> str:
    if severity == 3:
        return "".join(rng.choice((letter.lower(), letter.upper())) for letter in text)
    return text.lower() if severity == 1 else text.upper()


def _replace_letters(text: str, severity: int, rng: Random) -> str:
    share = (0.02, 0.1, 0.3)[severity - 1]
    places = [at for at, letter in enumerate(text) if ord(letter) in _HOMOGLYPHS]
    chosen = _choose(places, share, rng)
    return "".join(letter.translate(_HOMOGLYPHS) if at in chosen else letter for at, letter in enumerate(text))


def _insert_zero_width(text: str, severity: int, rng: Random) -> str:
    def insert(word: str) -> str:
        at = rng.randrange(1, len(word))
        return word[:at] + rng.choice(_ZERO_WIDTH) + word[at:]

    return _change_words(text, (0.05, 0.2, 0.5)[severity - 1], rng, insert, least=2)


def _change_spaces(text: str, severity: int, rng: Random) -> str:
    places = [match.start() for match in re.finditer(" ", text)]
    chosen = _choose(places, (0.1, 0.3, 1.0)[severity - 1], rng)
    return "".join(rng.choice(_SPACES) if at in chosen else letter for at, letter in enumerate(text))


def _mark_up(text: str, severity: int, rng: Random) -> str:
    """HTML: a paragraph, in which words are bold, or links at severity 3, and `<`, `>` and `&` are entities."""
    escaped = html.escape(text, quote=False)
    if severity == 1:
        return f"<p>{escaped}</p>"
    before, after, share = ("<b>", "</b>", 0.2) if severity == 2 else ('<a href="/page">', "</a>", 0.5)
    marked = _change_words(escaped, share, rng, lambda word: f"{before}{word}{after}")
    return f"<p>{marked}</p>"


def _truncate(text: str, severity: int, rng: Random) -> str:
    words = list(_WORD.finditer(text))
    kept = max(1, round((0.9, 0.75, 0.5)[severity - 1] * len(words)))
    return text[: words[kept - 1].end()] if words else text


def _append_sentences(text: str, severity: int, rng: Random) -> str:
    return " ".join([text, *rng.sample(_NEUTRAL, 2 ** (severity - 1))])


def _negate(text: str, severity: int, rng: Random) -> str:
    """`not` after the first auxiliary verb, after every one, or the whole text said not to be true."""
    if severity == 3:
        return f"It is not true that {text}"
    return _AUXILIARY.sub(lambda match: f"{match[0]} not", text, count=1 if severity == 1 else 0)


def _change_words(text: str, share: float, rng: Random, change: Callable[[str], str], *, least: int = 1) -> str:
    """The text with a share of its words changed, of those with `least` characters, and at least one."""
    words = _WORD.findall(text)
    chosen = _choose([index for index, word in enumerate(words) if len(word) >= least], share, rng)
    number = count()
    return _WORD.sub(lambda match: change(match[0]) if next(number) in chosen else match[0], text)


def _choose(places: Sequence[int], share: float, rng: Random) -> set[int]:
    """A share of some places, at least one if there are any."""
    return set(rng.sample(places, min(len(places), max(1, round(share * len(places))))))


PERTURBATIONS = (
    Perturbation("typos", "typing errors in 5, 10 or 20 % of the words of four letters or more", _add_typos),
    Perturbation("case", "lower case, upper case, or either at random per letter", _change_case),
    Perturbation("homoglyphs", "2, 10 or 30 % of the Latin letters replaced by Cyrillic ones", _replace_letters),
    Perturbation("zero_width", "a zero-width character in 5, 20 or 50 % of the words", _insert_zero_width),
    Perturbation("white_space", "10, 30 or 100 % of the spaces replaced by other white space", _change_spaces),
    Perturbation("markup", "an HTML paragraph, with 20 % of the words bold, or 50 % links", _mark_up),
    Perturbation("truncation", "the first 90, 75 or 50 % of the words", _truncate),
    Perturbation("appended", "one, two or four neutral sentences at the end", _append_sentences),
    Perturbation("negation", "one or every auxiliary verb negated, or the whole text", _negate, keeps_label=False),
)


def mix_perturbations(texts: Sequence[str], severity: int = 2, seed: int = 0) -> list[str]:
    """Each of n texts under one of the perturbations that keep its class, which the text and the seed choose."""
    kept = [perturbation for perturbation in PERTURBATIONS if perturbation.keeps_label]
    chosen = [Random(f"{seed} {text}").choice(kept) for text in texts]
    return [perturbation.apply([text], severity, seed)[0] for perturbation, text in zip(chosen, texts, strict=True)]
