"""The commands that look into a model or write it out: `spin evaluate`, `neurons`, `explain` and `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.extras import require_pipelines
from jobs.options import File, Input, Model, Set, open_registry
from jobs.page_file import check_writable, write_page
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipelines.training.neurons import Drivers, NeuronRow
    from spin.pages.explanation import Explanation

Format = Annotated[str, typer.Option(metavar="onnx|openvino", help="file format of the graph")]


def evaluate(settings: File, input: Input, model: Model = None, set: Set = []) -> None:  # noqa: B006
    """Measure a model on labelled documents: precision, recall and F1 per class."""
    loaded = load_settings(settings, set)
    from pipelines.training.evaluate import run_evaluate

    terminal.evaluation(run_evaluate(loaded, open_registry(loaded), input, model=model))


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
        terminal.neurons(listed, _read_drivers([neuron.row for neuron in listed], loaded), len(selected))


def explain(
    settings: Annotated[
        str,
        typer.Argument(metavar="SETTINGS|FOLDER", help="settings file, or the folder of a saved classifier"),
    ],
    text: Annotated[str, typer.Option(help="text to explain")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="also write the explanation as a page")] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="read the whole model, also where the text would exit by its words or early")
    ] = False,
    model: Model = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Show which words and which neurons led to the predicted class of a text."""
    if html is not None:
        check_writable(html)
    if Path(settings).is_dir():
        _explain_saved(Path(settings), text, html, model, set, deep=deep)
    else:
        _explain_registered(settings, text, html, model, set, deep=deep)


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
    from pipelines.registry.open_model import open_classifier
    from spin.export import check_target
    from spin.export import export as write

    if set and settings is None:
        raise UserError(f"--set {set[0]}: there are no settings to override; name a file with --settings")
    check_target(folder, format)
    with open_classifier(model, load_settings(settings, set) if settings is not None else None) as spin:
        files = write(spin, folder, format)
        size = f"{counted(spin.fitted.selection.neuron_count, 'neuron')} of {counted(spin.depth, 'block')}"
    terminal.say(f"wrote {folder}: {', '.join(files)}; {size}")


def refuse_options_with(name: str, model: str | None, overrides: Sequence[str]) -> None:
    """Raise UserError for an option that needs a settings file, where a command names a classifier in its place."""
    if model is not None or overrides:
        given = f"--model {model}" if model is not None else f"--set {overrides[0]}"
        raise UserError(
            f"{given} is for registered models that a settings file names, and {name} is a classifier; name such a file"
        )


def _explain_saved(
    folder: Path, text: str, html: Path | None, model: str | None, overrides: Sequence[str], *, deep: bool
) -> None:
    """Explain by a saved classifier, which needs neither settings nor registry."""
    refuse_options_with(str(folder), model, overrides)
    from pipelines.registry.open_model import open_classifier

    with open_classifier(str(folder)) as spin:
        explanation = spin.explain(text, deep=deep)
    terminal.explanation(explanation)
    if html is not None:
        _write_explanation(html, explanation, {}, title=folder.name)


def _explain_registered(
    settings: str, text: str, html: Path | None, model: str | None, overrides: Sequence[str], *, deep: bool
) -> None:
    """Explain by a version of the registry; the page also shows training documents per neuron."""
    loaded = load_settings(settings, overrides)
    require_pipelines("spin explain of a registered model")
    registry = open_registry(loaded)
    number = registry.resolve(model)
    explanation = registry.load(number).explain(text, deep=deep)
    terminal.explanation(explanation)
    if html is not None:
        from pipelines.training.neurons import load_neurons
        from spin.pages.explanation_page import shown_neurons

        shown = shown_neurons(explanation)
        rows = [neuron.row for neuron in load_neurons(registry, number, loaded.choose)]
        rows = [row for row in rows if (row.column, row.neuron) in shown]
        title = f"{registry.name}, version {number}"
        _write_explanation(html, explanation, _read_drivers(rows, loaded), title=title)


def _write_explanation(file: Path, explanation: Explanation, drivers: Drivers, *, title: str) -> None:
    from spin.pages.explanation_page import explanation_page

    write_page(file, explanation_page(explanation, drivers, title=title))


def _read_drivers(rows: Sequence[NeuronRow], settings: Settings) -> Drivers:
    """Return the documents that activate each neuron most; none, and a line with the reason, if it cannot read them."""
    from pipelines.training.neurons import read_drivers

    try:
        return read_drivers(rows, settings)
    except UserError as error:
        terminal.say(f"without training documents: {error}")
        return {}
