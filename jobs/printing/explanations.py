"""Print predictions of single texts, what explains them, and the neurons of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from jobs import terminal
from spin.pages.number_format import counted, significant
from spin.sites import FeatureColumn

if TYPE_CHECKING:
    from pipelines.training.neurons import ChosenNeuron
    from spin.labels.label_space import Label
    from spin.pages.explanation import Explanation
    from spin.pages.explanation_page import Drivers
    from spin.predictions import Predictions

_EXCERPT = 80
"""characters shown of a training document"""


def print_predictions(texts: Sequence[str], predicted: Predictions) -> None:
    """Print one line per text: label, probability and the text."""
    labels = [_label_names(label) for label in predicted.labels]
    width = max(map(len, labels), default=0)
    for label, score, text in zip(labels, predicted.score, texts, strict=True):
        terminal.say(f"{label:<{width}} {score:.2f}  {' '.join(text.split())}")


def _label_names(label: Label | None) -> str:
    """Return a class, the classes of a multi-label task, or a dash for none."""
    return (label if isinstance(label, str) else ", ".join(label or ())) or "–"


def print_explanation(explanation: Explanation, *, neurons: int = 8) -> None:
    """Print for each predicted class, else the likeliest, the text shaded by contribution, and neurons and terms."""
    shares = zip(explanation.classes, explanation.probabilities, explanation.logits, strict=True)
    listed = ", ".join(f"{name} {share:.2f} (logit {logit:+.2f})" for name, share, logit in shares)
    chosen = ", ".join(explanation.classes[k] for k in explanation.chosen)
    terminal.say(f"{chosen or 'no class reaches its threshold'}: {listed}")
    if explanation.exit_note:
        terminal.say(explanation.exit_note)
    for k in explanation.chosen or explanation.ranked[:1]:
        label = explanation.classes[k]
        terminal.out.print(_shaded(explanation, k), soft_wrap=True)
        terminal.say(_sum_of_layers(explanation, k))
        tops = [(f"{top.column}[{top.neuron}]", top.contribution, top.word) for top in explanation.top(neurons, label)]
        _print_contributions(f"neurons for and against {label}", "neuron", tops, "mainly on")
        terms = [(f"“{term}”", contribution) for term, contribution in explanation.top_terms(neurons, label)]
        _print_contributions(f"terms for and against {label}", "term", terms)


def _sum_of_layers(explanation: Explanation, k: int) -> str:
    """Return the logit of class k as the sum of what each layer adds, with the terms and the bias."""
    parts = [(f"layer {layer}", float(values[k])) for layer, values in explanation.by_layer().items()]
    if explanation.terms:
        parts.append(("terms", float(explanation.term_contribution[k])))
    listed = ", ".join(f"{name} {value:+.2f}" for name, value in [*parts, ("bias", float(explanation.bias[k]))])
    return f"{explanation.classes[k]} {explanation.logits[k]:+.2f} = {listed}"


def _print_contributions(title: str, name: str, rows: Sequence[tuple[Any, ...]], *more: str) -> None:
    """Print a row per neuron or term with what it adds to a logit; nothing if there are none."""
    table = Table(name, Column("adds to logit", justify="right"), *more, title=title)
    for first, contribution, *others in rows:
        table.add_row(first, f"{contribution:+.3f}", *others)
    if rows:
        terminal.show(table)


def _shaded(explanation: Explanation, k: int) -> Text:
    """Return the text with each word shaded by what it adds to the logit of class k."""
    segments = list(explanation.segments(k))
    largest = max([1e-9, *(abs(value or 0.0) for _, value in segments)])
    return Text.assemble(*((text, _shade((value or 0.0) / largest)) for text, value in segments))


def print_neurons(chosen: Sequence[ChosenNeuron], drivers: Drivers, count: int) -> None:
    """Print one line per neuron: its importance, the class that it raises, and the document that activates it most."""
    table = terminal.new_table(["neuron"], ["importance", "slope"])
    table.expand = True
    table.add_column("raises", max_width=20, overflow="fold")
    table.add_column("most active on", no_wrap=True, overflow="ellipsis", ratio=1)
    for neuron in chosen:
        row, head = neuron.row, neuron.head
        best = next(iter(drivers.get((FeatureColumn.parse(row.column), row.neuron), ())), None)
        text = "–" if best is None else f"{best.value:+.1f} σ  {' '.join(best.text.split())[:_EXCERPT]}"
        figures = f"{significant(100 * head.importance, 2)} %", f"{head.slope:+.3f}"
        table.add_row(f"{row.column}[{row.neuron}]", *figures, head.class_name, text)
    terminal.show(table)
    terminal.say(
        f"{len(chosen):,} of {counted(count, 'neuron')}, by importance (share of that of all neurons) times slope "
        "(change of the class's logit per standard deviation)"
    )


def list_main_neurons(explanation: Explanation, count: int = 3) -> str:
    """Return, in one line, the neurons, or without any the terms, that add most to the predicted class."""
    tops = [top for top in explanation.top(4 * count) if top.contribution > 0][:count]
    if not tops:
        terms = [(term, adds) for term, adds in explanation.top_terms(4 * count) if adds > 0][:count]
        return ", ".join(f"“{term}” {adds:+.2f}" for term, adds in terms)
    return ", ".join(f"{top.column}[{top.neuron}] {top.contribution:+.2f} on “{top.word}”" for top in tops)


def _shade(share: float) -> str:
    """Return a style: green for a positive share, red for a negative one, stronger for a larger one."""
    if abs(share) < 0.15:
        return ""
    strength = int(60 + 140 * min(1.0, abs(share)))
    colour = (0, strength, 0) if share > 0 else (strength, 0, 0)
    return f"white on rgb({colour[0]},{colour[1]},{colour[2]})"
