"""Which neuron of which layer, on which word, spoke for the class: contributions that add up to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.activations.encoder import pooling_mask
from spin.arrays import Floats
from spin.backbone.hooks import HOOK_LOCK, capture
from spin.backbone.model import Backbone
from spin.backbone.pooling import token_position
from spin.heads.fitted import FittedClassifier
from spin.labels.label_space import LabelSpace
from spin.sites import FeatureColumn, Site

Place = TypeVar("Place", Site, int)


@dataclass(frozen=True)
class NeuronContribution:
    """What one selected neuron adds to the logit of a class."""

    column: FeatureColumn
    neuron: int
    contribution: float
    word: str
    """the word on which it spoke loudest"""
    value: float
    """its activation, in standard deviations above the training mean"""


@dataclass(frozen=True)
class Explanation:
    """The logits of one text as a sum over neurons, or over words, and the bias."""

    text: str
    label_space: LabelSpace
    logits: Floats
    """(K,) as the classifier gives them, calibrated"""
    bias: Floats
    """(K,) the logits of a text whose neurons are all at their training mean"""
    neurons: tuple[tuple[FeatureColumn, int], ...]
    """the p selected neurons"""
    contributions: Floats
    """(p, K) by neuron: their sum over p and the bias is the logits"""
    words: tuple[tuple[int, int], ...]
    """(start, end) in the text of each of W words; (0, 0) for a special token"""
    word_contributions: Floats
    """(W, K): the same sum, over words"""
    loudest: NDArray[np.int64]
    """(p,) the word on which each neuron spoke loudest"""
    values: Floats
    """(p,) the neurons' activations, in standard deviations above their training means"""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.label_space.classes

    @property
    def probabilities(self) -> Floats:
        """(K,)"""
        return self.label_space.probabilities(self.logits[None])[0]

    @property
    def label(self) -> str:
        """The class with the largest logit."""
        return self.classes[int(self.logits.argmax())]

    @property
    def ranked(self) -> list[int]:
        """Indices of all classes, the likeliest first."""
        return [int(k) for k in np.argsort(-self.logits, kind="stable")]

    @property
    def chosen(self) -> list[int]:
        """Indices of the predicted classes, likeliest first: one, or of a multi-label task all at or above one half.

        Thresholds of a decision are not asked.
        """
        return [k for k in self.ranked if self.logits[k] >= 0] if self.label_space.multilabel else self.ranked[:1]

    def by_site(self) -> dict[Site, Floats]:
        """(K,) by site, shallow first: their sum and the bias is the logits."""
        return self._summed([column.site for column, _ in self.neurons])

    def by_layer(self) -> dict[int, Floats]:
        """(K,) by layer: the same sum, over layers."""
        return self._summed([column.site.layer for column, _ in self.neurons])

    def _summed(self, places: Sequence[Place]) -> dict[Place, Floats]:
        return {place: self.contributions[[own == place for own in places]].sum(0) for place in sorted(set(places))}

    def word(self, index: int) -> str:
        start, end = self.words[index]
        return self.text[start:end] or "(special)"

    def top(self, count: int, label: str | None = None) -> list[NeuronContribution]:
        """The neurons that weigh most, for or against a class, by default the predicted one."""
        by_neuron = self.contributions[:, self.classes.index(label or self.label)]
        largest = np.argsort(-np.abs(by_neuron), kind="stable")[:count]
        return [self._spoke(int(i), float(by_neuron[i])) for i in largest]

    def _spoke(self, index: int, contribution: float) -> NeuronContribution:
        column, neuron = self.neurons[index]
        word, value = self.word(int(self.loudest[index])), float(self.values[index])
        return NeuronContribution(column, neuron, contribution, word, value)


def stretches(words: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """(start, end, indices) in the order of the text; words that overlap, as the bytes of one emoji may, are one.

    Words of no length, which are special tokens, are left out.
    """
    made: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(words)), key=lambda i: words[i]):
        start, end = words[index]
        if start == end:
            continue
        if made and start < made[-1][1]:
            made[-1] = made[-1][0], max(end, made[-1][1]), [*made[-1][2], index]
        else:
            made.append((start, end, [index]))
    return made


