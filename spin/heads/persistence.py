"""The files of a trained classifier: JSON and safetensors, no pickle, and not the backbone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from spin.errors import UserError
from spin.heads.blend import Blend
from spin.heads.candidate import Candidate
from spin.heads.early_exit import EarlyExit
from spin.heads.fitted import ChoiceSummary, FittedClassifier, LeakageCap, TrainingResult
from spin.heads.linear_head import LinearHead, Penalty
from spin.heads.mlp_head import MlpHead
from spin.heads.recipe import ClassifierRecipe
from spin.heads.selection import Selection
from spin.labels.label_types import LabelType
from spin.labels.standardizer import Standardizer
from spin.settings import BackboneSettings, DecisionSettings, Metric
from spin.sites import FeatureColumn
from spin.words.word_regression import WordRegression

FORMAT = 7
"""version of the artifact's format, the only one that is read"""
CONFIG, TENSORS = "config.json", "model.safetensors"
LIBRARIES = ("torch", "transformers", "numpy", "scikit-learn", "safetensors")
_WORDS = "words."
_MLP = ("inner", "inner_bias", "outer")
_SEARCH_ONLY = ("resampled", "valid_loss", "resampled_losses")
"""fields of a candidate that only the search needs"""
_RECIPE = TypeAdapter(ClassifierRecipe)
_LOCAL_SETTINGS = {"trust_remote_code", "engine", "compile"}
"""settings of a backbone that are for the machine that loads it to decide"""


class ClassifierMetadata(BaseModel):
    """The contents of an artifact without the tensors of the heads."""

    model_config = ConfigDict(frozen=True)

    classes: tuple[str, ...]
    multilabel: bool
    label_type: LabelType = "str"
    """the type of the labels that the classes stand for"""
    backbone: BackboneSettings
    """where the backbone lay in training and how it was run; never allows code to run"""
    backbone_digest: str
    """digest of the backbone's files"""
    metric: Metric
    decision: DecisionSettings

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        backbone = {**self.backbone.model_dump(exclude=_LOCAL_SETTINGS), "digest": self.backbone_digest}
        return {
            "classes": self.classes,
            "multilabel": self.multilabel,
            "label_type": self.label_type,
            "backbone": backbone,
            "metric": self.metric,
            "decision": self.decision.model_dump(exclude_none=True),
        }

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> ClassifierMetadata:
        """The metadata from the values of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        backbone = dict(config["backbone"])
        digest = backbone.pop("digest")
        return cls(
            classes=config["classes"],
            multilabel=config["multilabel"],
            label_type=config["label_type"],
            backbone=BackboneSettings.model_validate({**backbone, "trust_remote_code": False}),
            backbone_digest=digest,
            metric=config["metric"],
            decision=config["decision"],
        )


def save(training_result: TrainingResult, metadata: ClassifierMetadata | None = None) -> dict[str, bytes]:
    """The contents of an artifact's files, by name; without metadata only `load_result` can read them."""
    distinct: list[FittedClassifier] = []
    for fitted in training_result.choices.values():
        if not any(fitted is known for known in distinct):
            distinct.append(fitted)
    tensors: dict[str, NDArray[Any]] = {}
    for index, fitted in enumerate(distinct):
        tensors |= {f"{index}.{name}": np.ascontiguousarray(t) for name, t in _tensors(fitted).items()}
    if training_result.words is not None:
        tensors |= {f"{_WORDS}{name}": t for name, t in training_result.words.to_tensors().items()}
    config = {
        "format": FORMAT,
        **({} if metadata is None else metadata.to_json()),
        "choices": {
            name: next(i for i, known in enumerate(distinct) if known is fitted)
            for name, fitted in training_result.choices.items()
        },
        "integrations": [_fitted_to_json(fitted) for fitted in distinct],
        "frontier": [_candidate_to_json(candidate) for candidate in training_result.frontier],
        "tried": training_result.tried,
        **({} if training_result.cap is None else {"cap": training_result.cap.model_dump(mode="json")}),
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), TENSORS: save_tensors(tensors)}


def load(folder: Path) -> tuple[TrainingResult, ClassifierMetadata]:
    """The result and metadata that `save` wrote. Raises UserError for an incomplete artifact or another format."""
    return load_result(folder), read_metadata(folder)


def read_metadata(folder: Path) -> ClassifierMetadata:
    """The metadata of an artifact, without its tensors. Raises UserError as `load` does."""
    config = _read_config(folder)
    with _incomplete_artifact(folder):
        return ClassifierMetadata.from_json(config)


