"""Groups of documents that are never divided among splits: near-identical texts, or the value of a column.

A group is a 64-bit hash, so that feature stores hold no text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_LINKS_AND_MENTIONS = re.compile(r"https?://\S+|\bwww\.\S+|(?:\b(?:rt|mt|via)\s+)?(?<!\w)@\w+")
"""links, and mentions of users together with the mark of a forwarded message before them"""
_SEPARATORS = re.compile(r"[\W_]+")
_VARIATIONS = range(0xFE00, 0xFE10)
"""marks that choose how a symbol looks, not what is read"""


def hash_text(text: str) -> int:
    """The 64-bit hash of a text, the same for near-identical texts.

    Two texts are near-identical if they have the same words and numbers in the same order. Upper and lower case and
    forms of a character that Unicode holds compatible (NFKC) make no difference. Nor do punctuation, symbols, white
    space, links and mentions of users. Numbers do, since in some corpora they are all that differs.
    """
    return _hash("text", normalize_text(text))


def normalize_text(text: str) -> str:
    """The words and numbers of a text in lower case, with one space between them; if it has none, all of the text."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SEPARATORS.sub(_keep_marks, _LINKS_AND_MENTIONS.sub(" ", folded)).strip() or " ".join(folded.split())


def _keep_marks(separator: re.Match[str]) -> str:
    """A space in place of a separator, without the marks at its start: vowel signs of many scripts are no letters."""
    found = separator[0]
    if found.isascii():
        return " "
    marks = next((at for at, character in enumerate(found) if not _is_mark(character)), len(found))
    return found[:marks] + " " * (marks < len(found))


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Mc") and ord(character) not in _VARIATIONS


def hash_group(value: str) -> int:
    """The 64-bit hash of the value of a group column; values count as they are."""
    return _hash("group", value)


def choose_group(text_hash: int, value: str | None) -> int:
    """The group of a document: the hash of its value of the group column, or of its text if it has none."""
    return text_hash if value is None else hash_group(value)


def _hash(kind: str, text: str) -> int:
    digest = hashlib.blake2b(f"{kind}:{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)
