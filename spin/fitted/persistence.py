"""The files of a trained classifier: JSON and safetensors, no pickle, and not the backbone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.errors import UserError
from spin.fitted.candidate import CandidateSummary
from spin.fitted.early_exit import EarlyExit
from spin.fitted.fitted_classifier import ChoiceSummary, FittedClassifier, LeakageCap, TrainingResult
from spin.fitted.recipe import ClassifierRecipe
from spin.heads.linear_head import LinearHead
from spin.heads.network_head import NetworkHead
from spin.heads.selection import Selection
from spin.labels.label_types import LabelType
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings, Metric
from spin.sites import FeatureColumn
from spin.words.word_regression import WordRegression

FORMAT = 11
"""version of the artifact's format, the only one that is read"""
CONFIG, TENSORS = "config.json", "model.safetensors"
HEADS: tuple[type[LinearHead], ...] = (LinearHead, NetworkHead)
LIBRARIES = ("torch", "transformers", "numpy", "scikit-learn", "safetensors")
_WORDS, _HEAD, _SCALES = "words.", "head.", "int8."
_STORED = ConfigDict(frozen=True, extra="forbid")

Tensors = dict[str, NDArray[Any]]


class ClassifierMetadata(BaseModel):
    """The contents of an artifact without the heads."""

    model_config = _STORED

    classes: tuple[str, ...]
    multilabel: bool
    label_type: LabelType = "str"
    """the type of the labels that the classes stand for"""
    backbone: BackboneSettings
    """where the backbone lay in training and how it was run, without what is for the machine that loads it to decide"""
    backbone_digest: str
    """digest of the backbone's files"""
    metric: Metric
    decision: DecisionSettings

    @field_validator("backbone")
    @classmethod
    def _leave_out_local_settings(cls, backbone: BackboneSettings) -> BackboneSettings:
        """The settings without those of one machine; an artifact never allows code to run."""
        default = BackboneSettings(model=backbone.model)
        local = {name: getattr(default, name) for name in ("trust_remote_code", "engine", "compile", "scales")}
        return backbone.model_copy(update=local)


class _StoredClassifier(BaseModel):
    """A classifier without its tensors."""

    model_config = _STORED

    eta: float
    words: int
    """number of the words' logits among its features"""
    columns: tuple[str, ...]
    summary: ChoiceSummary
    exits: tuple[tuple[int, float], ...]
    """depth and threshold of each exit"""
    recipe: ClassifierRecipe | None


class _Config(BaseModel):
    """The content of config.json."""

    model_config = _STORED

    format: int
    metadata: ClassifierMetadata | None = None
    """None of a result that is not yet a classifier, such as one that is refitted"""
    choices: dict[str, int]
    """by name the position among `classifiers`"""
    classifiers: tuple[_StoredClassifier, ...]
    frontier: tuple[CandidateSummary, ...]
    tried: int
    cap: LeakageCap | None = Field(default=None, exclude_if=lambda value: value is None)
    """not written without one"""
    versions: dict[str, str]
    """of the libraries in training"""


def save(
    training_result: TrainingResult, metadata: ClassifierMetadata | None = None, scales: Tensors | None = None
) -> dict[str, bytes]:
    """The contents of an artifact's files, by name; without metadata only `load_result` can read them.

    `scales` are those by which the backbone is rounded to int8, None in another precision.
    """
    distinct = list({id(fitted): fitted for fitted in training_result.choices.values()}.values())
    tensors: Tensors = {}
    for index, fitted in enumerate(distinct):
        tensors |= _add_prefix(f"{index}.", _tensors(fitted))
    if training_result.words is not None:
        tensors |= _add_prefix(_WORDS, training_result.words.to_tensors())
    tensors |= _add_prefix(_SCALES, scales or {})
    positions = {id(fitted): index for index, fitted in enumerate(distinct)}
    config = _Config(
        format=FORMAT,
        metadata=metadata,
        choices={name: positions[id(fitted)] for name, fitted in training_result.choices.items()},
        classifiers=tuple(map(_describe, distinct)),
        frontier=training_result.frontier,
        tried=training_result.tried,
        cap=training_result.cap,
        versions={name: version(name) for name in LIBRARIES},
    )
    text = json.dumps(config.model_dump(mode="json"), indent=2)
    return {CONFIG: f"{text}\n".encode(), TENSORS: save_tensors(tensors)}


def load(folder: Path) -> tuple[TrainingResult, ClassifierMetadata]:
    """The result and metadata that `save` wrote. Raises UserError for an incomplete artifact or another format."""
    return load_result(folder), read_metadata(folder)


def read_metadata(folder: Path) -> ClassifierMetadata:
    """The metadata of an artifact, without its tensors. Raises UserError as `load` does."""
    with _incomplete_artifact(folder):
        config = _Config.model_validate(require_format(folder))
        if config.metadata is None:
            raise KeyError("metadata")
        return config.metadata


