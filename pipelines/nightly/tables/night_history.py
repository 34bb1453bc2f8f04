"""The contents of an output: its nights, the input files that they took, and their predictions."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict

import pyarrow.parquet as pq

from pipelines.nightly.tables.night_records import Run
from pipelines.nightly.tables.night_tables import (
    INPUTS,
    PREDICTIONS,
    TAKEN,
    NightTables,
    PublishedRun,
    named_runs,
    partitions,
    published_runs,
    read_rows,
)
from pipelines.storage.delta_table import DataFile
from pipelines.storage.filesystem import PARALLEL_REQUESTS
from pipelines.storage.object_store import Store
from spin.errors import UserError


class FileState(NamedTuple):
    """A state of an input file. A file that changes has another state, and its documents are new."""

    uri: str
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""


class PredictionRow(TypedDict):
    """A row of the published predictions, without the kept columns."""

    id: str
    label: str | None
    """class; None without a label and in a multi-label task"""
    labels: list[str] | None
    """classes in a multi-label task, else None"""
    score: float
    """probability of the label"""
    scores: dict[str, float]
    """probability of each class"""
    depth: int
    """block after which the document exited"""
    model_version: str
    """version of the model that classified it"""


def list_nights(tables: NightTables) -> list[PublishedRun]:
    """The nights of an output, by date and model; none where no night was begun yet."""
    predictions = tables.find(PREDICTIONS)
    return [] if predictions is None else published_runs(predictions)


def find_newest_night(nights: Iterable[PublishedRun], *, model: str | None = None) -> PublishedRun | None:
    """The night of the last date, of one model or of any; None without nights.

    Of nights of several models it is the one that was committed last.
    """
    eligible = (night for night in nights if model in (None, night.model))
    return max(eligible, key=lambda night: (night.date, night.committed), default=None)


def recorded_files(
    tables: NightTables, *, model: str, date: str, files: Collection[FileState], status: str = TAKEN
) -> set[FileState]:
    """The files that a night of the model of another date than `date`, published or deleted, has with a status.

    The documents of files with the status `taken` are in that night. Files of deleted nights that were freed are not
    among them. Ask after the claim: until another claim, the answer stays true. Raises UserError if the table of inputs
    lacks a run that is published.
    """
    predictions = tables.find(PREDICTIONS)
    if predictions is None:
        return set()
    inputs = tables.open(INPUTS)
    wanted = set(files)
    # guarded by test_files_count_as_taken_by_published_nights_of_other_dates; broken by:
    #   runs = {night.run for night in published_runs(predictions) if night.model == model}
    runs = {night.run for night in published_runs(predictions) if night.model == model and night.date != date}
    others = {each["run"] for each in partitions(inputs) if each["model"] == model and each["date"] != date}
    deleted = others & named_runs(inputs, INPUTS, predictions)
    by_run = {run: inputs.files({"model": model, "run": run}) for run in runs | deleted}
    # guarded by test_missing_input_rows_do_not_pass_as_nothing_taken; broken by:
    #   if lacking := []:
    if lacking := sorted(run for run, found in by_run.items() if not found):
        raise UserError(
            f"{inputs.store.uri} lacks the input files of run {lacking[0]}, which is published; put them back with "
            f"`spin nights restore --run {lacking[0]} --output {tables.out.uri}`"
        )

    def read(file: DataFile) -> set[FileState]:
        return wanted & _read_files(inputs.store, file, status)

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
        return set().union(*threads.map(read, [file for each in by_run.values() for file in each]))


def require_not_taken(tables: NightTables, night: Run) -> None:
    """Raise UserError if a night of another date of the model holds a file that a run has taken.

    Ask after the claim: until another claim, the answer stays true.
    """
    inputs = tables.store(INPUTS)
    files = set().union(*(_read_files(inputs, file, TAKEN) for file in night.files.get(INPUTS, ())))
    if taken := recorded_files(tables, model=night.model, date=night.date, files=files):
        raise UserError(
            f"run {night.name} cannot be restored: nights of other dates, published or deleted, have taken "
            f"{len(taken)} of its {len(files)} files, such as {min(taken).uri}. Classify the rest again with "
            f"`spin classify --date {night.date} --incremental --restart`, restore the other nights first, or free the "
            "files of deleted nights with `spin nights delete --forget-files`"
        )


def read_predictions(output: str, count: int | None = None, *, model: str | None = None) -> list[PredictionRow]:
    """The predictions of the newest night of an output, at most `count`: of one model, or of any.

    Raises UserError where no night was published.
    """
    tables = NightTables(Store(output))
    newest = find_newest_night(list_nights(tables), model=model)
    if newest is None:
        raise UserError(f"{output} has no finished night; `spin classify` makes one")
    rows = read_rows(tables.open(PREDICTIONS), {"date": newest.date, "model": newest.model})
    columns = list(PredictionRow.__annotations__)
    return [
        {**row, "scores": dict(row["scores"])}  # type: ignore[typeddict-item]
        for row in rows.select(columns).slice(0, count).to_pylist()
    ]


def _read_files(store: Store, file: DataFile, status: str) -> set[FileState]:
    """The files that a file of the table of inputs lists with a status."""
    rows = read_inputs(store, file, ["uri", "size", "version", "status"])
    return {FileState(row["uri"], row["size"], row["version"]) for row in rows if row["status"] == status}


def read_inputs(store: Store, file: DataFile, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a file of the table of inputs, by row. Raises UserError if the file is missing."""
    data = store.read(file.path)
    if data is None:
        run = file.path.partition("/")[0]
        raise UserError(
            f"{store.uri}/{file.path} is missing, so it is unknown which files run {run} has taken; put it back, or do "
            f"its night again with `spin classify --date {run[:10]} --incremental --restart`"
        )
    rows: list[dict[str, Any]] = pq.ParquetFile(io.BytesIO(data)).read(columns=list(columns)).to_pylist()
    return rows
