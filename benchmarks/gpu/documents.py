"""Random documents of a few topics, with the token ids that their tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.gpu.shapes import END, PAD, START, UNKNOWN, Shape

MAX_TOKENS = 512
"""tokens per document at most, special ones included"""
TOPICS = 4
_OF_TOPIC = 0.3
"""share of a document's words that are drawn from those of its topic; the others are drawn from all words"""
_TOPIC_WORDS = 20
"""words of a topic, so few that some hundred documents tell topics apart"""
_NAMES = {PAD: "[PAD]", UNKNOWN: "[UNK]", START: "[CLS]", END: "[SEP]"}


@dataclass(frozen=True)
class Workload:
    """A distribution of the lengths of documents, in tokens, special ones included."""

    name: str
    mean: float
    shortest: int
    longest: int
    skewed: bool
    """whether lengths are log-normal, with few long documents; else all lengths are as frequent"""

    def draw_lengths(self, random: np.random.Generator, tokens: int) -> NDArray[np.int64]:
        """(n,) the lengths of as many documents as have about `tokens` tokens together, at least eight."""
        count = max(8, round(tokens / self.mean))
        if not self.skewed:
            return random.integers(self.shortest, self.longest, count, endpoint=True)
        lengths = random.lognormal(np.log(self.mean) - _SPREAD**2 / 2, _SPREAD, count)
        return lengths.round().astype(np.int64).clip(self.shortest, self.longest)


_SPREAD = 0.45
"""standard deviation of the logarithm of a skewed length"""
SHORT = Workload("tweets", 33, 6, 128, skewed=True)
LONG = Workload("longer documents", 356, 200, MAX_TOKENS, skewed=False)


@dataclass(frozen=True)
class Documents:
    """n documents, in random order."""

    texts: list[str]
    ids: list[list[int]]
    """the token ids of each, special ones included"""
    topics: NDArray[np.int64]
    """(n,) the topic of each, from 0 on"""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each."""
        return list(map(len, self.ids))

    @property
    def tokens(self) -> int:
        """The number of tokens of all together."""
        return sum(self.lengths)

    def head(self, tokens: int) -> Documents:
        """The first documents that have `tokens` tokens together, or all."""
        count = 1 + int(np.searchsorted(np.cumsum(self.lengths), tokens))
        return Documents(self.texts[:count], self.ids[:count], self.topics[:count])


def build_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """A tokenizer of words at spaces, which adds the special tokens of an encoder or of a decoder."""
    words = {name: index for index, name in _NAMES.items()} | {
        word: index for index, word in enumerate(_words(shape), len(_NAMES))
    }
    core = Tokenizer(models.WordLevel(words, unk_token=_NAMES[UNKNOWN]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A" if shape.causal else "[CLS] $A [SEP]",
        special_tokens=[(_NAMES[index], index) for index in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=MAX_TOKENS,
        pad_token=_NAMES[PAD],
        unk_token=_NAMES[UNKNOWN],
        cls_token=_NAMES[START],
        sep_token=_NAMES[END],
    )


def draw_documents(shape: Shape, lengths: NDArray[np.int64], random: np.random.Generator) -> Documents:
    """Documents of given lengths (n,) in tokens, special ones included."""
    names = _words(shape)
    topics = random.integers(0, TOPICS, len(lengths))
    counts = lengths - (1 if shape.causal else 2)
    ends = np.cumsum(counts)
    words = random.integers(0, len(names), ends[-1])
    of_topic = np.repeat(topics, counts) * _TOPIC_WORDS + random.integers(0, _TOPIC_WORDS, ends[-1])
    words = np.where(random.random(ends[-1]) < _OF_TOPIC, of_topic, words).tolist()
    spans = [words[start:stop] for start, stop in pairwise([0, *ends.tolist()])]
    return Documents([" ".join([names[w] for w in span]) for span in spans], _add_special(shape, spans), topics)


def _add_special(shape: Shape, spans: Sequence[list[int]]) -> list[list[int]]:
    end = [] if shape.causal else [END]
    return [[START, *(word + len(_NAMES) for word in span), *end] for span in spans]


def _words(shape: Shape) -> list[str]:
    return [f"w{index}" for index in range(shape.config.vocab_size - len(_NAMES))]
