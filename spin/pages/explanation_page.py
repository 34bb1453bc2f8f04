"""One explanation as a self-contained HTML page, which loads no other file and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from spin.pages.explanation import Explanation, NeuronContribution, Segment
from spin.pages.layer_map import LayerMap, WaterfallStep, layer_map, waterfall
from spin.pages.rendering import render
from spin.pages.stylesheet import SELECTABLE_CLASSES, explanation_css
from spin.sites import FeatureColumn

NEURONS = 12
"""listed per class, each with the training documents that drive it"""
_TERMS = 12
"""terms that are listed per class"""
_EXCERPT = 600
"""characters shown of a training document"""
_STRONGEST = 5
"""words listed for and against a class"""
_NO_CLASS = "No class"


@dataclass(frozen=True)
class Driver:
    """A training document on which a neuron is high."""

    id: str
    label: str
    text: str
    value: float
    """the neuron's activation, in standard deviations above its mean over the training documents"""

    @property
    def excerpt(self) -> str:
        """The beginning of the text."""
        return self.text if len(self.text) <= _EXCERPT else self.text[:_EXCERPT] + "…"


Drivers = Mapping[tuple[FeatureColumn, int], Sequence[Driver]]
"""documents by (feature column, neuron), those with the highest activation first"""


@dataclass(frozen=True)
class WordContributions:
    """The text of an explanation, and what each of its words contributes to one class."""

    segments: tuple[Segment, ...]
    """the text up to the end of the last word"""
    rest: str
    """the text after the last word"""
    special: float
    """contribution of the special tokens, which are no words of the text"""

    @property
    def words(self) -> list[Segment]:
        """The segments that are words."""
        return [segment for segment in self.segments if segment.contribution is not None]

    @property
    def largest(self) -> float:
        """The largest absolute contribution of a word."""
        return max((abs(word.contribution or 0.0) for word in self.words), default=0.0)

    @property
    def strongest(self) -> dict[str, list[Segment]]:
        """The words with the largest contributions `for` and `against` the class; a side without words is missing."""
        rising = sorted(self.words, key=lambda word: word.contribution or 0.0)
        falling = sorted(self.words, key=lambda word: -(word.contribution or 0.0))
        sides = {
            "for": [word for word in falling if (word.contribution or 0.0) > 0],
            "against": [word for word in rising if (word.contribution or 0.0) < 0],
        }
        return {side: words[:_STRONGEST] for side, words in sides.items() if words}


@dataclass(frozen=True)
class Panel:
    """Everything on the page about one class."""

    label: str
    words: WordContributions
    layers: LayerMap
    waterfall: tuple[WaterfallStep, ...]
    """the steps of the sum: the end of the first is the bias as the page shows it, and of the last the logit"""
    terms: tuple[tuple[str, float], ...]
    """the words and word pairs with the largest contributions"""
    other_terms: float
    """contribution of the terms that are not listed"""
    neurons: tuple[tuple[NeuronContribution, tuple[Driver, ...]], ...]
    """the neurons with the largest contributions, each with the documents that drive it"""
    others: float
    """contribution of the neurons that are not listed"""

    @property
    def largest(self) -> float:
        """The largest absolute contribution of a listed neuron."""
        return max((abs(neuron.contribution) for neuron, _ in self.neurons), default=0.0)

    @property
    def largest_term(self) -> float:
        """The largest absolute contribution of a listed term."""
        return max((abs(contribution) for _, contribution in self.terms), default=0.0)


def explanation_page(
    explanation: Explanation,
    drivers: Drivers | None = None,
    *,
    neurons: int = NEURONS,
    title: str = "Explanation of a prediction",
) -> str:
    """The HTML of an explanation: words, layers, sum and neurons per class, the likeliest class first.

    `drivers` holds the training documents on which a neuron is high. A reader can select each of the
    `SELECTABLE_CLASSES` classes with the largest logits; the page lists the logits of all classes.
    """
    ranked = explanation.ranked
    return render(
        "spin.pages/explanation.html.j2",
        page_title=f"{', '.join(explanation.classes[k] for k in explanation.chosen) or _NO_CLASS} – {title}",
        style=Markup(explanation_css()),
        title=title,
        explanation=explanation,
        no_class=_NO_CLASS,
        selectable=ranked[:SELECTABLE_CLASSES],
        other_classes=ranked[SELECTABLE_CLASSES:],
        panels=[_panel(explanation, drivers or {}, k, neurons) for k in ranked[:SELECTABLE_CLASSES]],
    )


def shown_neurons(explanation: Explanation, count: int = NEURONS) -> set[tuple[str, int]]:
    """The neurons that a page lists, as column and index: those with the largest contributions per class."""
    by_class = (explanation.top(count, explanation.classes[k]) for k in explanation.ranked[:SELECTABLE_CLASSES])
    return {(str(neuron.column), neuron.neuron) for neurons in by_class for neuron in neurons}


def _panel(explanation: Explanation, drivers: Drivers, k: int, count: int) -> Panel:
    """The panel of class k, with `count` neurons."""
    bias, logit = float(explanation.bias[k]), float(explanation.logits[k])
    layers = layer_map(explanation, k)
    top = explanation.top(count, explanation.classes[k])
    total = float(explanation.contributions[:, k].sum())
    terms = explanation.top_terms(_TERMS, explanation.classes[k])
    of_terms = float(explanation.term_contribution[k])
    return Panel(
        label=explanation.classes[k],
        words=_words(explanation, k),
        layers=layers,
        waterfall=waterfall(layers.rows, bias, logit, of_terms if explanation.terms else None),
        terms=tuple(terms),
        other_terms=of_terms - sum(contribution for _, contribution in terms),
        neurons=tuple((neuron, tuple(drivers.get((neuron.column, neuron.neuron), ()))) for neuron in top),
        others=total - sum(neuron.contribution for neuron in top),
    )


def _words(explanation: Explanation, k: int) -> WordContributions:
    """The text in segments, with the contribution of each word to class k."""
    *segments, rest = explanation.segments(k)
    in_words = sum(segment.contribution or 0.0 for segment in segments)
    special = float(np.sum(explanation.word_contributions[:, k])) - in_words
    return WordContributions(tuple(segments), rest.text, special)
