"""Word recovery: how many words of a text an attacker can read back from numbers that were stored about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.feature_selection import chi2
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets

_PENALTIES = np.geomspace(1e-5, 1, 11)
"""penalties that are tried, as shares of the sum of squares of all standardised numbers"""

LEAST_DOCUMENTS = 5
"""least number of the attacker's documents in which a word must occur; the attack cannot know rarer ones"""
_MOST_WORDS, _LEAST_WORDS = 3000, 50
_CLASS_WORDS = 100
"""words that depend most on the class, which the attack does not count: what a classifier reads must reveal them"""
BANDS = {"rare": (LEAST_DOCUMENTS, 9), "common": (10, 49), "frequent": (50, None)}
"""bands of words by the number of the attacker's documents that they occur in"""
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Recovery:
    """The success of an attack on texts that it has not seen: shares of the words that occur, from 0 to 1."""

    every: float
    by_band: Mapping[str, float]
    """share recovered, by the names in `BANDS`; bands without words are left out"""
    words: int
    """words in the texts that were to be recovered, each once per text"""


@dataclass(frozen=True)
class WordAttack:
    """An attack on the words of some texts, by someone who knows other texts with the same kinds of numbers."""

    words: Sequence[str]
    """the v words that are looked for"""
    known: csr_matrix
    """(n, v) which words occur in each of the attacker's texts"""
    judged: csr_matrix
    """(m, v) which words occur in each of the texts that are attacked"""

    @classmethod
    def of(cls, known: Sequence[str], y: Targets, judged: Sequence[str], label_space: LabelSpace) -> WordAttack:
        """The attack on the words of the judged texts; `y` are the targets of the known ones.

        Raises UserError as `choose_words` does.
        """
        words = choose_words(known, y, label_space)
        return cls(words, *(word_presence(texts, words) for texts in (known, judged)))

    @property
    def documents(self) -> NDArray[np.int64]:
        """(v,) documents of the attacker in which each word occurs."""
        return np.asarray(self.known.sum(axis=0), np.int64).ravel()

    def recover(self, known: Floats, judged: Floats) -> Recovery:
        """The recovery from numbers of the judged texts (m, d), given those of the attacker's texts (n, d)."""
        return self._count_hits(predict_targets(known, self.known.toarray(), judged))

    def recover_share(self, known: Floats, judged: Floats) -> float:
        """The share of all words that `recover` recovers."""
        return self.recover(known, judged).every

    def recover_by_frequency(self) -> Recovery:
        """The recovery without any numbers: the most frequent words are named in every text."""
        return self._count_hits(np.broadcast_to(self.documents.astype(np.float32), self.judged.shape))

    def _count_hits(self, scores: Floats) -> Recovery:
        """The recovery by the predicted presence (m, v) of the words in the judged texts.

        Of a text with k words the attack names the k words with the largest presence. It is given their number, which
        the length of a text roughly shows.
        """
        documents, truth = self.documents, self.judged.toarray() > 0
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
        hits = truth & (ranks < truth.sum(axis=1, keepdims=True))
        by_band = {}
        for name, (low, high) in BANDS.items():
            band = (documents >= low) & (documents <= (high or np.inf))
            if truth[:, band].any():
                by_band[name] = float(hits[:, band].sum() / truth[:, band].sum())
        return Recovery(float(hits.sum() / max(1, truth.sum())), by_band, int(truth.sum()))


def choose_words(texts: Sequence[str], y: Targets, label_space: LabelSpace) -> list[str]:
    """The most frequent content words of the attacker's texts, without those that depend most on the class.

    Content words have three letters or more and are no English stop words. How much a word depends on the class is
    measured by the chi-square statistic of its presence; the names of the classes are left out too. Raises UserError
    where fewer than 50 words are left.
    """
    counts = Counter(word for text in texts for word in content_words(text))
    names = {word for name in label_space.classes for word in content_words(name)}
    listed = [w for w, n in counts.most_common(_MOST_WORDS + _CLASS_WORDS) if n >= LEAST_DOCUMENTS]
    listed = [word for word in listed if word not in names]
    class_words = min(_CLASS_WORDS, len(listed) // 4)
    if len(listed) - class_words < _LEAST_WORDS:
        raise UserError(
            f"found {len(listed) - class_words} content words that {LEAST_DOCUMENTS} of {len(texts):,} texts have; "
            f"expected at least {_LEAST_WORDS}: take more documents, in a language that puts spaces between words"
        )
    indicator = label_space.indicator(y)
    statistics, _ = chi2(word_presence(texts, listed), indicator[:, indicator.any(axis=0)])
    of_class = set(np.argsort(-statistics, kind="stable")[:class_words].tolist())
    return [word for k, word in enumerate(listed) if k not in of_class][:_MOST_WORDS]


def content_words(text: str) -> set[str]:
    """The words of three letters or more, in lower case, that are no English stop words."""
    return {word for word in map(str.lower, _WORD.findall(text)) if word not in ENGLISH_STOP_WORDS}


def word_presence(texts: Sequence[str], words: Sequence[str]) -> csr_matrix:
    """(n, v) which of the words occur in each text."""
    return CountVectorizer(analyzer=content_words, vocabulary=words, dtype=np.float32).transform(texts)


def predict_targets(known: Floats, targets: Floats, judged: Floats) -> Floats:
    """(m, v) the targets of numbers (m, d), by a regression on numbers (n, d) whose targets (n, v) are known.

    The penalty is the one with the least leave-one-out error over all targets.
    """
    regression = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES * known.size))
    predicted: Floats = regression.fit(known, targets).predict(judged)
    return predicted.reshape(len(judged), -1)
