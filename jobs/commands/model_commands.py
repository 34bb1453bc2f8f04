"""The commands that use a model without a night: `spin evaluate`, `predict`, `neurons`, `explain` and `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from jobs import terminal
from jobs.extras import require_pipelines
from jobs.named_classifier import Name, RegisteredVersion, open_classifier, open_named
from jobs.options import AsJson, File, Html, Input, Model, Set, open_registry, write_page
from spin.errors import UserError
from spin.pages.number_format import counted, significant
from spin.settings import Settings, load_settings
from spin.sites import FeatureColumn

if TYPE_CHECKING:
    from pipelines.training.evaluate import EvaluationReport
    from pipelines.training.neurons import ChosenNeuron, NeuronRow
    from spin.labels.label_space import Label
    from spin.pages.explanation import Explanation
    from spin.pages.explanation_page import Drivers
    from spin.predictions import Predictions

Format = Annotated[str, typer.Option(metavar="onnx|openvino", help="file format of the graph")]
_EXCERPT = 80
"""characters shown of a training document"""


def evaluate(settings: File, input: Input, model: Model = None, set: Set = []) -> None:  # noqa: B006
    """Measure a model on labelled documents: precision, recall and F1 per class."""
    loaded = load_settings(settings, set)
    from pipelines.training.evaluate import run_evaluate

    print_evaluation(run_evaluate(loaded, open_registry(loaded), input, model=model))


def predict(
    settings: Name,
    text: Annotated[
        list[str],
        typer.Option(help="text to classify; may be given several times; default: the lines of standard input"),
    ] = [],  # noqa: B006
    model: Model = None,
    as_json: AsJson = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Classify single texts: label, probability and text, one line each."""
    texts = text or _read_lines()
    with open_named(settings, model, set, "spin predict") as (spin, _):
        classes, predicted = list(spin.classes), spin.predict_all(texts)
    if not as_json:
        print_predictions(texts, predicted)
        return
    rows = zip(texts, predicted.labels, predicted.score.tolist(), predicted.probabilities.tolist(), strict=True)
    terminal.plain(
        [
            {"text": each, "label": label, "score": score, "scores": dict(zip(classes, scores, strict=True))}
            for each, label, score, scores in rows
        ]
    )


def neurons(
    settings: File,
    model: Model = None,
    top: Annotated[int, typer.Option(min=1, help="number of neurons to list")] = 20,
    label: Annotated[
        str | None, typer.Option("--class", metavar="CLASS", help="only neurons that raise the score of this class")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, with the ids of the documents that activate each neuron most")
    ] = False,
    set: Set = [],  # noqa: B006
) -> None:
    """List the selected neurons, the most influential first, and the training document that activates each most."""
    loaded = load_settings(settings, set)
    from pipelines.training.neurons import load_neurons

    registry = open_registry(loaded)
    chosen = load_neurons(registry, registry.resolve(model), loaded.choose)
    classes = sorted({neuron.head.class_name for neuron in chosen})
    if not chosen and not as_json:
        terminal.say(f"the classifier `{loaded.choose}` reads no neuron: the words of a text decide alone")
        return
    if label is not None and label not in classes:
        raise UserError(f"no neuron raises the score of '{label}'; expected one of {', '.join(classes)}")
    selected = [neuron for neuron in chosen if label in (None, neuron.head.class_name)]
    listed = selected[:top]
    if as_json:
        terminal.plain([neuron.to_json() for neuron in listed])
    else:
        print_neurons(listed, _read_drivers([neuron.row for neuron in listed], loaded), len(selected))


def explain(
    settings: Name,
    text: Annotated[str, typer.Option(help="text to explain")],
    html: Html = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="read the whole model, also where the text would exit by its words or early")
    ] = False,
    model: Model = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Show which words and which neurons led to the predicted class of a text."""
    with open_named(settings, model, set, "spin explain") as (spin, version):
        explanation = spin.explain(text, deep=deep)
    print_explanation(explanation)
    if html is not None:
        from spin.pages.explanation_page import explanation_page

        title = Path(settings).name if version is None else f"{version.registry.name}, version {version.number}"
        write_page(html, explanation_page(explanation, _read_own_drivers(explanation, version), title=title))


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="folder of a saved classifier, models:/NAME@ALIAS or models:/NAME/N")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="new or empty folder for the files")],
    format: Format,
    settings: Annotated[
        str | None,
        typer.Option(
            metavar="SETTINGS",
            help="settings file for the registry, backbone, choice and thresholds; default: those of the model",
        ),
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Write a model as one graph that runs without PyTorch: token ids in, scores out."""
    if model.startswith("models:/"):
        require_pipelines("spin export of a registered model")
    from spin.export import check_target
    from spin.export import export as write

    if set and settings is None:
        raise UserError(f"--set {set[0]}: there are no settings to override; name a file with --settings")
    check_target(folder, format)
    with open_classifier(model, load_settings(settings, set) if settings is not None else None) as spin:
        files = write(spin, folder, format)
        size = f"{counted(spin.fitted.selection.neuron_count, 'neuron')} of {counted(spin.depth, 'block')}"
    terminal.say(f"wrote {folder}: {', '.join(files)}; {size}")


def _read_lines() -> list[str]:
    """The lines of standard input that are not blank. Raises UserError if it is a terminal, or holds none."""
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("found no text to classify; expected --text, or lines on standard input")
    return lines


def _read_own_drivers(explanation: Explanation, version: RegisteredVersion | None) -> Drivers:
    """Return the documents that activate the neurons of an explanation most; none for a saved classifier."""
    if version is None:
        return {}
    from pipelines.training.neurons import load_neurons
    from spin.pages.explanation_page import shown_neurons

    shown, settings = shown_neurons(explanation), version.registry.settings
    rows = [neuron.row for neuron in load_neurons(version.registry, version.number, settings.choose)]
    return _read_drivers([row for row in rows if (row.column, row.neuron) in shown], settings)


def _read_drivers(rows: Sequence[NeuronRow], settings: Settings) -> Drivers:
    """Return the documents that activate each neuron most; none, and a line with the reason, if it cannot read them."""
    from pipelines.training.neurons import read_drivers

    try:
        return read_drivers(rows, settings)
    except UserError as error:
        terminal.say(f"without training documents: {error}")
        return {}


def print_evaluation(report: EvaluationReport) -> None:
    """Print every metric and the figures of every class, and how labels were decided."""
    table = terminal.new_table(["class"], ["precision", "recall", "F1", "documents"])
    for name, figures in report.per_class.items():
        shown = [f"{100 * value:.1f}" for value in (figures.precision, figures.recall, figures.f1)]
        table.add_row(name, *shown, f"{figures.support:,.0f}")
    terminal.show(table)
    intervals = {name: f"[{100 * low:.1f}–{100 * high:.1f}]" for name, (low, high) in report.intervals.items()}
    scores = (f"{name} {100 * value:.1f} {intervals[name]}" for name, value in report.metrics.items())
    metrics = ", ".join(scores) or "no labels"
    terminal.say(f"version {report.model_version} on {counted(report.documents, 'document')}: {metrics}")
    decision = report.decision
    thresholds = ", ".join(f"{name} {threshold:g}" for name, threshold in decision.thresholds.items()) or "default"
    terminal.say(f"decided as a night does: thresholds {thresholds}, abstention band {decision.abstain:g}")
    if report.abstained:
        without = f"{counted(report.abstained, 'document')} ({100 * report.abstained / report.documents:.1f} %)"
        terminal.say(f"{without} got no label; the figures above leave them out")


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
