"""One explanation as a page that stands by itself: it loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spin.pages.charts import bar, figure, layer_map, levels, scale, share_bar, signed, sums, waterfall
from spin.pages.explanation import Explanation, NeuronContribution, stretches
from spin.pages.html import Html, tag
from spin.pages.stylesheet import STYLE, SWITCHABLE, document, shade
from spin.sites import FeatureColumn

_EXCERPT = 600
"""characters shown of a training document"""
_NONE = "No class"
NEURONS = 12
"""of each class, listed with what drives them"""


@dataclass(frozen=True)
class Driver:
    """A training document on which a neuron is high."""

    id: str
    label: str
    text: str
    value: float
    """the neuron's activation, in standard deviations above its mean on the training documents"""


Drivers = Mapping[tuple[FeatureColumn, int], Sequence[Driver]]


def page(found: Explanation, drivers: Drivers = {}, *, neurons: int = NEURONS, title: str = "Why this class") -> str:  # noqa: B006
    """The HTML of an explanation: each class's words, layers, sum and neurons, the likeliest class first.

    `drivers` names training documents on which a neuron is high, highest first. Of many classes those with the
    largest logits can be chosen; the logits of all are shown.
    """
    ranked = found.ranked
    panels = [_panel(found, drivers, k, number, neurons) for number, k in enumerate(ranked[:SWITCHABLE])]
    parts = _heading(found, title), _classes(found, ranked), tag("main", *panels)
    return document(f"{', '.join(found.classes[k] for k in found.chosen) or _NONE} – {title}", STYLE, *parts)


def shown_neurons(found: Explanation, count: int = NEURONS) -> set[tuple[str, int]]:
    """(column, index) of the neurons that a page opens: those that weigh most for each class that can be chosen."""
    tops = (found.top(count, found.classes[k]) for k in found.ranked[:SWITCHABLE])
    return {(str(top.column), top.neuron) for of_class in tops for top in of_class}


def _heading(found: Explanation, title: str) -> Html:
    """The predicted class and its probability; in a multi-label task every class at or above one half, or none."""
    shares = found.probabilities
    named = [
        tag("span", tag("bdi", found.classes[k]), " ", tag("span", _percent(float(shares[k])), class_="share"))
        for k in found.chosen
    ] or [tag("span", f"{_NONE} ", tag("span", "reaches one half", class_="share"))]
    return tag("header", tag("p", title, class_="eyebrow"), tag("h1", *named), class_="heading")


def _classes(found: Explanation, ranked: Sequence[int]) -> Html:
    """Every class with its logit and probability; choosing one shows its panel."""
    shares = found.probabilities

    def row(number: int, k: int) -> Html:
        choice = tag("input", type="radio", name="class", id=f"c{number}", checked=number == 0)
        shown = tag("bdi", found.classes[k]), tag("span", signed(float(found.logits[k])), class_="number logit")
        share = tag("span", _percent(shares[k]), class_="number"), share_bar(float(shares[k]))
        if number < SWITCHABLE:
            return tag("label", choice, *shown, *share, class_="class")
        return tag("div", *shown, *share, class_="class")

    rows = [row(number, k) for number, k in enumerate(ranked)]
    legend = tag("legend", tag("span", "Class"), tag("span", "logit, probability"))
    chosen, others = rows[:SWITCHABLE], rows[SWITCHABLE:]
    more = tag("details", tag("summary", f"{len(others):,} more"), *others) if others else ""
    return tag("aside", tag("fieldset", legend, *chosen), more, class_="classes", aria_label="Classes")


def _panel(found: Explanation, drivers: Drivers, k: int, number: int, neurons: int) -> Html:
    """All that speaks for and against one class."""
    label, cells = found.classes[k], sums(found, k)
    heading = tag("h2", "What speaks for and against ", tag("bdi", label), id=f"h{number}")
    bias, logit = float(found.bias[k]), float(found.logits[k])
    layers = "What the neurons of each layer add, by the place where they are read and how tokens are pooled."
    check = f"From the bias over the rows of the map to the logit {signed(logit)}."
    return tag(
        "section",
        heading,
        _section("Words", _all_words(found, k), *_words(found, k)),
        _section("Layers", layers, layer_map(cells)),
        _section("Sum", check, waterfall(cells, bias, logit)),
        _section("Neurons", _others(found, k, neurons), _neurons(found.top(neurons, label), drivers)),
        class_="panel",
        id=f"p{number}",
        aria_labelledby=f"h{number}",
    )


def _section(heading: str, note: str, *content: Html) -> Html:
    return tag("section", tag("h3", heading), tag("p", note, class_="note") if note else "", *content)


