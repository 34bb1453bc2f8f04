"""The documents of nights that people have labelled, with their texts, as training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.nightly.report.night_texts import read_documents
from pipelines.nightly.review.checked_labels import check_class_counts, read_labels
from pipelines.nightly.review.given_labels import has_abstained, is_multilabel
from pipelines.nightly.review.label_file import LabelRow
from pipelines.nightly.review.review_sample import RANDOM
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables, PublishedRun
from pipelines.storage.object_store import Store
from spin.errors import UserError
from spin.labels.split_groups import choose_group, hash_text
from spin.labels.splits import assign_split
from spin.settings import Settings


@dataclass(frozen=True)
class _Labelled:
    """A document that people have labelled."""

    text: str
    group: str | None
    labels: tuple[str, ...]


def export_labels(settings: Settings, output: str, file: Path, *, model: str | None = None) -> tuple[int, int]:
    """Write the labelled documents of published nights to a Parquet file that a training can read.

    Its columns are those that the settings name: id, text, group, and label, a list where a night gives lists of
    classes; and the split, in a column `split` if they name none. The documents that a review drew at random with a
    known probability are divided by the hash of their group, else of their text, as by a training. All others train:
    they may have been chosen because they are difficult, and quality that is measured on them would be too low. A group
    that validates or tests with one document does so with all, and a text under one id under all. A document of several
    nights is written once, with the label of the latest and the last text that was given this label and is still there.
    The nights are those of one model, by default the only one with labels, else the one of the settings.
    Returns the number of documents written, and of those whose input is not there any more.
    Raises UserError for another kind of file, where there are no labels or no texts of labelled documents, where labels
    of several models could be meant, and for a label of no or several classes where its night gives each document one.
    """
    if file.suffix != ".parquet":
        raise UserError(f"{file}: expected a name that ends with .parquet")
    tables = NightTables(Store(output))
    stored, nights = read_labels(tables.out), list_nights(tables)
    model = model or _choose_model(stored, nights, settings.mlflow.model)
    given: list[tuple[str, dict[str, tuple[str, ...]]]] = []
    latest: dict[str, tuple[str, ...]] = {}
    drawn: set[str] = set()
    several = False
    for night in sorted(nights, key=lambda night: night.date):
        if night.model != model:
            continue
        rows = stored.get((night.date, night.model), ())
        labels = {row.id: row.true_labels for row in rows if row.true_labels is not None}
        if not labels:
            continue
        check_class_counts(tables, night, rows, output)
        several = several or is_multilabel(tables, night)
        if not has_abstained(tables, night):  # else they are a sample of the easier documents alone
            drawn |= {row.id for row in rows if row.reason == RANDOM and row.probability is not None}
        given.append((night.run, labels))
        latest |= labels
    if not latest:
        whose = f" of {model}" if model else ""
        raise UserError(f"{output} has no labels{whose}; `spin labels add` stores those that people have given")
    labelled: dict[str, _Labelled] = {}
    for run, labels in given:
        ids = [id for id, names in labels.items() if set(names) == set(latest[id])]
        documents = read_documents(settings.data, tables.out, run, ids)
        labelled |= {id: _Labelled(text, group, latest[id]) for id, text, group in documents}
    if not labelled:
        raise UserError(f"the input of all {len(latest):,} labelled documents of {output} is gone; nothing is written")
    _write(settings, labelled, drawn, file, several=several)
    return len(labelled), len(latest) - len(labelled)


def _choose_model(
    stored: Mapping[tuple[str, str], Sequence[LabelRow]], nights: Sequence[PublishedRun], configured: str | None
) -> str | None:
    """The model whose nights have labels, None if none has; of several the one of the settings.

    Raises UserError if that is none of them.
    """
    given = {night for night, rows in stored.items() if any(row.true_labels is not None for row in rows)}
    models = sorted({night.model for night in nights if (night.date, night.model) in given})
    if len(models) > 1 and configured not in models:
        raise UserError(f"nights of {', '.join(models)} have labels; choose the model of the training with --model")
    return configured if configured in models else next(iter(models), None)


def _write(
    settings: Settings, labelled: Mapping[str, _Labelled], drawn: Set[str], file: Path, *, several: bool
) -> None:
    data = settings.data
    groups = {id: choose_group(hash_text(each.text), each.group) for id, each in labelled.items()}
    drawn_groups = {groups[id] for id in drawn & groups.keys()}
    splits = [
        assign_split(group, settings.seed, data.valid_fraction, data.test_fraction)
        if group in drawn_groups
        else "train"
        for group in groups.values()
    ]
    classes = [list(each.labels) if several else each.labels[0] for each in labelled.values()]
    columns = {
        data.id: pa.array(list(labelled), pa.string()),
        data.text: pa.array([each.text for each in labelled.values()], pa.string()),
        data.label: pa.array(classes, pa.list_(pa.string()) if several else pa.string()),
        data.split or "split": pa.array(splits, pa.string()),
    }
    if data.group:
        columns[data.group] = pa.array([each.group for each in labelled.values()], pa.string())
    pq.write_table(pa.table(columns), file)