def load_result(folder: Path) -> TrainingResult:
    """The training result of an artifact. Raises UserError as `load` does."""
    config = _read_config(folder)
    try:
        tensors = load_tensors((folder / TENSORS).read_bytes())
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} is not a classifier that can be read: {error}") from None
    with _incomplete_artifact(folder):
        parts = [_fitted_from_json(part, tensors, f"{index}.") for index, part in enumerate(config["integrations"])]
        choices = {name: parts[index] for name, index in config["choices"].items()}
        frontier = tuple(map(_candidate_from_json, config["frontier"]))
        of_words = {name.removeprefix(_WORDS): t for name, t in tensors.items() if name.startswith(_WORDS)}
        words = WordRegression.from_tensors(of_words) if of_words else None
        if words is None and any(fitted.selection.words or fitted.words_exit for fitted in parts):
            raise KeyError("it reads words, and has no word regression")
        cap = LeakageCap.model_validate(config["cap"]) if "cap" in config else None
        return TrainingResult(choices, frontier, config["tried"], words, cap)


def require_format(folder: Path, name: str) -> None:
    """Raise UserError, which calls the artifact in a folder by this name, unless it has the format that is read."""
    _read_config(folder, name)


def _read_config(folder: Path, name: str | None = None) -> dict[str, Any]:
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
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a whole classifier: {' '.join(str(error).split())}") from None


def _tensors(fitted: FittedClassifier) -> dict[str, NDArray[Any]]:
    head = fitted.head
    linear = head.linear if isinstance(head, MlpHead) else head
    tensors: dict[str, NDArray[Any]] = {
        "mean": fitted.standardizer.mean,
        "scale": fitted.standardizer.scale,
        "coef": linear.coef,
        "intercept": linear.intercept,
    }
    if isinstance(head, MlpHead):
        tensors |= {name: getattr(head, name) for name in _MLP}
    for index, exit in enumerate(fitted.exits):
        tensors |= {f"exit.{index}.coef": exit.head.coef, f"exit.{index}.intercept": exit.head.intercept}
    for column, neurons in fitted.selection.neurons.items():
        tensors[f"neurons.{column}"] = neurons
        tensors[f"importance.{column}"] = fitted.selection.importance[column]
    return tensors


def _fitted_to_json(fitted: FittedClassifier) -> dict[str, Any]:
    return {
        "eta": fitted.selection.eta,
        "words": fitted.selection.words,
        "columns": [str(column) for column in fitted.selection.neurons],
        "facts": fitted.summary.model_dump(mode="json"),
        "exits": [{"depth": exit.depth, "threshold": exit.threshold} for exit in fitted.exits],
        "recipe": None if fitted.recipe is None else _RECIPE.dump_python(fitted.recipe, mode="json"),
    }


def _fitted_from_json(part: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], prefix: str) -> FittedClassifier:
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    columns = [FeatureColumn.parse(text) for text in part["columns"]]
    summary = ChoiceSummary.model_validate(part["facts"])
    neurons, importance = ({c: own[f"{name}.{c}"] for c in columns} for name in ("neurons", "importance"))
    selection = Selection(neurons, importance, part["eta"], summary.rule, part["words"])
    linear = LinearHead(own["coef"], own["intercept"])
    head = MlpHead(linear, *(own[name] for name in _MLP)) if "inner" in own else linear
    exits = tuple(
        EarlyExit(exit["depth"], LinearHead(own[f"exit.{i}.coef"], own[f"exit.{i}.intercept"]), exit["threshold"])
        for i, exit in enumerate(part["exits"])
    )
    recipe = None if part["recipe"] is None else _RECIPE.validate_python(part["recipe"])
    return FittedClassifier(selection, Standardizer(own["mean"], own["scale"]), head, summary, exits, recipe)


def _candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    fields = {name: value for name, value in vars(candidate).items() if name not in _SEARCH_ONLY}
    if candidate.leakage is None:
        del fields["leakage"]
    blend = None if candidate.blend is None else asdict(candidate.blend)
    return {**fields, "penalty": asdict(candidate.penalty), "blend": blend}


def _candidate_from_json(fields: Mapping[str, Any]) -> Candidate:
    penalty, blend = Penalty(**fields["penalty"]), fields["blend"]
    parsed = {"part": tuple(fields["part"]), "penalty": penalty, "blend": blend and Blend(**blend)}
    return Candidate(**{**fields, **parsed})
