"""The documents of nights that people have labelled, with their texts, as training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.nightly.report.night_texts import read_texts
from pipelines.nightly.review.checked_labels import read_labels
from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.storage.object_store import Store
from spin.errors import UserError
from spin.settings import DataSettings


@dataclass(frozen=True)
class _LabelledText:
    id: str
    text: str
    labels: tuple[str, ...]


def export_labels(data: DataSettings, output: str, file: Path, *, model: str | None = None) -> tuple[int, int]:
    """Write the labelled documents of published nights to a Parquet file that a training can read.

    Its columns are those that the settings name: id, text and label, a list where any document has none or several
    classes. A document of several nights is written once, with the label of the latest. Returns the number of documents
    written, and of those whose input is not there any more. Raises UserError where there are no labels.
    """
    tables = NightTables(Store(output))
    stored = read_labels(tables.out)
    labelled: dict[str, _LabelledText] = {}
    lost: set[str] = set()
    for night in sorted(list_nights(tables), key=lambda night: night.date):
        if model not in (None, night.model):
            continue
        rows = stored.get((night.date, night.model), ())
        labels = {row.id: row.true_labels for row in rows if row.true_labels is not None}
        read = {each.id: each for each in _read(data, tables.out, night.run, labels)}
        labelled |= read
        lost = (lost | set(labels)) - set(labelled)
    if not labelled and not lost:
        raise UserError(f"{output} has no labels; `spin labels add` stores those that people have given")
    _write(data, list(labelled.values()), file)
    return len(labelled), len(lost)


def _read(data: DataSettings, out: Store, run: str, labels: dict[str, tuple[str, ...]]) -> Iterator[_LabelledText]:
    """The labelled documents of a run whose texts are still there."""
    for id, text in read_texts(data, out, run, labels) if labels else ():
        yield _LabelledText(id, text, labels[id])


def _write(data: DataSettings, rows: list[_LabelledText], file: Path) -> None:
    several = any(len(row.labels) != 1 for row in rows)
    table = pa.table(
        {
            data.id: pa.array([row.id for row in rows], pa.string()),
            data.text: pa.array([row.text for row in rows], pa.string()),
            data.label: [list(row.labels) if several else row.labels[0] for row in rows],
        }
    )
    pq.write_table(table, file)
