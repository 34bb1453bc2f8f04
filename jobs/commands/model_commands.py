"""The commands that use a model without a night: `spin evaluate`, `predict`, `neurons`, `explain` and `export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.extras import require_pipelines
from jobs.named_classifier import Name, RegisteredVersion, open_classifier, open_named
from jobs.options import AsJson, File, Html, Input, Model, Set, open_registry, write_page
from jobs.printing.audits import print_evaluation
from jobs.printing.explanations import print_explanation, print_neurons, print_predictions
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.training.neurons import NeuronRow
    from spin.pages.explanation import Explanation
    from spin.pages.explanation_page import Drivers

Format = Annotated[str, typer.Option(metavar="onnx|openvino", help="file format of the graph")]


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

    shown = shown_neurons(explanation)
    rows = [neuron.row for neuron in load_neurons(version.registry, version.number, version.settings.choose)]
    return _read_drivers([row for row in rows if (row.column, row.neuron) in shown], version.settings)


def _read_drivers(rows: Sequence[NeuronRow], settings: Settings) -> Drivers:
    """Return the documents that activate each neuron most; none, and a line with the reason, if it cannot read them."""
    from pipelines.training.neurons import read_drivers

    try:
        return read_drivers(rows, settings)
    except UserError as error:
        terminal.say(f"without training documents: {error}")
        return {}
