"""The file that people fill in: documents of a night with room for their true labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.nightly.review.review_sample import ReviewSample
from spin.errors import UserError


def write_review(sample: ReviewSample, file: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write the documents of a sample to a CSV or Parquet file, with their texts if they are given.

    In CSV, the classes of a multi-label task are a list in JSON. Raises UserError for another ending.
    """
    rows, night = sample.rows, sample.night
    several = rows["labels"].null_count < len(rows)
    ids = rows["id"].to_pylist()
    columns = {"id": rows["id"]}
    if texts is not None:
        columns["text"] = pa.array([texts.get(id) for id in ids], pa.string())
    columns |= {
        "label": rows["labels"] if several else rows["label"],
        "true_label": pa.nulls(len(rows), pa.list_(pa.string()) if several else pa.string()),
        "score": rows["score"],
        "reason": rows["reason"],
        "population": rows["population"],
        "date": pa.repeat(night.date, len(rows)),
        "model": pa.repeat(night.model, len(rows)),
        "run": pa.repeat(night.run, len(rows)),
    }
    table = pa.table(columns)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".csv":
        pyarrow.csv.write_csv(_without_lists(table), file)
    else:
        raise UserError(f"{file}: expected a name that ends with .csv or .parquet")


def _without_lists(table: pa.Table) -> pa.Table:
    """The table with lists as JSON."""
    for at, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            values = [None if value is None else json.dumps(value) for value in table[field.name].to_pylist()]
            table = table.set_column(at, field.name, pa.array(values, pa.string()))
    return table
