"""The label mix of `spin roi`: the shares of the classes among the documents to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.planning.terms_file import SUFFIXES, read_terms
from spin.arrays import Floats
from spin.errors import UserError
from spin.labels.label_space import LabelSpace, Targets

_OPTION = "--label-mix"


def read_label_mix(values: Sequence[str]) -> dict[str, float]:
    """The share of each class by the values of the option `--label-mix`; empty without any.

    A single value is a list such as `spam=0.2,ham=0.8`, or the name of a YAML or JSON file that holds a mapping. Of
    several values each is one class with its share, such as `spam=0.2`, in which a comma is part of the name. A mix
    has at least two classes, so a single value can only be a list of them. The last `=` divides a class from its share.
    Raises UserError for another form, and for a class that is given twice; in a file, the last one counts.
    """
    if len(values) == 1 and values[0].endswith(SUFFIXES):
        return _read_file(Path(values[0]))
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


def _read_file(path: Path) -> dict[str, float]:
    """The share of each class by the mapping in a file."""
    expected = "shares by class, such as {spam: 0.2, ham: 0.8}"
    mix: dict[str, float] = {}
    for name, share in read_terms(path, expected).items():
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise UserError(f"{path}: found {share!r:.40} for class '{name}'; expected {expected}")
        mix[name] = float(share)
    if not mix:
        raise UserError(f"{path}: found no class; expected {expected}")
    return mix


def _quote(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
