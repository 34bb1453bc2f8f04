"""The type in which labels were given. Classes are named by strings; an estimator gives labels back as they were."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, cast

import numpy as np

from spin.errors import UserError

LabelType = Literal["str", "int", "float", "bool"]
LabelValue = str | int | float | bool
PARSERS: Mapping[LabelType, Callable[[str], LabelValue]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": "True".__eq__,
}
"""functions from the name of a class to the label that it stands for"""
_KINDS = (bool, int, float, str)
"""the types of labels; a bool is also an int"""
_LISTS = (list, tuple, set, frozenset, np.ndarray)
_SHOWN = 10


def name_labels(labels: Iterable[Any] | None) -> tuple[list[str | list[str]], LabelType]:
    """The names of labels, or of lists of labels, and the type that all of them have: `str` if there are none.

    Raises UserError for a table, for labels that are missing, of a type that is not in `LabelType`, or of two types.
    """
    if labels is None or isinstance(labels, (str, bytes, Mapping)) or getattr(labels, "ndim", 1) != 1:
        raise UserError(
            f"labels: found {describe_table(labels)}; expected one label per text, or in a multi-label task a list of "
            "labels per text"
        )
    rows = [list(label) if isinstance(label, _LISTS) else label for label in labels]
    missing = [row for row, label in enumerate(rows) if any(map(is_missing, _values(label)))]
    if missing:
        positions = f"position{'s' * (len(missing) > 1)} {show_first(missing)}"
        raise UserError(
            f"labels: {len(missing):,} of {len(rows):,} missing (None or NaN), at {positions}; label these texts "
            "or leave them out"
        )
    examples: dict[str, LabelValue] = {}
    names = [
        [_name(value, examples) for value in label] if isinstance(label, list) else _name(label, examples)
        for label in rows
    ]
    if len(examples) > 1:
        found = " and ".join(f"{value!r} ({kind})" for kind, value in list(examples.items())[:2])
        raise UserError(f"labels: found {found}; expected labels of one type")
    return names, cast(LabelType, next(iter(examples), "str"))


def is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, NaT, or pandas.NA, which has no truth value."""
    return label is None or type(label).__name__ == "NAType" or bool(label != label)


def show_first(rows: Collection[int]) -> str:
    """The first ten of some row numbers, and how many more there are."""
    shown = ", ".join(str(row) for row in list(rows)[:_SHOWN])
    return f"{shown} and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else shown


def describe_table(values: Any) -> str:
    """A description of values that stand where one column was expected, for a message."""
    if hasattr(values, "columns"):
        return f"a table with the columns {', '.join(map(str, values.columns))}"
    if hasattr(values, "shape"):
        return f"an array of shape {tuple(values.shape)}"
    return "nothing" if values is None else f"a {type(values).__name__}"


def _values(label: Any) -> Collection[Any]:
    """The classes in a label: the label itself, or the elements of a list."""
    return label if isinstance(label, list) else (label,)


def _name(label: Any, examples: dict[str, LabelValue]) -> str:
    """The name of a label; `examples` keeps the first label of each type."""
    value = label.item() if isinstance(label, np.generic) else label
    kind = next((kind for kind in _KINDS if isinstance(value, kind)), None)
    if kind is None:
        raise UserError(f"labels: found {label!r:.40} ({type(label).__name__}); expected {', '.join(PARSERS)}")
    examples.setdefault(kind.__name__, value)
    return str(kind(value))