def _words(found: Explanation, k: int) -> list[Html]:
    """The text shaded by what each word adds, the scale, the strongest words, and what no word of the text adds."""
    by_word = found.word_contributions[:, k]
    parts = stretches(found.words)
    values = [float(by_word[words].sum()) for _, _, words in parts]
    largest = max(map(abs, values), default=0.0)
    shown: list[str] = []
    last = 0
    for (start, end, _), value in zip(parts, values, strict=True):
        shown.append(found.text[last:start])
        shown.append(tag("span", found.text[start:end], class_=f"word {shade(value, largest)}", title=signed(value, 3)))
        last = end
    rest, unread = found.text[last:], bool(parts and found.text[last:].strip())
    shown.append(tag("span", rest, class_="unread") if unread else rest)
    if not found.text.strip():
        shown = [tag("span", "(the text is empty)", class_="unread")]
    special = float(by_word.sum()) - sum(values)
    notes = [f"Special tokens of the model add {signed(special)}."] if signed(special) != "0.00" else []
    notes += ["What is greyed lies beyond what the model reads."] if unread else []
    strongest = _strongest([found.text[start:end].strip() for start, end, _ in parts], values)
    text = tag("p", *shown, class_="text", dir="auto", lang="")
    return [text, scale(largest), *strongest, *([tag("p", " ".join(notes), class_="note")] if notes else [])]


def _all_words(found: Explanation, k: int) -> str:
    bias, logit = float(found.bias[k]), float(found.logits[k])
    first, total = levels([bias, logit - bias], logit)
    together = signed(total - first)
    return f"What each word adds: {together} together, with the bias {signed(first)} the logit {signed(total)}."


def _strongest(words: Sequence[str], values: Sequence[float], count: int = 5) -> list[Html]:
    """The words that add and take most, for those who cannot point at a word to see its number."""
    rising = np.argsort(values, kind="stable")
    ends = {"for": [i for i in rising[::-1] if values[i] > 0], "against": [i for i in rising if values[i] < 0]}
    rows = [
        item
        for name, order in ends.items()
        if order
        for item in (tag("dt", name), tag("dd", *(_word(words[i], values[i]) for i in order[:count])))
    ]
    return [tag("dl", *rows, class_="strongest")] if rows else []


def _word(word: str, value: float) -> Html:
    return tag("span", tag("bdi", word), " ", figure(value))


def _neurons(tops: Sequence[NeuronContribution], drivers: Drivers) -> Html:
    """The neurons that weigh most; each opens what drives it."""
    largest = max((abs(top.contribution) for top in tops), default=0.0)
    names = [tag("span", name, class_=of) for name, of in (("", ""), ("neuron", ""), ("", ""), ("adds", "number"))]
    head = tag("li", *names, tag("span", "loudest on"), class_="row head", aria_hidden="true")
    rows = [_neuron(top, drivers.get((top.column, top.neuron), ()), largest) for top in tops]
    return tag("ol", head, *rows, class_="neurons")


def _neuron(top: NeuronContribution, driving: Sequence[Driver], largest: float) -> Html:
    summary = tag(
        "summary",
        tag("code", f"{top.column}[{top.neuron}]"),
        bar(0, top.contribution, -largest, largest),
        figure(top.contribution, 3),
        tag("bdi", top.word),
        class_="row",
    )
    highest = "the training documents on which it is highest:" if driving else "no training documents are at hand."
    here = tag("p", f"On this text {signed(top.value, 1)} σ from its training mean; {highest}", class_="note here")
    documents = tag("ol", *map(_driver, driving), class_="drivers") if driving else ""
    return tag("li", tag("details", summary, here, documents))


def _driver(driver: Driver) -> Html:
    """The beginning of a training document, its label and how high the neuron is on it."""
    excerpt = driver.text if len(driver.text) <= _EXCERPT else driver.text[:_EXCERPT] + "…"
    value = tag("span", f"{signed(driver.value, 1)} σ", title="standard deviations above the training mean")
    about = tag("p", tag("bdi", driver.label, class_="chip"), value, tag("code", tag("bdi", driver.id)))
    return tag("li", about, tag("blockquote", excerpt, dir="auto", lang=""))


def _others(found: Explanation, k: int, neurons: int) -> str:
    by_neuron = np.sort(np.abs(found.contributions[:, k]))[::-1]
    if len(by_neuron) <= neurons:
        return "Every neuron, by weight. Open one for documents that drive it."
    shown = sum(top.contribution for top in found.top(neurons, found.classes[k]))
    rest = float(found.contributions[:, k].sum()) - shown
    return (
        f"The {neurons:,} of {len(by_neuron):,} that weigh most; the others add {signed(rest)} together. "
        "Open one for documents that drive it."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"
