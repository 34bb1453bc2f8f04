"""The labels that a night gave, and the chance that each is right by its scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.nightly.tables.night_tables import PREDICTIONS, NightTables, PublishedRun, read_night
from spin.arrays import Floats

_COLUMNS = ("id", "label", "labels", "score", "scores")


@dataclass(frozen=True)
class GivenLabels:
    """The documents with a label of a night, and the labels of some of them."""

    documents: int
    expected: float
    """mean chance that the label of a document is right"""
    classes: Mapping[str, frozenset[str]]
    """the classes of some documents, by id"""
    chances: Mapping[str, float]
    """the chances that these are right"""


def read_given(tables: NightTables, night: PublishedRun, ids: Collection[str]) -> GivenLabels:
    """The labels that a night gave documents with some ids; those without a label are left out."""
    wanted = pa.array(sorted(ids), pa.string())
    documents, expected = 0, 0.0
    classes: dict[str, frozenset[str]] = {}
    chances: dict[str, float] = {}
    for rows in read_labelled(tables, night):
        of_rows = find_chances(rows)
        documents, expected = documents + len(rows), expected + float(of_rows.sum())
        found = pc.is_in(rows["id"], wanted).to_numpy()
        for row in rows.select(["id", "label", "labels"]).filter(pa.array(found)).to_pylist():
            classes[row["id"]] = frozenset([row["label"]] if row["labels"] is None else row["labels"])
        chances |= zip(rows["id"].filter(pa.array(found)).to_pylist(), of_rows[found].tolist(), strict=True)
    return GivenLabels(documents, expected / max(1, documents), classes, chances)


def read_labelled(tables: NightTables, night: PublishedRun) -> Iterator[pa.Table]:
    """The predictions of a night with a label, in the order of its files, some rows at a time."""
    for batch in read_night(tables, PREDICTIONS, _COLUMNS, date=night.date, model=night.model, run=night.run):
        rows = pa.Table.from_batches([batch])
        yield rows.filter(pc.or_(pc.is_valid(rows["label"]), pc.is_valid(rows["labels"])))


def is_multilabel(tables: NightTables, night: PublishedRun) -> bool:
    """Whether the labels of a night are lists of classes; False if it has none."""
    return next((rows["labels"].null_count < len(rows) for rows in read_labelled(tables, night) if len(rows)), False)


def has_abstained(tables: NightTables, night: PublishedRun) -> bool:
    """Whether a night left documents without a label."""
    batches = read_night(tables, PREDICTIONS, ("label", "labels"), date=night.date, model=night.model, run=night.run)
    return any(pc.any(pc.and_(pc.is_null(each["label"]), pc.is_null(each["labels"]))).as_py() for each in batches)


def find_chances(rows: pa.Table) -> Floats:
    """(n,) the chance that a label is right; in a multi-label task that all classes are, taken as independent."""
    if not len(rows) or rows["labels"].null_count == len(rows):
        return np.asarray(rows["score"].to_numpy(), np.float64)
    scores, labels = rows["scores"].combine_chunks(), rows["labels"].combine_chunks()
    p = scores.items.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(rows), -1)
    given = np.zeros(p.shape, bool)
    given[pc.list_parent_indices(labels), pc.index_in(labels.flatten(), scores.keys[: p.shape[1]])] = True
    return np.asarray(np.where(given, p, 1 - p).prod(1))
