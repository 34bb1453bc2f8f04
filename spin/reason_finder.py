"""The reasons of predictions: what words and neurons contribute to the logit of each text's label, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin.activations.portions import divide_texts
from spin.activations.word_reader import words_of
from spin.arrays import Floats
from spin.attribution.reasons import ReasonBuffer, Reasons
from spin.attribution.token_sums import TokenWeights
from spin.attribution.word_sums import WordSums
from spin.backbone.model import Backbone
from spin.pass_member import PassMember

_BLOCK = 512
"""texts whose reasons are found at once: in batches of a pass, with a tenth of them, the calls take most of the time"""


class ReasonSink:
    """The reasons of n texts, found batch by batch while a backbone reads them: a `WordSink`.

    `words` (n, K) are the logits of the word regression, if there is one. They may be filled in later, those of a text
    before it is weighed or stored.
    """

    def __init__(self, member: PassMember, backbone: Backbone, texts: Sequence[str], words: Floats | None) -> None:
        self.member, self.backbone, self.texts, self.words = member, backbone, texts, words
        neurons = [(str(column), neuron) for column, neuron, _ in member.fitted.selection.rows()]
        self.buffer = ReasonBuffer(texts, member.reasons, neurons)
        self._waiting: list[_Stopped] = []
        self._lock = threading.Lock()

    def weigh_tokens(self, index: int, rows: NDArray[np.int64], values: Floats) -> TokenWeights:
        """The weights of the tokens of the texts `rows`, which stop after segment `index`, for the class of each."""
        return self.member.weigh_values(self.words, index, rows, values)

    def store_words(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Take what the words of the texts `rows` contribute; reasons are found once enough texts wait for it."""
        with self._lock:
            self._waiting.append(_Stopped(rows, weights.contributions, weights.words, words))
            if sum(len(batch.rows) for batch in self._waiting) < _BLOCK:
                return
            waiting, self._waiting = self._waiting, []
        self._find(waiting)

    def _find(self, batches: Sequence[_Stopped]) -> None:
        """Store the reasons of texts; where words are features of the head, what their terms contribute is added."""
        by_stop: dict[tuple[int, int], list[_Stopped]] = {}
        for batch in batches:
            by_stop.setdefault((batch.contributions.shape[1], batch.of_words.shape[1]), []).append(batch)
        for block in map(_Stopped.concatenate, by_stop.values()):
            words = block.words
            if block.of_words.any():
                assert self.member.words is not None
                places = self.member.words.places([self.texts[row] for row in block.rows.tolist()], block.of_words)
                words = words.add(places)
            self.buffer.store(block.rows, block.contributions, words)

    def store_unread(self, rows: NDArray[np.int64], *, by_words: bool) -> None:
        """Store the reasons of the texts `rows`, of which no neuron is read.

        They stop at the exit by words or, if not `by_words`, at the end of a classifier that reads no neurons.
        """
        stop = self.member.stops[0 if by_words else -1]
        for portion in divide_texts(self.backbone, [len(self.texts[row]) for row in rows.tolist()]):
            block = rows[portion]
            read = np.empty((len(block), 0), np.float32) if self.words is None else self.words[block]
            weights = self.member.weigh_tokens(stop, read[:, : stop.selection.words])
            words = words_of(self.backbone.tokenize([self.texts[row] for row in block.tolist()], places=True))
            none = WordSums.of_tokens(weights.classes, words, np.zeros(len(words.word_of)))
            self.store_words(block, weights, none)

    def reasons(self) -> Reasons:
        """All that was found, in the order of the texts."""
        self._find(self._waiting)
        self._waiting = []
        return self.buffer.reasons()


@dataclass(frozen=True)
class _Stopped:
    """Texts that stopped at the same classifier, and what contributes to the logit of the class of each."""

    rows: NDArray[np.int64]
    """(n,) indices of the texts"""
    contributions: Floats
    """(n, p) contributions of neurons"""
    of_words: Floats
    """(n, K) contribution of a unit of each of the words' logits"""
    words: WordSums
    """contributions of words through neurons"""

    @classmethod
    def concatenate(cls, parts: Sequence[_Stopped]) -> _Stopped:
        """The texts of several batches."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.contributions for part in parts]),
            np.concatenate([part.of_words for part in parts]),
            WordSums.concatenate([part.words for part in parts]),
        )
