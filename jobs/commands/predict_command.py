"""The command that classifies single texts: `spin predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import terminal
from jobs.commands.model_commands import refuse_options_with
from jobs.extras import require_pipelines
from jobs.options import AsJson, Model, Set, open_registry
from spin.errors import UserError
from spin.settings import load_settings

if TYPE_CHECKING:
    from spin.predictions import Predictions


def predict(
    settings: Annotated[
        str,
        typer.Argument(
            metavar="SETTINGS|FOLDER|models:/NAME@ALIAS",
            help="settings file, the folder of a saved classifier, or a version of the registry in MLFLOW_TRACKING_URI",
        ),
    ],
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
    classes, predicted = _predict(settings, texts, model, set)
    if not as_json:
        terminal.predictions(texts, predicted)
        return
    rows = zip(texts, predicted.labels, predicted.score.tolist(), predicted.probabilities.tolist(), strict=True)
    terminal.plain(
        [
            {"text": each, "label": label, "score": score, "scores": dict(zip(classes, scores, strict=True))}
            for each, label, score, scores in rows
        ]
    )


def _read_lines() -> list[str]:
    """The lines of standard input that are not blank. Raises UserError if it is a terminal, or holds none."""
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("found no text to classify; expected --text, or lines on standard input")
    return lines


def _predict(name: str, texts: list[str], model: str | None, overrides: list[str]) -> tuple[list[str], Predictions]:
    """The classes of the classifier that the command line names, and its predictions."""
    from pipelines.registry.open_model import open_classifier

    if name.startswith("models:/") or Path(name).is_dir():
        refuse_options_with(name, model, overrides)
        if name.startswith("models:/"):
            require_pipelines("spin predict with a registered model")
        with open_classifier(name) as spin:
            return list(spin.classes), spin.predict_all(texts)
    loaded = load_settings(name, overrides)
    require_pipelines("spin predict with a registered model")
    registry = open_registry(loaded)
    spin = registry.load(registry.resolve(model))
    return list(spin.classes), spin.predict_all(texts)
