"""The tables read as users read them: with deltalake, DuckDB, Polars and pandas."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_delta
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from pipelines.storage.object_store import Store
from tests.support.nights import DATE, MODEL, run_night

NEXT = "2026-03-02"
Row = tuple[Any, ...]
COLUMNS = (
    "date", "model", "id", "label", "labels", "score", "scores", "depth", "model_version", "unread_tokens",
    "reason_label", "reason_words", "reason_neurons", "lang", "priority",
)  # fmt: skip
REASONS = {
    "reason_label": "good",
    "reason_words": [{"word": "fine", "start": 2, "end": 6, "contribution": 0.5}],
    "reason_neurons": [{"column": "ffn.02.max", "neuron": 7, "contribution": -0.25}],
}


def day(date: str) -> datetime.date:
    return datetime.date.fromisoformat(date)


def read_with_deltalake(uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.RecordBatchReader.from_stream(DeltaTable(uri).scan()).read_all().to_pylist()
    return rows


def read_with_pandas(uri: str) -> list[dict[str, Any]]:
    """By way of Polars: `DeltaTable.to_pandas` goes through PyArrow's datasets, which may abort when Python exits."""
    frame = pl.read_delta(uri).to_pandas(use_pyarrow_extension_array=True)
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


def read_with_polars(uri: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pl.read_delta(uri).to_dicts()
    return rows


def read_with_duckdb(uri: str) -> list[dict[str, Any]]:
    """Without a network: the extension comes from its wheel."""
    version = f"v{duckdb.__version__}"
    folder = Path(next(iter(duckdb_extension_delta.__path__))) / "extensions" / version
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.execute(f"LOAD '{folder / 'delta.duckdb_extension'}'")
    rows: list[dict[str, Any]] = connection.sql(f"select * from delta_scan('{uri}')").to_arrow_table().to_pylist()
    return rows


READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "deltalake": read_with_deltalake,
    "pandas": read_with_pandas,
    "polars": read_with_polars,
    "duckdb": read_with_duckdb,
}


def plain(value: Any) -> Any:
    """A value without the types of a reader: maps as dictionaries, arrays as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, tuple) for item in value):
        return dict(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) and "key" in item for item in value):
        return {item["key"]: item["value"] for item in value}
    return value


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_readers_see_the_same_rows(reader: str, tmp_path: Path) -> None:
    """Two nights of a model, one of them redone, the other with reasons and other kept columns, and two more.

    They are a multi-label night and an empty one.
    """
    out = Store(str(tmp_path / "out"))
    lang, priority = pa.schema({"lang": pa.string()}), pa.schema({"priority": pa.int64()})
    run_night(out, ["gone"], date=DATE, kept=lang, columns={"lang": "xx"})
    runs = [
        run_night(out, ["a", "b", "c"], date=DATE, kept=lang, columns={"lang": "de"}),
        run_night(out, ["m"], date=NEXT, model="it's multi", columns={"label": None, "labels": ["x", "y"]}),
        run_night(out, ["a"], date=NEXT, kept=priority, columns={"priority": 2**53 + 1, **REASONS}),
    ]
    run_night(out, [], date="2026-03-03")
    scores, without = {"good": 0.75, "bad": 0.25}, (None,) * 4
    expected = [
        *((day(DATE), MODEL, id, "good", None, 0.75, scores, 3, "7", *without, "de", None) for id in ("a", "b", "c")),
        (day(NEXT), "it's multi", "m", None, ["x", "y"], 0.75, scores, 3, "7", *without, None, None),
        (day(NEXT), MODEL, "a", "good", None, 0.75, scores, 3, "7", None, *REASONS.values(), None, 2**53 + 1),
    ]
    rows = READERS[reader](f"{out.uri}/predictions")
    read = sorted((tuple(plain(row[name]) for name in COLUMNS) for row in rows), key=lambda row: row[:3])
    assert read == expected
    assert set(rows[0]) == {*COLUMNS, "run"}
    assert {(row["date"], row["model"], row["run"]) for row in rows} == {
        (day(run.date), run.model, run.name) for run in runs
    }


@pytest.mark.parametrize("reader", READERS)
def test_readers_see_dead_letters_and_inputs(reader: str, tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    night = run_night(out, ["a"], dead=["d1", "d2"])
    letters = READERS[reader](f"{out.uri}/dead_letters")
    assert sorted((row["date"], row["model"], row["run"], row["id"], row["reason"]) for row in letters) == [
        (day(DATE), MODEL, night.name, id, "null_text") for id in ("d1", "d2")
    ]
    assert READERS[reader](f"{out.uri}/inputs") == []
