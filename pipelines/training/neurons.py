"""The selected neurons of a classifier: what each speaks for, and the training documents that drive it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data import input_files, sharding
from pipelines.data.feature_store import FeatureShards
from pipelines.data.readers import read_shard
from pipelines.data.training_labels import Labels
from pipelines.registry.versions import Registry
from spin.classifier import SpinClassifier
from spin.errors import UserError
from spin.pages.explanation_page import Driver
from spin.settings import Choice, Settings
from spin.sites import FeatureColumn

NEURONS = "neurons.json"
Row = dict[str, Any]
Drivers = dict[tuple[FeatureColumn, int], list[Driver]]


def describe_neurons(spin: SpinClassifier, features: FeatureShards, labels: Labels, count: int = 5) -> list[Row]:
    """A row a neuron that any of the classifiers reads, as plain JSON without text, in order of site and neuron.

    `column`, `neuron`, its `importance` in its probe; `heads`, for each choice that reads it the `class` it speaks for
    most and its `slope`, what a standard deviation adds to that class's logit at the training mean; `top`, the `count`
    training documents on which it is highest: id, label and value in standard deviations above the training mean.
    One column is held at a time.
    """
    train, _ = labels.part("train")
    names = labels.label_space.names(labels.y[train])
    by_column: dict[FeatureColumn, dict[int, tuple[Row, float, float]]] = {}
    for choice, fitted in spin.training_result.choices.items():
        slopes = fitted.head.slopes(np.zeros(len(fitted.selection), np.float32))
        for i, (column, neuron, importance) in enumerate(fitted.selection.rows()):
            row: Row = {"column": str(column), "neuron": neuron, "importance": _short(importance), "heads": {}}
            known = by_column.setdefault(column, {})
            row, *_ = known.setdefault(
                neuron, (row, float(fitted.standardizer.mean[i]), float(fitted.standardizer.scale[i]))
            )
            k = int(slopes[:, i].argmax())
            row["heads"][choice] = {"class": spin.classes[k], "slope": _short(slopes[k, i])}
    for column, known in by_column.items():
        values = features.read(column)
        for neuron, (row, mean, scale) in known.items():
            standard = (values[train, neuron].astype(np.float32) - mean) / scale
            row["top"] = [
                {"id": labels.ids[train[i]], "label": names[i], "value": _short(standard[i])}
                for i in _highest(standard, count)
            ]
    return [by_column[column][neuron][0] for column in sorted(by_column) for neuron in sorted(by_column[column])]


def load_neurons(registry: Registry, number: str, choose: Choice) -> list[Row]:
    """The rows of a version's neurons that one of its choices reads, with its `class` and `slope`.

    Falling by importance in the probe times the size of the slope in the head: what carries the classes comes first.
    Raises UserError for a version that was trained before neurons were described.
    """
    with tempfile.TemporaryDirectory() as folder:
        registry.download(number, Path(folder))
        try:
            described = json.loads((Path(folder) / NEURONS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"version {number} of {registry.name} holds no {NEURONS}; train the model again") from None
    rows = [row | row["heads"][choose] for row in described if choose in row["heads"]]
    return sorted(rows, key=lambda row: -row["importance"] * abs(row["slope"]))


def read_drivers(rows: Collection[Row], settings: Settings) -> Drivers:
    """The documents that drive the neurons of these rows, their texts from the corpus at `data.train`.

    The corpus is read shard by shard, to the last text that is wanted; a text that is not there any more is left
    out. Raises UserError for a corpus that cannot be read.
    """
    texts = _find_texts({top["id"] for row in rows for top in row["top"]}, settings)
    return {
        (FeatureColumn.parse(row["column"]), row["neuron"]): [
            Driver(top["id"], _name(top["label"]), texts[top["id"]], top["value"])
            for top in row["top"]
            if top["id"] in texts
        ]
        for row in rows
    }


def _find_texts(wanted: set[str], settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    if not wanted:
        return found
    files = input_files.list_files(settings.data.train)
    for shard in sharding.plan_shards(files, settings.ray.shard_documents, settings.data):
        documents = read_shard(shard, settings.data)
        found |= {
            id: text
            for id, text in zip(documents.ids, documents.texts, strict=True)
            if id in wanted and isinstance(text, str)
        }
        if len(found) == len(wanted):
            break
    return found


def _highest(values: NDArray[np.floating], count: int) -> Sequence[int]:
    """Indices of the largest values, falling; of equal ones the first."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        kept = np.flatnonzero(values >= least)
    else:
        kept = np.arange(len(values))
    return [int(i) for i in kept[np.argsort(-values[kept], kind="stable")][:count]]


def _name(label: str | Sequence[str]) -> str:
    return label if isinstance(label, str) else ", ".join(label) or "no class"


def _short(value: float) -> float:
    """Four digits that matter, for a file that a person may open."""
    return float(f"{value:.4g}")
