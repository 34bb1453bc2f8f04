"""The documents of nights that people have labelled, with their texts, as training data."""

from __future__ import annotations

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

_Labelled = dict[str, tuple[str, tuple[str, ...]]]
"""texts and labels of documents by id"""


def export_labels(data: DataSettings, output: str, file: Path, *, model: str | None = None) -> tuple[int, int]:
    """Write the labelled documents of published nights to a Parquet file that a training can read.

    Its columns are those that the settings name: id, text and label, a list where any document has none or several
    classes. A document of several nights is written once, with the label of the latest. Returns the number of documents
    written, and of those whose input is not there any more. Raises UserError where there are no labels.
    """
    tables = NightTables(Store(output))
    stored = read_labels(tables.out)
    labelled: _Labelled = {}
    lost: set[str] = set()
    for night in sorted(list_nights(tables), key=lambda night: night.date):
        if model not in (None, night.model):
            continue
        rows = stored.get((night.date, night.model), ())
        labels = {row.id: row.true_labels for row in rows if row.true_labels is not None}
        if labels:
            labelled |= {id: (text, labels[id]) for id, text in read_texts(data, tables.out, night.run, labels)}
        lost = (lost | set(labels)) - set(labelled)
    if not labelled and not lost:
        raise UserError(f"{output} has no labels; `spin labels add` stores those that people have given")
    _write(data, labelled, file)
    return len(labelled), len(lost)


def _write(data: DataSettings, labelled: _Labelled, file: Path) -> None:
    several = any(len(labels) != 1 for _, labels in labelled.values())
    table = pa.table(
        {
            data.id: pa.array(list(labelled), pa.string()),
            data.text: pa.array([text for text, _ in labelled.values()], pa.string()),
            data.label: [list(labels) if several else labels[0] for _, labels in labelled.values()],
        }
    )
    pq.write_table(table, file)
