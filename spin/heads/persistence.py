"""What a trained classifier is on disk: JSON and safetensors, no pickle, and not the backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.errors import UserError
from spin.heads.candidate import Candidate
from spin.heads.early_exit import EarlyExit
from spin.heads.fitted import FittedClassifier, TrainingResult
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.selection import Selection
from spin.sites import FeatureColumn

FORMAT = 4
"""of the artifact; a reader refuses what it does not know"""
CONFIG, TENSORS = "config.json", "model.safetensors"
LIBRARIES = ("torch", "transformers", "numpy", "scikit-learn", "safetensors")
_MLP = ("inner", "inner_bias", "outer")
_ASIDE = ("resampled", "held_out")
"""of a candidate: what only the search needs"""


def save(training_result: TrainingResult, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of an artifact; `facts` are what the classifier adds to its config."""
    distinct: list[FittedClassifier] = []
    for fitted in training_result.choices.values():
        if not any(fitted is known for known in distinct):
            distinct.append(fitted)
    tensors: dict[str, NDArray[Any]] = {}
    parts = []
    for index, fitted in enumerate(distinct):
        columns = [str(column) for column in fitted.selection.neurons]
        exits = [{"depth": taken.depth, "threshold": taken.threshold} for taken in fitted.exits]
        parts.append({"eta": fitted.selection.eta, "columns": columns, "facts": fitted.facts, "exits": exits})
        tensors |= {f"{index}.{name}": np.ascontiguousarray(t) for name, t in _tensors(fitted).items()}
    config = {
        "format": FORMAT,
        **facts,
        "choices": {
            name: next(i for i, known in enumerate(distinct) if known is fitted)
            for name, fitted in training_result.choices.items()
        },
        "integrations": parts,
        "frontier": [_plain(candidate) for candidate in training_result.frontier],
        "tried": training_result.tried,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), TENSORS: save_tensors(tensors)}


def read_config(folder: Path) -> dict[str, Any]:
    """The config alone. Raises UserError where there is none."""
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a classifier that can be read: {error}") from None


def load(folder: Path) -> tuple[TrainingResult, dict[str, Any]]:
    """What `save` made, and the config. Raises UserError for an artifact that is not whole, or of another format."""
    config = read_config(folder)
    try:
        tensors = load_tensors((folder / TENSORS).read_bytes())
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is not a classifier that can be read: {error}") from None
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {config.get('format')}, this version reads {FORMAT}; train the model again"
        )
    try:
        parts = [_integration(part, tensors, f"{index}.") for index, part in enumerate(config["integrations"])]
        choices = {name: parts[index] for name, index in config["choices"].items()}
        return TrainingResult(choices, tuple(map(_candidate, config["frontier"])), config["tried"]), config
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def _tensors(fitted: FittedClassifier) -> dict[str, NDArray[Any]]:
    head = fitted.head
    linear = head.linear if isinstance(head, MlpHead) else head
    tensors: dict[str, NDArray[Any]] = {
        "mean": fitted.mean,
        "scale": fitted.scale,
        "coef": linear.coef,
        "intercept": linear.intercept,
    }
    if isinstance(head, MlpHead):
        tensors |= {name: getattr(head, name) for name in _MLP}
    for index, taken in enumerate(fitted.exits):
        tensors |= {f"exit.{index}.coef": taken.head.coef, f"exit.{index}.intercept": taken.head.intercept}
    for column, neurons in fitted.selection.neurons.items():
        tensors[f"neurons.{column}"] = neurons
        tensors[f"importance.{column}"] = fitted.selection.importance[column]
    return tensors


def _integration(part: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], prefix: str) -> FittedClassifier:
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    columns = [FeatureColumn.parse(text) for text in part["columns"]]
    selection = Selection(
        {c: mine[f"neurons.{c}"] for c in columns}, {c: mine[f"importance.{c}"] for c in columns}, part["eta"]
    )
    linear = LinearHead(mine["coef"], mine["intercept"])
    head = MlpHead(linear, *(mine[name] for name in _MLP)) if "inner" in mine else linear
    exits = tuple(
        EarlyExit(kept["depth"], LinearHead(mine[f"exit.{i}.coef"], mine[f"exit.{i}.intercept"]), kept["threshold"])
        for i, kept in enumerate(part["exits"])
    )
    return FittedClassifier(selection, mine["mean"], mine["scale"], head, dict(part["facts"]), exits)


def _plain(candidate: Candidate) -> dict[str, Any]:
    fields = {name: value for name, value in vars(candidate).items() if name not in _ASIDE}
    return {**fields, "penalty": asdict(candidate.penalty)}


def _candidate(fields: Mapping[str, Any]) -> Candidate:
    return Candidate(
        **{
            **fields,
            "part": tuple(fields["part"]),
            "penalty": Penalty(**fields["penalty"]),
        }
    )
