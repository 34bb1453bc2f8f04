"""The reasons of predictions: what words and neurons contribute to the logit of each text's label, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spin.activations.portions import divide_texts
from spin.activations.word_reader import words_of
from spin.arrays import Floats
from spin.attribution.reasons import ReasonBuffer, Reasons
from spin.attribution.token_sums import TokenWeights
from spin.attribution.word_sums import WordSums
from spin.backbone.model import Backbone
from spin.passes.pass_member import PassMember

_BLOCK = 512
"""texts whose reasons are found at once: in batches of a pass, with a tenth of them, the calls take most of the time"""
_Batch = tuple[NDArray[np.int64], TokenWeights, WordSums]
"""indices of texts that stopped at the same classifier, the weights of their tokens, and what their words contribute"""


class ReasonSink:
    """The reasons of n texts, found batch by batch while a backbone reads them: a `WordSink`.

    `words` (n, K) are the logits of the word regression, if there is one. They may be filled in later, those of a text
    before it is weighed or stored.
    """

    def __init__(self, member: PassMember, backbone: Backbone, texts: Sequence[str], words: Floats | None) -> None:
        self.member, self.backbone, self.texts, self.words = member, backbone, texts, words
        neurons = [(str(column), neuron) for column, neuron, _ in member.fitted.selection.rows()]
        self.buffer = ReasonBuffer(texts, member.reasons, neurons)
        self._waiting: list[_Batch] = []
        self._lock = threading.Lock()

    def explains(self, index: int) -> bool:
        """Whether texts that stop after segment `index` have reasons."""
        return self.member.explains_exits or index == len(self.member.block_stops) - 1

    def weigh_tokens(self, index: int, rows: NDArray[np.int64], values: Floats) -> TokenWeights:
        """The weights of the tokens of the texts `rows`, which stop after segment `index`, for the class of each."""
        features = self.member.join_words(self.words, index, rows, values)
        return self.member.weigh_tokens(self.member.block_stops[index], features)

    def store_words(self, rows: NDArray[np.int64], weights: TokenWeights, words: WordSums) -> None:
        """Take what the words of the texts `rows` contribute; reasons are found once enough texts wait for it."""
        with self._lock:
            self._waiting.append((rows, weights, words))
            if sum(len(stopped) for stopped, _, _ in self._waiting) < _BLOCK:
                return
            waiting, self._waiting = self._waiting, []
        self._find(waiting)

    def _find(self, batches: Sequence[_Batch]) -> None:
        """Store the reasons of texts; where words are features of the head, what their terms contribute is added."""
        by_stop: dict[tuple[int, int], list[_Batch]] = {}
        for batch in batches:
            by_stop.setdefault((batch[1].contributions.shape[1], batch[1].words.shape[1]), []).append(batch)
        for of_stop in by_stop.values():
            rows = np.concatenate([stopped for stopped, _, _ in of_stop])
            contributions = np.concatenate([weights.contributions for _, weights, _ in of_stop])
            of_words = np.concatenate([weights.words for _, weights, _ in of_stop])
            words = WordSums.concatenate([each for _, _, each in of_stop])
            if of_words.any():
                assert self.member.words is not None
                words = words.add(self.member.words.places([self.texts[row] for row in rows.tolist()], of_words))
            self.buffer.store(rows, contributions, words)

    def store_unread(self, rows: NDArray[np.int64], *, by_words: bool) -> None:
        """Store the reasons of the texts `rows`, of which no neuron is read.

        They stop at the exit by words or, if not `by_words`, at the end of a classifier that reads no neurons.
        """
        if by_words and not self.member.explains_exits:
            return
        stop = self.member.stops[0 if by_words else -1]
        for portion in divide_texts(self.backbone, [len(self.texts[row]) for row in rows.tolist()]):
            block = rows[portion]
            read = np.empty((len(block), 0), np.float32) if self.words is None else self.words[block]
            weights = self.member.weigh_tokens(stop, read[:, : stop.selection.word_logits])
            words = words_of(self.backbone.tokenize([self.texts[row] for row in block.tolist()], places=True))
            none = WordSums.of_tokens(weights.classes, words, np.zeros(len(words.word_of)))
            self.store_words(block, weights, none)

    def reasons(self) -> Reasons:
        """All that was found, in the order of the texts."""
        self._find(self._waiting)
        self._waiting = []
        return self.buffer.reasons()
