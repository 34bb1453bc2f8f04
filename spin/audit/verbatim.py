"""Verbatim leaks: words that stand in one training document alone, and in the files of a trained model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_WORD = re.compile(r"\w{8,}")
"""long enough that a match is seldom chance"""
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
MOST_NAMED = 20
"""words that a report names"""


@dataclass(frozen=True)
class VerbatimLeaks:
    """Words of single documents that were found in files: natural canaries, since each betrays one document."""

    canaries: int
    """words of eight characters or more that are not common and occur in one training document alone"""
    leaked: int
    """canaries that occur in any file"""
    found: Mapping[str, tuple[str, ...]]
    """canaries that occur in a file, by file, at most 20 each; files without any are left out"""
    control: int
    """words of documents that nothing was learned from, and that no training document has"""
    control_found: int
    """words of the control that occur in the files, by chance"""


def find_verbatim(
    train_texts: Iterable[str], other_texts: Iterable[str], files: Mapping[str, bytes], common: Collection[str] = ()
) -> VerbatimLeaks:
    """Look for the unique words of training texts, and for those of other texts, in the contents of files by name.

    Words of the collection `common` do not count: files hold them anyway. Words are compared in lower case, in files as
    in texts. Escapes of JSON count as the letters that they stand for; bytes that are not UTF-8 separate words.
    """
    counts = Counter(word for text in train_texts for word in _words(text))
    others = Counter(word for text in other_texts for word in _words(text))
    left_out = set(common)
    canaries = {word for word, documents in counts.items() if documents == 1 and word not in others} - left_out
    control = set(others) - counts.keys() - left_out
    found: dict[str, tuple[str, ...]] = {}
    leaked, by_chance = set[str](), set[str]()
    for name, content in files.items():
        present = _words(_ESCAPE.sub(lambda code: chr(int(code[1], 16)), content.decode("utf-8", errors="replace")))
        by_chance |= present & control
        leaked |= present & canaries
        if hits := present & canaries:
            found[name] = tuple(sorted(hits)[:MOST_NAMED])
    return VerbatimLeaks(len(canaries), len(leaked), found, len(control), len(by_chance))


def _words(text: str) -> set[str]:
    return set(map(str.lower, _WORD.findall(text)))
