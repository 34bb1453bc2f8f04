"""An explanation: the contributions of neurons, terms and words to the logits of one text, as pages show them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats
from spin.fitted.decision import Decision
from spin.labels.label_space import LabelSpace
from spin.settings import DecisionSettings
from spin.sites import BY_WORDS, FeatureColumn, Site, exit_name
from spin.words.word_regression import TermContribution

Where = TypeVar("Where", Site, int)
_EDGES = re.compile(r"^\W+|\W+$")
"""characters that are no part of a word at its ends"""


@dataclass(frozen=True)
class NeuronContribution:
    """The contribution of one selected neuron to the logit of a class."""

    column: FeatureColumn
    """the site and the pooling under which the neuron is read"""
    neuron: int
    """index within the site"""
    contribution: float
    """contribution to the logit"""
    word: str
    """the word with the largest share of the contribution"""
    value: float
    """activation, in standard deviations above the training mean"""


class Segment(NamedTuple):
    """A piece of the text: a word, or what lies between two words."""

    text: str
    contribution: float | None
    """contribution to the logit of one class; None between words"""


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
    """(p,) index of the word with the largest share of each neuron's contribution; -1 if no word has a share"""
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
        """A note on the part of the model that was not read, or on the exit at which a night would stop."""
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
        return np.sum([np.zeros(len(self.classes)), *(term.logits for term in self.terms)], axis=0)

    def by_site(self) -> dict[Site, Floats]:
        """The contributions (K,) per site, shallow first: with the terms and the bias they add up to the logits."""
        return self._sum_by([column.site for column, _ in self.neurons])

    def by_layer(self) -> dict[int, Floats]:
        """The contributions (K,) per layer: with the terms and the bias they add up to the logits."""
        return self._sum_by([column.site.layer for column, _ in self.neurons])

    def _sum_by(self, places: Sequence[Where]) -> dict[Where, Floats]:
        """The contributions (K,) per place, given the place of each of the p neurons."""
        return {place: self.contributions[[other == place for other in places]].sum(0) for place in sorted(set(places))}

    def segments(self, k: int) -> Iterator[Segment]:
        """The text in pieces, with the contribution of each word to class k; the last one is after all words."""
        last = 0
        for start, end, words in stretches(self.words):
            yield Segment(self.text[last:start], None)
            yield Segment(self.text[start:end], float(self.word_contributions[words, k].sum()))
            last = end
        yield Segment(self.text[last:], None)

    def word(self, index: int) -> str:
        """A word of the text, `(special)` for a special token, or `(no word)` for the index -1."""
        if index < 0:
            return "(no word)"
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
        """The word at a place of a term, as words are written in the vocabulary."""
        word = self.text[start:end].lower()
        return _EDGES.sub("", word) or word

    def top_terms(self, count: int, label: str | None = None) -> list[tuple[str, float]]:
        """The words and word pairs that count most for or against a class, by default the predicted one."""
        k = self.classes.index(label or self.label)
        largest = sorted(self.whole_terms.items(), key=lambda term: -abs(term[1][k]))[:count]
        return [(term, float(logits[k])) for term, logits in largest]

    def top(self, count: int, label: str | None = None) -> list[NeuronContribution]:
        """The neurons with the largest contributions for or against a class, by default the predicted one."""
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
    """The stretches of text that words cover, in order: start, end and indices of the words.

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
