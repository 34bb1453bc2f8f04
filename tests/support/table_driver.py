"""A night without a model: it claims, resumes or begins a run, writes its shards and publishes it, as a driver does."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data import input_files
from pipelines.data.input_files import InputFile
from pipelines.nightly.tables.night_history import FileState, taken_files
from pipelines.nightly.tables.night_records import (
    RUNS,
    NightRecord,
    RunRecord,
    begin_run,
    find_night,
    finish_run,
    is_abandoned,
    list_runs,
)
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    INPUTS,
    PREDICTIONS,
    QUARANTINED,
    TAKEN,
    NightTables,
    file_rows,
    table_schema,
)
from pipelines.nightly.tables.publication import (
    InputRow,
    claim,
    publish_night,
    require_claim,
    write_empty_predictions,
    write_inputs,
)
from pipelines.service_errors import BadRowsError
from pipelines.storage.delta_table import DataFile
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import LogLayout, ShardCounts, ShardLog, ShardOutcome, StepResult

RETRY_SECONDS = 20.0
_FILES_PER_SHARD = 2


@dataclass(frozen=True)
class NightRequest:
    """What `spin classify` is asked for."""

    source: str
    model: str
    date: str
    incremental: bool = True
    restart: bool = False
    strict: bool = False
    """whether a single bad file fails the night with status 4"""


@dataclass(frozen=True, kw_only=True)
class _Counts(ShardCounts):
    predicted: int
    dead: int
    quarantined: tuple[str, ...] = ()


def classify_into_tables(output: str, request: NightRequest) -> RunRecord:
    """Classify the new files of a source and publish the night; return the run that is published."""
    tables = NightTables(Store(output))
    listed = input_files.list_files(request.source, allow_empty=True)
    token = claim(tables, request.model, retry_seconds=RETRY_SECONDS)
    files = _new_files(tables, request, listed)
    run = None if request.restart else _find_run(tables, request, files)
    if run is None:
        run = begin_run(
            tables.out,
            date=request.date,
            model=request.model,
            model_version="7",
            token=token,
            incremental=request.incremental,
        )
        tables.out.create(_plan_key(run), _plan(files))
    night = find_night(tables.out, run.run)
    if night is None:
        night = _compute(tables, run, token, files, request.strict)
    publish_night(tables, night, token=token, retry_seconds=RETRY_SECONDS)
    return run


def _new_files(tables: NightTables, request: NightRequest, listed: Sequence[InputFile]) -> list[InputFile]:
    if not request.incremental:
        return list(listed)
    states = {FileState(file.uri, file.size, file.version): file for file in listed}
    taken = taken_files(tables, model=request.model, date=request.date, files=states)
    return [file for state, file in states.items() if state not in taken]


def _find_run(tables: NightTables, request: NightRequest, files: Sequence[InputFile]) -> RunRecord | None:
    """The newest run of the date that has the same plan and was not given up."""
    for run in reversed(list_runs(tables.out)):
        same = (run.date, run.model) == (request.date, request.model)
        if same and tables.out.read(_plan_key(run)) == _plan(files) and not is_abandoned(tables.out, run.run):
            return run
    return None


def _plan_key(run: RunRecord) -> str:
    return f"{RUNS}/{run.run}/plan.json"


def _plan(files: Sequence[InputFile]) -> bytes:
    return json.dumps([[file.uri, file.size, file.version] for file in files]).encode()


def _compute(tables: NightTables, run: RunRecord, token: int, files: Sequence[InputFile], strict: bool) -> NightRecord:
    """Write the shards that are not committed, and record what the run consists of."""
    data = {f"{table}.parquet": f"{table}/{run.run}" for table in (PREDICTIONS, DEAD_LETTERS)}
    log = ShardLog(tables.out, token=token, layout=LogLayout(f"{RUNS}/{run.run}", data), retry_seconds=RETRY_SECONDS)
    outcomes = log.outcomes(_Counts)
    for number, start in enumerate(range(0, len(files), _FILES_PER_SHARD)):
        name = f"{number:06d}"
        if name not in outcomes:
            with log.attempt(name) as attempt:
                result = _step(run, files[start : start + _FILES_PER_SHARD])
                outcomes[name] = log.commit(name, result, tries=attempt.begun, seconds=0, ended=0)
    bad = {uri for outcome in outcomes.values() for uri in outcome.counts.quarantined}
    require_claim(tables, run.model, token)
    if strict and bad:
        raise BadRowsError(f"{len(bad)} files cannot be classified")
    rows = [
        InputRow(file.uri, file.size, file.version, 1, QUARANTINED if file.uri in bad else TAKEN, None)
        for file in files
    ]
    published = {
        PREDICTIONS: _data_files(outcomes, PREDICTIONS) or [write_empty_predictions(tables, run, token)],
        DEAD_LETTERS: _data_files(outcomes, DEAD_LETTERS),
        INPUTS: [write_inputs(tables, run, token, rows)],
    }
    return finish_run(tables.out, run, token=token, files=published)


def _step(run: RunRecord, files: Sequence[InputFile]) -> StepResult[_Counts]:
    """Predict the documents of a few files. A file that is no JSONL or has changed is quarantined."""
    predictions: list[dict[str, Any]] = []
    letters: list[dict[str, Any]] = []
    bad: list[str] = []
    for file in files:
        documents = _read(file)
        if documents is None:
            bad.append(file.uri)
            continue
        for row, document in enumerate(documents):
            if document["text"]:
                predictions.append({"id": document["id"], "label": "good", "score": 0.5, "model_version": "7"})
            else:
                letters.append({"id": document["id"], "file": file.uri, "first": 0, "row": row, "reason": "empty_text"})
    contents = {PREDICTIONS: predictions, DEAD_LETTERS: letters}
    files_by_ending = {f"{table}.parquet": _parquet(table, run, rows) for table, rows in contents.items() if rows}
    counts = _Counts(
        rows=len(predictions) + len(letters),
        predicted=len(predictions),
        dead=len(letters),
        quarantined=tuple(bad),
    )
    return StepResult(files_by_ending, counts)


def _read(file: InputFile) -> list[dict[str, str]] | None:
    try:
        [now] = input_files.list_files(file.uri)
        if now != file:
            return None
        with open(file.uri, encoding="utf-8") as source:
            return [json.loads(line) for line in source]
    except (ValueError, OSError, input_files.UserError):
        return None


def _parquet(table: str, run: RunRecord, rows: Sequence[dict[str, Any]]) -> bytes:
    values = pa.Table.from_pylist(list(rows), schema=table_schema(table))
    buffer = io.BytesIO()
    pq.write_table(file_rows(table, values, date=run.date, model=run.model, run=run.run), buffer)
    return buffer.getvalue()


def _data_files(outcomes: dict[str, ShardOutcome[_Counts]], table: str) -> list[DataFile]:
    """The files of a table that the outcomes name."""
    return [
        DataFile(
            key.removeprefix(f"{table}/"),
            file.bytes,
            outcome.counts.predicted if table == PREDICTIONS else outcome.counts.dead,
        )
        for outcome in outcomes.values()
        for key, file in outcome.files.items()
        if key.startswith(f"{table}/")
    ]