def load_scales(folder: Path) -> Tensors:
    """The scales that `save` wrote. Raises UserError if there are none, or as `load` does."""
    scales = _of_prefix(_SCALES, _read_tensors(folder))
    if not scales:
        raise UserError(f"{folder} is not a whole classifier: it was trained in int8, and has no scales")
    return scales


def load_result(folder: Path) -> TrainingResult:
    """The training result of an artifact. Raises UserError as `load` does."""
    stored, tensors = require_format(folder), _read_tensors(folder)
    with _incomplete_artifact(folder):
        config = _Config.model_validate(stored)
        parts = [_restore(part, _of_prefix(f"{index}.", tensors)) for index, part in enumerate(config.classifiers)]
        of_words = _of_prefix(_WORDS, tensors)
        words = WordRegression.from_tensors(of_words) if of_words else None
        if words is None and any(fitted.selection.word_logits or fitted.words_exit for fitted in parts):
            raise KeyError("it reads words, and has no word regression")
        choices = {name: parts[index] for name, index in config.choices.items()}
        return TrainingResult(choices, config.frontier, config.tried, words, config.cap)  # type: ignore[arg-type]


def _read_tensors(folder: Path) -> Tensors:
    """All tensors of an artifact. Raises UserError if they cannot be read."""
    try:
        return load_tensors((folder / TENSORS).read_bytes())
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is not a classifier that can be read: {error}") from None


def digest_artifact(folder: Path) -> str:
    """sha256 (64 hexadecimal digits) of the files of the classifier in a folder."""
    contents = [(folder / name).read_bytes() for name in (CONFIG, TENSORS)]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()


def require_format(folder: Path, name: str | None = None) -> dict[str, Any]:
    """The content of config.json of an artifact in a folder, which must have the format that is read.

    Raises UserError, which calls the artifact by this name if there is one, for another format or none.
    """
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(
            f"{name or folder} is not a classifier that can be read: {error}; expected a folder that "
            "SpinClassifier.save wrote"
        ) from None
    if config.get("format") != FORMAT:
        given = config.get("format")
        is_newer = isinstance(given, int) and given > FORMAT
        remedy = "install the version of SPIN that wrote it, or a newer one" if is_newer else "train the model again"
        raise UserError(f"{name or folder} has format {given}, this version reads {FORMAT}; {remedy}")
    return config


@contextmanager
def _incomplete_artifact(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while an artifact is parsed into a UserError."""
    try:
        yield
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError(f"{folder} is not a whole classifier: {'; '.join(mistakes)}") from None
    except (AttributeError, IndexError, KeyError, TypeError, UserError, ValueError) as error:
        raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def _add_prefix(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    return {f"{prefix}{name}": np.ascontiguousarray(values) for name, values in tensors.items()}


def _of_prefix(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    return {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}


def _tensors(fitted: FittedClassifier) -> Tensors:
    tensors: Tensors = {"mean": fitted.standardizer.mean, "scale": fitted.standardizer.scale}
    tensors |= _add_prefix(_HEAD, fitted.head.to_tensors())
    for index, exit in enumerate(fitted.exits):
        tensors |= _add_prefix(f"exit.{index}.", exit.head.to_tensors())
    for column, neurons in fitted.selection.neurons.items():
        tensors[f"neurons.{column}"] = neurons
        tensors[f"importance.{column}"] = fitted.selection.importance[column]
    return tensors


def _describe(fitted: FittedClassifier) -> _StoredClassifier:
    return _StoredClassifier(
        eta=fitted.selection.eta,
        words=fitted.selection.word_logits,
        columns=tuple(map(str, fitted.selection.neurons)),
        summary=fitted.summary,
        exits=tuple((exit.depth, exit.threshold) for exit in fitted.exits),
        recipe=fitted.recipe,
    )


def _restore(stored: _StoredClassifier, tensors: Tensors) -> FittedClassifier:
    columns, summary = [FeatureColumn.parse(text) for text in stored.columns], stored.summary
    neurons, importance = ({c: tensors[f"{name}.{c}"] for c in columns} for name in ("neurons", "importance"))
    exits = tuple(
        EarlyExit(depth, LinearHead.from_tensors(_of_prefix(f"exit.{index}.", tensors)), threshold)
        for index, (depth, threshold) in enumerate(stored.exits)
    )
    return FittedClassifier(
        Selection(neurons, importance, stored.eta, stored.words),
        Standardizer(tensors["mean"], tensors["scale"]),
        _find_head(summary.head).from_tensors(_of_prefix(_HEAD, tensors)),
        summary,
        exits,
        stored.recipe,
    )


def _find_head(name: str) -> type[LinearHead]:
    for head in HEADS:
        if head.name == name:
            return head
    raise UserError(f"head '{name}': expected one of {', '.join(head.name for head in HEADS)}")
