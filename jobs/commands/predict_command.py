"""The command that classifies single texts: `spin predict`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs import terminal
from jobs.named_classifier import Name, open_named
from jobs.options import AsJson, Model, Set
from jobs.printing.explanations import print_predictions
from spin.errors import UserError


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


def _read_lines() -> list[str]:
    """The lines of standard input that are not blank. Raises UserError if it is a terminal, or holds none."""
    lines = [] if sys.stdin.isatty() else [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("found no text to classify; expected --text, or lines on standard input")
    return lines
