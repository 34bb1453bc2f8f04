"""Where the labels of a model and of its shadow agree, by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spin.labels.label_space import Label, class_names

Confusion = dict[str, dict[str, int]]
"""documents by what the model says and what the shadow says; "" stands for no label, in a multi-label task for a class
that is not given"""
_SUMS = ("compared", "failed", "agreed")


def count_agreement(mine: Sequence[Label | None], theirs: Sequence[Label | None], multilabel: bool) -> dict[str, Any]:
    """Counts of n documents: compared, agreed, and the confusion of both labels."""
    cells: Counter[tuple[str, str]] = Counter()
    for a, b in zip(mine, theirs, strict=True):
        cells.update(_cells(a, b, multilabel))
    agreed = sum(a == b for a, b in zip(mine, theirs, strict=True))
    return {"compared": len(mine), "agreed": agreed, "confusion": _nested(cells)}


def _cells(mine: Label | None, theirs: Label | None, multilabel: bool) -> list[tuple[str, str]]:
    """Where a document counts: once, or in a multi-label task once for each class that either gives it."""
    if not multilabel:
        return [(str(mine or ""), str(theirs or ""))]
    a, b = class_names(mine), class_names(theirs)
    return [(name if name in a else "", name if name in b else "") for name in {*a, *b}]


def total_agreement(version: str, multilabel: bool, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifest keeps of a shadow: the counts of all shards that the night takes."""
    sums = {name: sum(part[name] for part in parts) for name in _SUMS}
    cells: Counter[tuple[str, str]] = Counter()
    for part in parts:
        cells.update({(mine, theirs): n for mine, row in part["confusion"].items() for theirs, n in row.items()})
    return {
        "version": version,
        "multilabel": multilabel,
        **sums,
        "agreement": round(sums["agreed"] / sums["compared"], 4) if sums["compared"] else None,
        "confusion": _nested(cells),
    }


def by_class(shadow: Mapping[str, Any]) -> list[tuple[str, int, int, int]]:
    """Of each class the documents to which the model gives it, the shadow, and both, the least agreed on first.

    In a task of one class a document also of no label, as "".
    """
    confusion: Confusion = shadow["confusion"]
    names = {name for mine, row in confusion.items() for name in (mine, *row)}
    rows = [
        (
            name,
            sum(confusion.get(name, {}).values()),
            sum(row.get(name, 0) for row in confusion.values()),
            confusion.get(name, {}).get(name, 0),
        )
        for name in names
        if name or not shadow["multilabel"]
    ]
    return sorted(rows, key=lambda row: (2 * row[3] - row[1] - row[2], row[0]))


def disagreements(shadow: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """What the model says, what the shadow says instead, and of how many documents, the most frequent first."""
    confusion: Confusion = shadow["confusion"]
    cells = [(mine, theirs, n) for mine, row in confusion.items() for theirs, n in row.items() if mine != theirs]
    return sorted(cells, key=lambda cell: (-cell[2], cell[:2]))


def _nested(cells: Mapping[tuple[str, str], int]) -> Confusion:
    """In the same order whatever that of the documents."""
    nested: Confusion = {}
    for (mine, theirs), n in sorted(cells.items()):
        nested.setdefault(mine, {})[theirs] = n
    return nested
