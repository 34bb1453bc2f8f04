"""Explanations: the contributions of neurons, terms and words to the logits of one text, which add up exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin.activations.engines.encoder import pooling_mask
from spin.arrays import Floats
from spin.attribution.place_shares import Places, add_places
from spin.attribution.text_words import TextWords, group_tokens, token_places
from spin.attribution.token_shares import find_maximum, share_mean, share_single, sum_by_text
from spin.backbone.hooks import HOOK_LOCK, capture_sites
from spin.backbone.model import Backbone
from spin.backbone.pooling import token_position
from spin.backbone.windows import context_of
from spin.heads.decision import Decision
from spin.heads.fitted import FittedClassifier
from spin.labels.label_space import LabelSpace
from spin.settings import DecisionSettings
from spin.sites import BY_WORDS, FeatureColumn, Site, exit_name
from spin.words.word_regression import Place, TermContribution, WordRegression

Where = TypeVar("Where", Site, int)
_EDGES = re.compile(r"^\W+|\W+$")
"""what is no part of a word at its ends"""


@dataclass(frozen=True)
class NeuronContribution:
    """The contribution of one selected neuron to the logit of a class."""

    column: FeatureColumn
    """the site and the pooling under which the neuron is read"""
    neuron: int
    """index within the site"""
    contribution: float
    """to the logit"""
    word: str
    """the word with the largest share of the contribution"""
    value: float
    """activation, in standard deviations above the training mean"""


@dataclass(frozen=True)
class Explanation:
    """The logits of one text as a sum of the bias and contributions, for K classes.

    The contributions are those of p neurons and of the terms of the word regression, or those of W words, which share
    out both.
    """

    text: str
    label_space: LabelSpace
    logits: Floats
    """(K,) calibrated logits, as the classifier returns them"""
    bias: Floats
    """(K,) logits of a text without terms whose neurons are all at their training mean"""
    neurons: tuple[tuple[FeatureColumn, int], ...]
    """the p selected neurons, as (feature column, index within the site)"""
    contributions: Floats
    """(p, K) per neuron: the sum over p, plus that of the terms and the bias, is the logits"""
    words: tuple[tuple[int, int], ...]
    """(start, end) in the text, of each of W words; (0, 0) for a special token"""
    word_contributions: Floats
    """(W, K) per word: the sum over W, plus the bias, is the logits"""
    loudest: NDArray[np.int64]
    """(p,) index of the word with the largest share of each neuron's contribution"""
    values: Floats
    """(p,) activations of the neurons, in standard deviations above their training means"""
    terms: tuple[TermContribution, ...] = ()
    """the terms of the word regression in the text; none for a classifier that does not read words"""
    truncated: bool = False
    """whether the text is longer than the backbone reads"""
    decision: Decision | None = None
    """how the classifier turns probabilities into labels; None: the most probable class, or those from one half on"""
    exit: int | None = None
    """the blocks after which the text stopped early, or `BY_WORDS`; None at full depth"""
    passed: tuple[int, str] | None = None
    """where it would have stopped if it had not been read to full depth on purpose, and the label there"""

    @property
    def exit_note(self) -> str | None:
        """What early exits mean for the text: what was not read of the model, or where a night would stop."""
        if self.passed is not None:
            depth, label = self.passed
            return f"read to full depth; without --deep, as in a night, it is decided {exit_name(depth)}: {label}"
        if self.exit is None:
            return None
        if self.exit == BY_WORDS:
            return "decided by words; the model was not read; --deep adds neurons"
        return f"decided {exit_name(self.exit)}; what follows was not read; --deep reads the whole model"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the K classes."""
        return self.label_space.classes

    @property
    def probabilities(self) -> Floats:
        """(K,) probabilities of the classes."""
        return self.label_space.probabilities(self.logits[None])[0]

    @property
    def label(self) -> str:
        """The likeliest of the predicted classes; of all classes where none is predicted."""
        return self.classes[(self.chosen or self.ranked)[0]]

    @property
    def ranked(self) -> list[int]:
        """The indices of all classes, the likeliest first."""
        return [int(k) for k in np.argsort(-self.logits, kind="stable")]

    @property
    def chosen(self) -> list[int]:
        """The indices of the predicted classes, the likeliest first.

        One class, or in a multi-label task any number of them, by the thresholds of the decision. Its abstention is not
        applied.
        """
        decision = self.decision or Decision.of(self.label_space, DecisionSettings())
        [given] = self.label_space.indicator(decision.decide(self.probabilities[None])[0])
        return [k for k in self.ranked if given[k]]

    @property
    def term_contribution(self) -> Floats:
        """(K,) what all terms together add to the logits."""
        return _sum_terms(self.terms, len(self.classes))

    def by_site(self) -> dict[Site, Floats]:
        """Return contributions (K,) per site, shallow first: their sum, plus the terms and the bias, is the logits."""
        return self._sum_by([column.site for column, _ in self.neurons])

    def by_layer(self) -> dict[int, Floats]:
        """Return contributions (K,) per layer: their sum, plus the terms and the bias, is the logits."""
        return self._sum_by([column.site.layer for column, _ in self.neurons])

    def _sum_by(self, places: Sequence[Where]) -> dict[Where, Floats]:
        """Return the contributions (K,) per place, given the place of each of the p neurons."""
        return {place: self.contributions[[other == place for other in places]].sum(0) for place in sorted(set(places))}

    def word(self, index: int) -> str:
        """Return a word of the text, or `(special)` for a special token."""
        start, end = self.words[index]
        return self.text[start:end] or "(special)"

    @property
    def whole_terms(self) -> dict[str, Floats]:
        """The contributions (K,) of words and word pairs by their text; strings of characters count with their word."""
        sums: dict[str, Floats] = {}
        for term in self.terms:
            names = [term.term] if term.unit == "words" else [self._word_at(*place) for place in term.places]
            for name in names:
                sums[name] = sums.get(name, 0) + term.logits / len(names)
        return sums

    def _word_at(self, start: int, end: int) -> str:
        """Return what stands at a place of a term, as words are written in the vocabulary."""
        word = self.text[start:end].lower()
        return _EDGES.sub("", word) or word

    def top_terms(self, count: int, label: str | None = None) -> list[tuple[str, float]]:
        """Return the words and word pairs that count most for or against a class, by default the predicted one."""
        k = self.classes.index(label or self.label)
        largest = sorted(self.whole_terms.items(), key=lambda term: -abs(term[1][k]))[:count]
        return [(term, float(logits[k])) for term, logits in largest]

    def top(self, count: int, label: str | None = None) -> list[NeuronContribution]:
        """Return the neurons with the largest contributions for or against a class, by default the predicted one."""
        by_neuron = self.contributions[:, self.classes.index(label or self.label)]
        largest = np.argsort(-np.abs(by_neuron), kind="stable")[:count]
        return [
            NeuronContribution(
                column=self.neurons[i][0],
                neuron=self.neurons[i][1],
                contribution=float(by_neuron[i]),
                word=self.word(int(self.loudest[i])),
                value=float(self.values[i]),
            )
            for i in largest
        ]


def stretches(words: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Return (start, end, word indices) of the stretches of text that words cover, in the order of the text.

    Words that overlap, as the bytes of one emoji may, are one stretch. Special tokens, which have no length, are left
    out.
    """
    spans: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(words)), key=lambda i: words[i]):
        start, end = words[index]
        if start == end:
            continue
        if spans and start < spans[-1][1]:
            first, last, indices = spans[-1]
            spans[-1] = first, max(end, last), [*indices, index]
        else:
            spans.append((start, end, [index]))
    return spans


