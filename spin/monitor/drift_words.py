"""The words of documents, and those that more of some documents have than of others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_LEAST_DOCUMENTS = 3
"""documents of a group in which a word must stand, so that no word of a single text is named"""
_MOST_WORDS = 1000
"""different words that are kept of a text, the first ones"""
_SIGNIFICANCE = 0.01
"""probability that any word is named where the group does not differ from the others"""
_WORD = re.compile(r"\w+")
Words = Sequence[str]
"""the different words of a document"""


def different_words(text: str) -> tuple[str, ...]:
    """The different words of a text in lower case, in order; of a long text those at its beginning."""
    words: dict[str, None] = {}
    for match in _WORD.finditer(text):
        words[match[0].casefold()] = None
        if len(words) == _MOST_WORDS:
            break
    return tuple(words)


def frequent_words(group: Sequence[Words], others: Sequence[Words], count: int) -> tuple[str, ...]:
    """At most `count` words that more of a group of documents have than of others, the least probable first.

    The probability that a word is so frequent in the group by chance is that of Fisher's exact test (The Logic of
    Inductive Inference, 1935). It holds for few documents and for words that the others do not have. It is corrected
    for the number of words (Bonferroni) that could have been named: those of three documents, whatever their group. A
    word of fewer than three documents of the group is not named.
    """
    from scipy.stats import hypergeom  # takes a second, and the workers of a night need none of it

    here, elsewhere = (Counter(word for words in documents for word in words) for documents in (group, others))
    shared = sorted(word for word, documents in here.items() if documents >= _LEAST_DOCUMENTS)
    if not shared:
        return ()
    documents, with_word = len(group) + len(others), [here[word] + elsewhere[word] for word in shared]
    compared = sum(documents >= _LEAST_DOCUMENTS for documents in (here + elsewhere).values())
    p_values = hypergeom.sf([here[word] - 1 for word in shared], documents, with_word, len(group)).tolist()
    ranked = sorted(zip(p_values, shared, strict=True))
    return tuple(word for p_value, word in ranked[:count] if p_value < _SIGNIFICANCE / compared)
