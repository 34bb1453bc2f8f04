"""The files in which people give labels to documents of nights: written for a review, and read again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.data.files.csv_reader import choose_delimiter
from pipelines.data.files.formats import list_columns
from pipelines.data.files.text_values import column_to_text, to_text
from pipelines.nightly.night_date import parse_date
from pipelines.nightly.review.review_sample import ReviewSample
from pipelines.nightly.tables.night_records import is_run_name
from spin.errors import UserError

T = TypeVar("T")
_REQUIRED = ("id", "true_label")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""beginning of a text that spreadsheets take for a formula (also in full width), or of one that was written safely"""


@dataclass(frozen=True)
class LabelRow:
    """A document and its true label, as far as people have given one."""

    id: str
    """of the document"""
    true_labels: tuple[str, ...] | None
    """its classes, one of them in a task with one class per document; None for a row without a label"""
    date: str | None = None
    """YYYY-MM-DD of the night that it is from, None if the file does not say, or says `run`"""
    model: str | None = None
    """registered name of the night's model, None if the file does not say"""
    reason: str | None = None
    """why a review has drawn it, None if none has"""
    population: int | None = None
    """documents with a label of the night; in files without probabilities those of the stratum that `reason` names"""
    probability: float | None = None
    """of being drawn; None in files that were written before there were probabilities"""
    seed: int | None = None
    """of the draw"""
    run: str | None = None
    """name of a run of the night that it is from, None if the file does not say; never stored"""

    @property
    def was_drawn(self) -> bool:
        """Whether a review has drawn it."""
        return self.reason is not None or self.probability is not None


def write_review(sample: ReviewSample, file: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write the documents of a sample to a CSV or Parquet file, with their texts if they are given.

    In CSV, the classes of a multi-label task are a list in JSON, and a quotation mark comes before a text that a
    spreadsheet would take for a formula; `read_label_file` takes it away. Raises UserError for another ending.
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
        "probability": rows["probability"],
        "population": rows["population"],
        "date": pa.repeat(night.date, len(rows)),
        "model": pa.repeat(night.model, len(rows)),
        "run": pa.repeat(night.run, len(rows)),
        "seed": pa.repeat(sample.seed, len(rows)),
    }
    table = pa.table(columns)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".csv":
        table = _change_values(table, pa.types.is_list, json.dumps)
        # guarded by test_a_spreadsheet_takes_no_cell_of_a_review_for_a_formula; broken by:
        #   pyarrow.csv.write_csv(table, file)
        pyarrow.csv.write_csv(_change_values(table, pa.types.is_string, _escape_formula), file)
    else:
        raise UserError(f"{file}: expected a name that ends with .csv or .parquet")


def read_label_file(file: Path) -> list[LabelRow]:
    """The rows of a CSV or Parquet file, with ids and classes as nights write them.

    Spreadsheets rewrite dates, so the column `run` says of which night a row is, and `date` only without it. Raises
    UserError if the file cannot be read, has no `id` or `true_label`, or has a value of another form.
    """
    try:
        table = pq.read_table(file) if file.suffix == ".parquet" else _read_csv(file)
        missing = [name for name in _REQUIRED if name not in table.column_names]
        if missing:
            there = list_columns(table.column_names)
            raise UserError(f"{file} has no column '{missing[0]}'; it has {there}, expected {' and '.join(_REQUIRED)}")
        ids = column_to_text(table["id"])
        given = table["true_label"]
        labels = given.to_pylist() if pa.types.is_nested(given.type) else column_to_text(given)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read: {error}; expected CSV or Parquet, as spin review writes it") from None
    return [
        _parse_row(row, id, label, file)
        for row, id, label in zip(table.drop_columns(_REQUIRED).to_pylist(), ids, labels, strict=True)
        if id is not None
    ]


def _parse_row(row: Mapping[str, Any], id: str, label: Any, file: Path) -> LabelRow:
    """The row of a document. Raises UserError, naming it, for a value of another form than a review has."""
    run = row.get("run")
    run = run if isinstance(run, str) and is_run_name(run) else None
    dated = run is None and row.get("date")
    return LabelRow(
        id=id,
        true_labels=_parse_labels(label, id, file),
        date=parse_date(str(row["date"])[:10], option=f"{file}: the row of '{id}': date") if dated else None,
        model=row.get("model") or None,
        reason=row.get("reason") or None,
        population=_parse_number(row, "population", int, file),
        probability=_parse_number(row, "probability", _to_probability, file),
        seed=_parse_number(row, "seed", int, file),
        run=run,
    )


def _read_csv(file: Path) -> pa.Table:
    """A CSV file; ids and labels stay as they are written, also where all of them are numbers.

    Its header decides what separates values, as in the files of a night.
    """
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as source:
        delimiter = choose_delimiter(source, _REQUIRED)
    types = dict.fromkeys((*_REQUIRED, "date", "model", "run", "reason"), pa.string())
    table = pyarrow.csv.read_csv(
        file,
        # a row must lie in one block, whose size is a number of 32 bits
        read_options=pyarrow.csv.ReadOptions(block_size=min(max(1 << 20, file.stat().st_size), (1 << 31) - 1)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )
    return _change_values(table, pa.types.is_string, _unescape_formula)


def _change_values(table: pa.Table, has_kind: Callable[[pa.DataType], bool], change: Callable[[Any], str]) -> pa.Table:
    """The table with every value in columns of a kind changed to a text."""
    for at, field in enumerate(table.schema):
        if has_kind(field.type):
            values = [None if value is None else change(value) for value in table[field.name].to_pylist()]
            table = table.set_column(at, field.name, pa.array(values, pa.string()))
    return table


def _escape_formula(text: str) -> str:
    """The text as OWASP recommends it for CSV: a spreadsheet shows it, and does not compute it."""
    return f"'{text}" if _FORMULA.match(text) else text


def _unescape_formula(text: str) -> str:
    """The text before it was escaped."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _parse_number(row: Mapping[str, Any], name: str, parse: Callable[[Any], T], file: Path) -> T | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError:
        expected = "a whole number" if parse is int else "a number above 0, at most 1"
        raise UserError(f"{file}: {name} is {value!r}; expected {expected}, as spin review has written it") from None


def _to_probability(value: Any) -> float:
    """A probability, also with the comma of some spreadsheets. Raises ValueError for another value."""
    probability = float(str(value).replace(",", "."))
    if not 0 < probability <= 1:
        raise ValueError
    return probability


def _parse_labels(value: Any, id: str, file: Path) -> tuple[str, ...] | None:
    """The classes of a cell: a name, a list, or a list as JSON; None for an empty or a blank cell."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):  # the name of a class may begin with a bracket
            value = json.loads(value)
    if not isinstance(value, list):
        name = "" if value is None else str(value).strip()
        return (name,) if name else None
    names = [to_text(each) for each in value]
    if None in names:
        raise UserError(f"{file}: the label of '{id}' is a list with a value that is no name; expected only names")
    return tuple(name.strip() for name in names if name is not None)