def explain(
    backbone: Backbone,
    fitted: FittedClassifier,
    label_space: LabelSpace,
    text: str,
    pooled: Floats,
    words: WordRegression | None = None,
    decision: Decision | None = None,
) -> Explanation:
    """Return the contributions of neurons, terms and words to the logits of a text, whose label follows by `decision`.

    `pooled` are the raw activations of the selected neurons as the engine returned them, and `words` is the regression
    of a classifier that reads words. The contribution of a neuron is w (x - mean) / scale, where w is its weight in a
    linear head, and in an MLP head its integrated gradient (Sundararajan et al., Axiomatic Attribution for Deep
    Networks, 2017). Under mean pooling each token of the content has the part of the contribution that comes from its
    own activation, less an equal part of the mean; under max, first and last pooling one token has all of it. The
    tokens of a text that is read in windows are those of all windows, each once. A term contributes its part of the
    word regression's logits, times their weights in the head, in equal parts at its places
    in the text.
    """
    windows = _read_windows(backbone, text)
    neurons = slice(fitted.selection.words, None)
    shares = _token_values(backbone, fitted, windows, pooled)
    scale = fitted.standardizer.scale[neurons]
    values = shares.sum(0) / scale
    slopes = fitted.head.slopes(np.concatenate([np.zeros(fitted.selection.words), values]))
    weights = slopes.T[neurons] / scale[:, None]
    by_token = np.einsum("tp,pk->tk", shares, weights)
    contributions = shares.sum(0)[:, None] * weights
    words_read = _words(windows)
    by_word = sum_by_text(by_token, words_read.word_of, len(words_read.owners))
    word_slopes = slopes[:, : fitted.selection.words] / fitted.standardizer.scale[: fitted.selection.words]
    terms, constant = _weigh_terms(words, word_slopes, text)
    bias = fitted.head.bias + constant
    all_words, by_word = _add_terms(words_read, by_word, terms)
    return Explanation(
        text=text,
        label_space=label_space,
        logits=contributions.sum(0) + _sum_terms(terms, len(label_space)) + bias,
        bias=bias,
        neurons=tuple((column, neuron) for column, neuron, _ in fitted.selection.rows()),
        contributions=contributions,
        words=all_words,
        word_contributions=by_word,
        loudest=words_read.word_of[np.abs(shares).argmax(0)] if len(values) else np.empty(0, np.int64),
        values=values,
        terms=terms,
        truncated=bool(text[int(words_read.ends.max()) :].strip()),
        decision=decision,
    )


