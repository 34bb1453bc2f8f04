"""The terms of `spin roi`: the volume and the prices, costs by class, and the shares of the classes to come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets
from spin.roi.error_costs import CostMatrix

T = TypeVar("T")
_COSTS: TypeAdapter[CostMatrix] = TypeAdapter(dict[str, dict[str, float]])
_SHARES: TypeAdapter[dict[str, float]] = TypeAdapter(Annotated[dict[str, float], Field(min_length=1)])
_OPTION = "--label-mix"
_SUFFIXES = (".yaml", ".yml", ".json")
"""of the names of files with a label mix"""


@dataclass(frozen=True)
class RoiTerms:
    """The volume that a user expects, and prices; all are in one currency."""

    volume: float
    """documents to classify"""
    cost_error: float
    """of a wrong label"""
    cost_review: float
    """of a document that people label"""
    cpu_hour: float = 0.05
    """of one core"""
    cost_label: float | None = None
    """of a labelled document to learn from; by default that of a review"""
    pairs: CostMatrix = field(default_factory=dict)
    """costs by true and given class, where they differ from `cost_error`"""
    label_mix: Mapping[str, float] = field(default_factory=dict)
    """shares of the classes among the documents to come; by default those of the evaluation set"""
    llm_price: float | None = None
    """of a thousand documents that a language model labels; None: it is not compared"""
    llm_accuracy: float = 1.0
    """share of its labels that are right"""

    def __post_init__(self) -> None:
        if not 0 < self.volume < np.inf:
            raise UserError(f"--volume {self.volume:g}: expected a number above 0")
        for name in ("cost_error", "cost_review", "cpu_hour", "cost_label", "llm_price"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < np.inf:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number from 0 on")
        if not 0 <= self.llm_accuracy <= 1:
            raise UserError(f"--llm-accuracy {self.llm_accuracy:g}: expected a share from 0 to 1")


def read_cost_matrix(path: Path) -> CostMatrix:
    """Read costs by true and given class from a YAML or JSON file. Raises UserError for another content."""
    return _read_terms(path, _COSTS, "costs by true and then given class, such as {spam: {ham: 2.5}}")


def read_label_mix(values: Sequence[str]) -> dict[str, float]:
    """The share of each class by the values of the option `--label-mix`; empty without any.

    A single value is a list such as `spam=0.2,ham=0.8`, or the name of a YAML or JSON file that holds a mapping. Of
    several values each is one class with its share, such as `spam=0.2`, in which a comma is part of the name. A mix
    has at least two classes, so a single value can only be a list of them. The last `=` divides a class from its share.
    Raises UserError for another form, and for a class that is given twice; in a file, the last one counts.
    """
    if len(values) == 1 and values[0].endswith(_SUFFIXES):
        return _read_terms(Path(values[0]), _SHARES, "shares by class, such as {spam: 0.2, ham: 0.8}")
    mix: dict[str, float] = {}
    for part in values[0].split(",") if len(values) == 1 else values:
        name, share = _parse_share(part)
        if name in mix:
            raise UserError(f"{_OPTION}: found '{name}' twice; expected a share of each class once; leave one out")
        mix[name] = share
    return mix


def weigh_classes(mix: Mapping[str, float], label_space: LabelSpace, y: Targets) -> Floats | None:
    """The shares (K,) of the classes to come; None without a mix: they are those of the evaluation set.

    `y` are the targets of the evaluation set. Raises UserError in a multi-label task, for classes that are missing or
    unknown, for shares that do not add up to 1, and for a class of which the evaluation set has no document.
    """
    if not mix:
        return None
    if label_space.multilabel:
        raise UserError(
            f"{_OPTION}: the documents have lists of classes, whose shares do not add up to 1; leave the option out"
        )
    if set(mix) != set(label_space.classes):
        raise UserError(
            f"{_OPTION}: found {_quote(mix)}; expected a share of {_quote(label_space.classes)}; name each of them once"
        )
    shares = np.array([mix[name] for name in label_space.classes])
    if (shares < 0).any() or not np.isclose(shares.sum(), 1, atol=1e-3):
        raise UserError(
            f"{_OPTION}: the shares add up to {shares.sum():g}; expected shares from 0 that add up to 1; correct them"
        )
    unseen = [name for k, name in enumerate(label_space.classes) if shares[k] and not (y == k).any()]
    if unseen:
        raise UserError(
            f"{_OPTION}: the evaluation set has no document of class '{unseen[0]}', so its errors are unknown; "
            "expected a share of 0; give it that, or leave the option out"
        )
    normalised: Floats = shares / shares.sum()
    return normalised


def _parse_share(part: str) -> tuple[str, float]:
    """The class and the share of a text such as `spam=0.2`."""
    name, _, share = part.rpartition("=")
    error = UserError(
        f"{_OPTION}: found '{part.strip()}'; expected a share of each class, such as spam=0.2,ham=0.8; for classes "
        f"with commas in their names give {_OPTION} NAME=SHARE once per class, or the name of a YAML or JSON file"
    )
    try:
        parsed = name.strip(), float(share)
    except ValueError:
        raise error from None
    if not parsed[0]:
        raise error
    return parsed


def _quote(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _read_terms(path: Path, kind: TypeAdapter[T], expected: str) -> T:
    """Read a mapping from names of classes; `expected` says in a message what it holds.

    A file that ends in `.json` is read as JSON, since YAML knows neither its tabs nor its escapes of rare characters;
    any other is read as YAML. Raises UserError for a file that cannot be read, or whose content is of another kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:  # wrong UTF-8 and wrong JSON are ValueErrors
        raise UserError(f"{path} cannot be read: {error}; expected a YAML or JSON file") from None
    try:
        return kind.validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = list(first["loc"])
        if place[-1:] == ["[key]"]:
            expected, place = "the name of a class; put quotes around names such as yes, no or 1", place[:-2]
        of_class = f" for class '{place[0]}'" if place else ""
        raise UserError(f"{path}: found {first['input']!r:.40}{of_class}; expected {expected}") from None