def explain(
    backbone: Backbone, fitted: FittedClassifier, label_space: LabelSpace, text: str, pooled: Floats
) -> Explanation:
    """Divide the logits of a text among neurons and among words, `pooled` (p,) being what its engine read.

    A neuron adds w (x - mean) / scale, where w is its weight in a linear head and its integrated gradient in an mlp.
    Under mean pooling each token of the content answers for its own activation and an equal part of -mean; under
    max, first and last one token answers for all of it.
    """
    encoded = backbone.tokenizer(text, truncation=True, max_length=backbone.max_tokens, return_offsets_mapping=True)
    ids, mask = backbone.batch([encoded["input_ids"] or [backbone.pad_id]])
    ids, mask = ids.to(backbone.device), mask.to(backbone.device)
    content = backbone.content(ids, mask)
    shares = _token_values(backbone, fitted, ids, mask, content, pooled)
    values = shares.sum(0) / fitted.scale
    slopes = fitted.head.slopes(values)
    weights = slopes.T / fitted.scale[:, None]
    by_token = np.einsum("tp,pk->tk", shares, weights)
    contributions = shares.sum(0)[:, None] * weights
    words, word_of = _words(encoded)
    by_word = np.zeros((len(words), len(label_space)))
    np.add.at(by_word, word_of, by_token)
    rows = fitted.selection.rows()
    return Explanation(
        text,
        label_space,
        contributions.sum(0) + fitted.head.bias,
        fitted.head.bias,
        tuple((column, neuron) for column, neuron, _ in rows),
        contributions,
        words,
        by_word,
        word_of[np.abs(shares).argmax(0)],
        values,
    )


def _token_values(
    backbone: Backbone, fitted: FittedClassifier, ids: Tensor, mask: Tensor, content: Tensor, pooled: Floats
) -> Floats:
    """(T, p): how x - mean of every feature divides over the tokens of one text."""
    selection, ends = fitted.selection, _ends(fitted)
    means = dict(zip(selection.neurons, np.split(fitted.mean, ends), strict=True))
    read_by_engine = dict(zip(selection.neurons, np.split(pooled, ends), strict=True))
    parts: dict[FeatureColumn, Floats] = {}

    def read(site: Site, values: Tensor) -> None:
        for column, neurons in selection.neurons.items():
            if column.site == site:
                chosen = values[..., torch.from_numpy(neurons).to(values.device)]
                seen = pooling_mask(column, mask, content)
                parts[column] = _divide(chosen, seen, column.pooling, means[column], read_by_engine[column])

    with HOOK_LOCK, capture(backbone, sorted({c.site for c in selection.neurons}), read) as forward:
        forward(ids, mask)
    return np.concatenate([parts[column] for column in selection.neurons], axis=1)


def _divide(values: Tensor, mask: Tensor, pooling: str, mean: Floats, pooled: Floats) -> Floats:
    """(T, m): the pooled value less its mean, at the tokens that answer for it.

    Engines round in their own ways: what this pass finds of a token is moved so that the tokens make what was pooled.
    """
    tokens = values[0].float().cpu().numpy()
    seen = mask[0].cpu().numpy()
    if pooling == "mean":
        moved = tokens + (pooled - tokens[seen].mean(0))
        return (moved - mean) * seen[:, None] / seen.sum()
    if pooling == "max":
        at = np.where(seen[:, None], tokens, -np.inf).argmax(0)
    else:
        at = np.full(tokens.shape[1], int(token_position(mask, pooling)[0]))
    divided = np.zeros_like(tokens)
    divided[at, np.arange(tokens.shape[1])] = pooled - mean
    return divided


def _ends(fitted: FittedClassifier) -> NDArray[np.int64]:
    return np.cumsum([len(n) for n in fitted.selection.neurons.values()])[:-1]


def _words(encoded: object) -> tuple[tuple[tuple[int, int], ...], NDArray[np.int64]]:
    """Spans of the words in the text, and the word (T,) of each token."""
    encoding = encoded.encodings[0]  # type: ignore[attr-defined]
    spans: list[tuple[int, int]] = []
    word_of: list[int] = []
    last: int | None = None
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        if word is not None and word == last:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
        last = word
        word_of.append(len(spans) - 1)
    return tuple(spans or [(0, 0)]), np.array(word_of or [0], np.int64)