@dataclass(frozen=True)
class _Window:
    """A part of a text that the backbone reads at once."""

    encoding: Any
    """of the tokenizer"""
    ids: Tensor
    """(1, T) token ids"""
    mask: Tensor
    """(1, T) true"""
    own: NDArray[np.bool_]
    """(T,) whether a token is none of the window before, repeated as context"""
    content: NDArray[np.bool_]
    """(T,) whether a token is of the content"""


def _sum_terms(terms: Sequence[TermContribution], classes: int) -> Floats:
    """Return what all terms together add to the logits (K,)."""
    return np.sum([np.zeros(classes), *(term.logits for term in terms)], axis=0)


def _weigh_terms(
    words: WordRegression | None, slopes: Floats, text: str
) -> tuple[tuple[TermContribution, ...], Floats | float]:
    """Return what each term in a text adds to the logits of a head, and what the regression's intercept adds.

    `slopes` (K, K) are the head's for the regression's logits.
    """
    if words is None or not slopes.size:
        return (), 0.0
    terms = (replace(term, logits=slopes @ term.logits) for term in words.contributions(text))
    return tuple(terms), slopes @ words.intercept


def _add_terms(
    words: TextWords, by_word: Floats, terms: Sequence[TermContribution]
) -> tuple[tuple[Place, ...], Floats]:
    """Return the words of a text and their contributions (W, K) with those of the terms that stand in them.

    Words of terms that the backbone does not read, such as those beyond its limit, come after the others.
    """
    spans = np.array([place for term in terms for place in term.places], np.int64).reshape(-1, 2)
    parts = [term.logits / len(term.places) for term in terms for _ in term.places]
    sums = np.array(parts).reshape(len(parts), by_word.shape[1])
    places = Places(np.zeros(len(spans), np.int64), spans[:, 0], spans[:, 1], sums)
    _, starts, ends, by_word = add_places(words.owners, words.starts, words.ends, by_word, places)
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True)), by_word


