"""The layout of version 0.2, hive folders and `latest`: recognize it, and convert it to tables."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.nightly.tables.night_history import list_nights
from pipelines.nightly.tables.night_records import RUNS, begin_run, find_night, finish_run
from pipelines.nightly.tables.night_tables import (
    DEAD_LETTERS,
    DISAGREEMENTS,
    INPUTS,
    PREDICTIONS,
    QUARANTINED,
    TAKEN,
    NightTables,
    file_rows,
)
from pipelines.nightly.tables.publication import (
    InputRow,
    claim,
    publish_night,
    write_empty_predictions,
    write_inputs,
)
from pipelines.storage.delta_table import DataFile
from pipelines.storage.object_store import Store
from pipelines.storage.parquet import to_parquet
from pipelines.storage.records import from_json
from spin.errors import UserError

_FORMAT = 5
"""format of the manifests that can be converted"""
_FOLDERS = (PREDICTIONS, DEAD_LETTERS, DISAGREEMENTS)
_CURRENT_RUN = re.compile(r"(\d{4}-\d{2}-\d{2})\.json")
_RUN_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}-\d{3}")
_REPORTS = ("report.html", "report.json")
_LISTS = {"label": "labels", "shadow_label": "shadow_labels"}
"""column for the lists of a multi-label task by the column that held them"""


@dataclass(frozen=True)
class ImportReport:
    """What became of the nights of the old layout."""

    imported: tuple[str, ...]
    """runs in the tables, by date"""
    dropped: tuple[str, ...]
    """dates that had not been published; their input is classified again"""


def has_old_layout(out: Store) -> bool:
    """Whether an output holds nights of version 0.2.

    Folders `date=…` in a table are those of another program, unless there is an import that did not end.
    """
    if out.exists("latest") or any(_CURRENT_RUN.fullmatch(name) for name in out.list_names(RUNS)):
        return True
    names = out.list_names(PREDICTIONS)
    return "_delta_log" not in names and any(name.startswith("date=") for name in names)


def open_output(output: str) -> NightTables:
    """The tables of an output. Raises UserError where no night was begun, or if it holds nights of version 0.2."""
    out = Store(output)
    refuse_old_layout(out)
    tables = NightTables(out)
    tables.open(PREDICTIONS)
    return tables


def refuse_old_layout(out: Store) -> None:
    """Raise UserError if an output holds nights of version 0.2."""
    if has_old_layout(out):
        raise UserError(
            f"{out.uri} holds nights in the folders of version 0.2; convert them to tables with "
            f"`spin nights import --output {out.uri}`, or use another output"
        )


def import_old_layout(out: Store) -> ImportReport:
    """Publish the nights of version 0.2 as nights of the tables, then delete their old files.

    The caller holds the leases of the output. An import that was interrupted continues: nights that are in the tables
    are not converted again, and until all are, nothing old is deleted.
    Raises UserError if a part of a night is missing.
    """
    tables = NightTables(out)
    dates = sorted(match.group(1) for name in out.list_names(RUNS) if (match := _CURRENT_RUN.fullmatch(name)))
    manifests = {date: _published_manifest(out, date) for date in dates}
    nights = [manifest for manifest in manifests.values() if manifest is not None]
    done = {(night.date, night.model) for night in list_nights(tables)}
    waiting = [manifest for manifest in nights if (manifest.date, manifest.model) not in done]
    for manifest in waiting:
        _require_parts(out, manifest)
    for model in sorted({manifest.model for manifest in waiting}):
        token = claim(tables, model)
        for manifest in waiting:
            if manifest.model == model:
                _import_night(tables, manifest, token)
    _delete_old_files(out)
    return ImportReport(
        imported=tuple(night.run for night in list_nights(tables)),
        dropped=tuple(date for date, manifest in manifests.items() if manifest is None),
    )


@dataclass(frozen=True)
class _OldPart:
    """A published file."""

    key: str
    """key in the output"""
    bytes: int
    """size"""


@dataclass(frozen=True)
class _OldFile:
    """An input file that was read."""

    uri: str
    """URI of the file"""
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""


@dataclass(frozen=True)
class _OldQuarantine:
    """An input file that could not be read."""

    uri: str
    """URI of the file"""
    reason: str
    """why"""


@dataclass(frozen=True)
class _OldShard:
    """A shard of an input file."""

    uri: str
    """URI of the file"""
    rows: int
    """documents read"""


@dataclass(frozen=True)
class _OldManifest:
    """What the import needs of `_runs/DATE-NNN/manifest.json`."""

    date: str
    """YYYY-MM-DD"""
    run: str
    """`DATE-NNN`"""
    model: str
    """name of the registered model"""
    model_version: str
    """version of the model that classified"""
    classes: tuple[str, ...]
    """classes of the model, in the order of `scores`"""
    inputs: tuple[_OldFile, ...]
    """input files that were read"""
    quarantined: tuple[_OldQuarantine, ...]
    """input files that could not be read"""
    parts: tuple[_OldPart, ...]
    """published files"""
    shards: tuple[_OldShard, ...]
    """all shards"""


def _published_manifest(out: Store, date: str) -> _OldManifest | None:
    """The manifest of the current run of a date, None if that run has not been published."""
    run = out.read_json(f"{RUNS}/{date}.json")["run"]
    stored = out.read_json(f"{RUNS}/{run}/manifest.json")
    if stored is None or not out.exists(f"{RUNS}/{run}/published.json"):
        return None
    if stored.get("format") != _FORMAT:
        raise UserError(
            f"{out.uri}: the night of {date} has format {stored.get('format')}, expected {_FORMAT}; delete "
            f"{RUNS}/{date}.json to leave it out"
        )
    return from_json(_OldManifest, stored)


def _require_parts(out: Store, manifest: _OldManifest) -> None:
    """Raise UserError unless all parts of a night are there. One listing per folder."""
    sizes = {item.key: item.size for folder in _FOLDERS for item in out.list_objects(f"{folder}/date={manifest.date}")}
    for part in manifest.parts:
        if sizes.get(part.key) != part.bytes:
            raise UserError(
                f"{out.uri}/{part.key} is missing or has another size, so the night of {manifest.date} cannot be "
                f"imported; delete {RUNS}/{manifest.date}.json to leave it out"
            )


def _import_night(tables: NightTables, manifest: _OldManifest, token: int) -> None:
    """Write the files of a night anew and publish them. A night that has been written is only published."""
    out = tables.out
    run = begin_run(out, date=manifest.date, model=manifest.model, model_version=manifest.model_version, token=token)
    night = find_night(out, run.run)
    if night is None:
        files: dict[str, list[DataFile]] = {table: [] for table in _FOLDERS}
        for index, part in enumerate(manifest.parts):
            table = part.key.partition("/")[0]
            files[table].append(_convert_part(tables, manifest, part, run.run, f"{index:06d}-{token:06d}-1.parquet"))
        if not files[PREDICTIONS]:
            files[PREDICTIONS].append(write_empty_predictions(tables, run, token))
        files[INPUTS] = [write_inputs(tables, run, token, _input_rows(manifest))]
        for name in _REPORTS:
            if (report := out.read(f"{RUNS}/{manifest.run}/{name}")) is not None:
                out.write(f"{RUNS}/{run.run}/{name}", report)
        night = finish_run(out, run, token=token, files=files)
    publish_night(tables, night, token=token)


def _convert_part(tables: NightTables, manifest: _OldManifest, part: _OldPart, run: str, file_name: str) -> DataFile:
    """Write a part as a file of its table."""
    table = part.key.partition("/")[0]
    rows = pq.ParquetFile(io.BytesIO(tables.out.read(part.key) or b"")).read()
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in rows.column_names:
        column = rows[name]
        is_list = pa.types.is_list(column.type)
        if name == "scores":
            columns[name] = _scores_by_class(column, manifest.classes)
        elif name in _LISTS:
            columns[_LISTS[name] if is_list else name] = column
        else:
            columns[name] = column
    complete = file_rows(table, pa.table(columns), date=manifest.date, model=manifest.model, run=run)
    path, data = f"{run}/{file_name}", to_parquet(complete)
    tables.store(table).write(path, data)
    return DataFile(path, len(data), len(rows))


def _scores_by_class(scores: pa.ChunkedArray, classes: tuple[str, ...]) -> pa.Array:
    """Lists of one probability per class as maps from class to probability."""
    count = len(scores)
    values = scores.combine_chunks().flatten()
    if len(values) != count * len(classes):
        raise UserError(f"a part has {len(values)} scores in {count} rows; expected {len(classes)} per row")
    offsets = pa.array(range(0, len(values) + 1, len(classes)) if classes else [0] * (count + 1), pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array(list(classes) * count, pa.string()), values.cast(pa.float32()))


def _input_rows(manifest: _OldManifest) -> list[InputRow]:
    rows: Counter[str] = Counter()
    for shard in manifest.shards:
        rows[shard.uri] += shard.rows
    taken = [InputRow(file.uri, file.size, file.version, rows[file.uri], TAKEN) for file in manifest.inputs]
    return taken + [InputRow(file.uri, 0, "", 0, QUARANTINED, file.reason) for file in manifest.quarantined]


def _delete_old_files(out: Store) -> None:
    """Delete what only version 0.2 reads; `latest` last, since the output counts as unconverted while it is there."""
    tables = NightTables(out)
    for folder in _FOLDERS:
        table = tables.find(folder)
        named = set() if table is None else set(table.file_table["path"].to_pylist())
        for name in out.list_names(folder):
            if name.startswith("date="):
                keys = [key for key in out.list(f"{folder}/{name}") if key.removeprefix(f"{folder}/") not in named]
                out.delete_many(keys)
    for pattern in (_CURRENT_RUN, _RUN_FOLDER):  # a date without its run's manifest would count as not published
        for name in out.list_names(RUNS):
            if pattern.fullmatch(name):
                out.delete(f"{RUNS}/{name}")
    out.delete("latest")
