"""Runs with a few rows, written and published without a model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.intake import FileOutcome
from pipelines.nightly.tables.night_history import FileState
from pipelines.nightly.tables.night_records import Run, begin_run, finish_run, list_runs
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    INPUTS,
    NO_COLUMNS,
    PREDICTIONS,
    NightTables,
    file_rows,
    published_runs,
    read_rows,
    table_schema,
    was_published,
)
from pipelines.nightly.tables.publication import (
    claim_nights,
    publish_night,
    write_empty_predictions,
    write_inputs,
)
from pipelines.storage.delta_table import DataFile
from pipelines.storage.object_store import Store
from tests.support.leases import NeverOvertaken

DATE, MODEL = "2026-03-01", "topics"


def claim_model(tables: NightTables, model: str = MODEL) -> int:
    """Claim a model's nights without a lease; returns the number of the claim."""
    return claim_nights(tables, model, NeverOvertaken())


def prediction(id: str, **columns: Any) -> dict[str, Any]:
    """A row of predictions."""
    scores = {"good": 0.75, "bad": 0.25}
    return {"id": id, "label": "good", "score": 0.75, "scores": scores, "depth": 3, "model_version": "7", **columns}


def write_file(
    tables: NightTables,
    table: str,
    run: Run,
    name: str,
    rows: Sequence[dict[str, Any]],
    kept: pa.Schema = NO_COLUMNS,
) -> DataFile:
    """Write a file of a table, as a worker does."""
    listed = [{**row, "scores": list(row["scores"].items())} if "scores" in row else row for row in rows]
    values = pa.Table.from_pylist(listed, schema=table_schema(table, kept))
    complete = file_rows(table, values, date=run.date, model=run.model, run=run.name, kept=kept)
    buffer = io.BytesIO()
    pq.write_table(complete, buffer)
    tables.store(table).write(f"{run.name}/{name}", buffer.getvalue())
    return DataFile(f"{run.name}/{name}", len(buffer.getvalue()), len(rows))


def write_night(
    tables: NightTables,
    token: int,
    ids: Sequence[str],
    *,
    date: str = DATE,
    model: str = MODEL,
    dead: Sequence[str] = (),
    rows: Sequence[dict[str, Any]] | None = None,
    disputed: Sequence[str] = (),
    inputs: Sequence[FileState] = (),
    kept: pa.Schema = NO_COLUMNS,
    columns: dict[str, Any] | None = None,
    incremental: bool = False,
) -> Run:
    """Write a finished run: two files of predictions, one of dead letters if there are any, and its inputs.

    `rows` are the predictions where they differ in more than their ids; a shadow disagrees on the ids `disputed`.
    """
    run = begin_run(tables.out, date=date, model=model, model_version="7", claim=token, incremental=incremental)
    rows = [prediction(id, **(columns or {})) for id in ids] if rows is None else rows
    halves = [part for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]) if part]
    predictions = [
        write_file(tables, PREDICTIONS, run, f"{shard:06d}-{token:06d}-1.parquet", part, kept)
        for shard, part in enumerate(halves)
    ]
    differing = [{"id": id, "label": "good", "shadow_label": "bad"} for id in disputed]
    letters = [{"id": id, "file": "a.jsonl", "first": 0, "row": 0, "reason": "null_text"} for id in dead]
    files = {
        PREDICTIONS: predictions or [write_empty_predictions(tables, run, token, kept)],
        DEAD_LETTERS: [write_file(tables, DEAD_LETTERS, run, f"000000-{token:06d}-1.parquet", letters, kept)]
        if letters
        else [],
        DISAGREEMENTS: [write_file(tables, DISAGREEMENTS, run, f"000000-{token:06d}-1.parquet", differing)]
        if differing
        else [],
        INPUTS: [write_inputs(tables, run, token, [FileOutcome(*file, 1) for file in inputs])],
    }
    return finish_run(tables.out, run, files)


def run_night(out: Store, ids: Sequence[str], *, model: str = MODEL, **options: Any) -> Run:
    """Claim a model, write a run and publish it; the options are those of `write_night`."""
    tables = NightTables(out)
    token = claim_model(tables, model)
    night = write_night(tables, token, ids, model=model, **options)
    publish_night(tables, night, claim=token, kept=options.get("kept", NO_COLUMNS))
    return night


def published_ids(tables: NightTables) -> dict[tuple[str, str], list[str]]:
    """The ids of the predictions by date and model, sorted; an id that is there twice is listed twice."""
    predictions = tables.open(PREDICTIONS)
    return {
        (night.date, night.model): sorted(
            read_rows(predictions, {"date": night.date, "model": night.model})["id"].to_pylist()
        )
        for night in published_runs(predictions)
    }


def list_unfinished(tables: NightTables) -> list[Run]:
    """The runs that were never published, in the order in which they began, abandoned ones included."""
    predictions = tables.find(PREDICTIONS)
    return [run for run in list_runs(tables.out) if predictions is None or not was_published(predictions, run.name)]