def _read_windows(backbone: Backbone, text: str) -> list[_Window]:
    """Return the windows of a text; a text that is cut has one."""
    encoding = backbone.encode_windows([text]).encodings[0]
    encodings, context = [encoding], slice(0, 0)
    if backbone.reads_windows:
        encodings += encoding.overflowing[: backbone.max_windows - 1]
    windows: list[_Window] = []
    for encoding in encodings:
        if windows:
            context = context_of(encoding, backbone.window_overlap)
        ids, mask = backbone.pad_batch([encoding.ids or [backbone.pad_id]])
        own = np.ones(ids.shape[1], bool)
        own[context] = False
        content = backbone.find_content(ids, mask)[0].numpy()
        windows.append(_Window(encoding, ids, mask, own, content))
    return windows


def _token_values(backbone: Backbone, fitted: FittedClassifier, windows: Sequence[_Window], pooled: Floats) -> Floats:
    """Return the part (T, p) of each token of the text, in all windows, in x - mean of each selected neuron."""
    selection, ends = fitted.selection, _ends(fitted)
    count = sum(int(window.own.sum()) for window in windows)
    if not selection.neurons:
        return np.zeros((count, 0))
    means = dict(zip(selection.neurons, np.split(fitted.standardizer.mean[selection.words :], ends), strict=True))
    read_by_engine = dict(zip(selection.neurons, np.split(pooled, ends), strict=True))
    values: dict[FeatureColumn, list[Floats]] = {column: [] for column in selection.neurons}
    own = windows[0].own

    def read(site: Site, of_site: Tensor) -> None:
        for column, neurons in selection.neurons.items():
            if column.site == site:
                chosen = of_site[..., torch.from_numpy(neurons).to(of_site.device)]
                values[column].append(chosen[0].float().cpu().numpy()[own])

    with HOOK_LOCK, capture_sites(backbone, sorted({c.site for c in selection.neurons}), read) as forward:
        for window in windows:
            own = window.own
            forward(window.ids.to(backbone.device), window.mask.to(backbone.device))
    everything, content = torch.ones(1, count, dtype=torch.bool), torch.from_numpy(_pooled_content(windows))[None]
    parts = [
        _divide(
            np.concatenate(values[column]),
            pooling_mask(column, everything, content)[0].numpy(),
            column.pooling,
            means[column],
            read_by_engine[column],
        )
        for column in selection.neurons
    ]
    return np.concatenate(parts, axis=1)


def _pooled_content(windows: Sequence[_Window]) -> NDArray[np.bool_]:
    """Return whether mean and max pool each own token of the windows; without content, all those of the first."""
    content = np.concatenate([window.content[window.own] for window in windows])
    if not content.any():
        content[: windows[0].own.sum()] = True
    return content


def _divide(tokens: Floats, seen: NDArray[np.bool_], pooling: str, mean: Floats, pooled: Floats) -> Floats:
    """Return the pooled values less their means (T, m), at the tokens (T, m) that they come from."""
    total, divided = pooled - mean, np.zeros(tokens.shape)
    if pooling == "mean":
        divided[seen] = share_mean(tokens[seen], np.zeros(int(seen.sum()), np.int64), total[None])
        return divided
    if pooling == "max":
        at = find_maximum(tokens, seen)
    else:
        at = np.full(tokens.shape[1], int(token_position(torch.from_numpy(seen)[None], pooling)[0]))
    neurons = np.arange(tokens.shape[1])
    return share_single(at * len(neurons) + neurons, total, tokens.size).reshape(tokens.shape)


def _ends(fitted: FittedClassifier) -> NDArray[np.int64]:
    return np.cumsum([len(n) for n in fitted.selection.neurons.values()])[:-1]


def _words(windows: Sequence[_Window]) -> TextWords:
    """Return the words of the own tokens of the windows. A text without tokens has one word without characters."""
    places = [token_places(window.encoding)[window.own[: len(window.encoding)]] for window in windows]
    joined = np.concatenate(places)
    if not len(joined):
        joined = np.array([[-1, 0, 0]], np.int32)
    return group_tokens(np.zeros(len(joined), np.int64), joined)
