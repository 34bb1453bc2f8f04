"""The four tables of an output: their columns, the input columns that they carry, and reading a partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date as day
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.files.kept_columns import columns_of_type
from pipelines.nightly.tables.prediction_columns import predictions_schema
from pipelines.storage.delta_table import LOG, TableSnapshot, create_table, open_table
from pipelines.storage.filesystem import store_errors
from pipelines.storage.object_store import Store
from spin.errors import UserError

PREDICTIONS, DEAD_LETTERS, INPUTS, DISAGREEMENTS = "predictions", "dead_letters", "inputs", "disagreements"
SIDE_TABLES = (INPUTS, DEAD_LETTERS, DISAGREEMENTS)
"""tables that get the rows of a run before its predictions are published"""
TABLES = (PREDICTIONS, *SIDE_TABLES)
TAKEN, QUARANTINED = "taken", "quarantined"
"""values of the column `status` of the inputs"""

_DELETED = ".deleted"
"""what follows the name of a run in the rows of the inputs that stay taken once its night is deleted"""

_LABELS = pa.list_(pa.string())
_COLUMNS: Mapping[str, pa.Schema] = {  # those of the predictions are in `prediction_columns.py`
    DEAD_LETTERS: pa.schema(
        [
            ("id", pa.string()),
            ("file", pa.string()),
            ("first", pa.int64()),  # start of the piece in its file: a row, in plain JSONL a byte
            ("row", pa.int64()),  # row within the piece
            ("reason", pa.string()),
            ("message", pa.string()),
            ("text", pa.string()),  # null unless `classify.dead_letter_text` is true
        ]
    ),
    INPUTS: pa.schema(
        [
            ("uri", pa.string()),
            ("size", pa.int64()),
            ("version", pa.string()),  # ETag, or modification time on a disk
            ("rows", pa.int64()),
            ("status", pa.string()),
            ("reason", pa.string()),  # null unless quarantined
        ]
    ),
    DISAGREEMENTS: pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.string()),
            ("labels", _LABELS),
            ("score", pa.float32()),
            ("shadow_label", pa.string()),
            ("shadow_labels", _LABELS),
            ("shadow_score", pa.float32()),
            ("model_version", pa.string()),
            ("shadow_version", pa.string()),
        ]
    ),
}
_PARTITIONS = {PREDICTIONS: ("date", "model"), **dict.fromkeys(SIDE_TABLES, ("date", "model", "run"))}
_RUN_COLUMNS = {"date": pa.date32(), "model": pa.string(), "run": pa.string()}
"""first columns of every table, which say what run its rows are of"""
_CARRYING = (PREDICTIONS, DEAD_LETTERS)
"""tables that carry input columns"""
NO_COLUMNS = pa.schema([])
_NAMED = 3
"""number of foreign files that an error names"""


@dataclass(frozen=True)
class NightTables:
    """The tables of an output."""

    out: Store
    """the output, which collects all nights"""
    _opened: dict[str, TableSnapshot] = field(default_factory=dict, init=False, repr=False, compare=False)
    """last opened version of each table"""

    @cached_property
    def _stores(self) -> Mapping[str, Store]:
        return {table: self.out / table for table in TABLES}

    def store(self, table: str) -> Store:
        """The folder of a table."""
        return self._stores[table]

    def create(self) -> None:
        """Create the tables that are missing.

        Raises UserError where commits would not be atomic, or if another table is in the place of one.
        """
        for table in TABLES:
            store, last = self.store(table), self._opened.get(table)
            self._opened[table] = create_table(store, table_schema(table), _PARTITIONS[table], last)

    def find(self, table: str) -> TableSnapshot | None:
        """The current version of a table, None where no night was begun yet."""
        snapshot = open_table(self.store(table), self._opened.get(table))
        if snapshot is not None:
            self._opened[table] = snapshot
        return snapshot

    def open(self, table: str) -> TableSnapshot:
        """The current version of a table. Raises UserError where no night was begun yet."""
        snapshot = self.find(table)
        if snapshot is None:
            raise UserError(f"{self.out.uri} has no table {table}; `spin classify` makes one")
        return snapshot

    def refuse_foreign_files(self) -> None:
        """Raise UserError if files of another program lie where a table belongs; none of them is touched."""
        for table in TABLES:
            if (found := self._describe_foreign(table)) is not None:
                raise UserError(
                    f"{self.store(table).uri} holds {found}; expected a table that `spin classify` has made, or "
                    "nothing. Name another output, or move these files away"
                )

    def _describe_foreign(self, table: str) -> str | None:
        """A description of foreign files in the folder of a table; None if there are none, or the table is ours."""
        names = self.out.list_names(table)
        if names and LOG not in names:
            files = [key.removeprefix(f"{table}/") for key in self.out.list(table)]
            shown = ", ".join(files[:_NAMED]) + (", …" if len(files) > _NAMED else "")
            return f"{shown} and no Delta table" if files else None
        snapshot = self.find(table) if names else None  # also None while another command creates the table
        if snapshot is None or snapshot.partition_columns == _PARTITIONS[table]:
            return None
        return f"a Delta table with the partition columns {', '.join(snapshot.partition_columns) or '(none)'}"


def open_output(output: str) -> NightTables:
    """The tables of an output. Raises UserError where no night was begun, or if it holds files of another program."""
    tables = NightTables(Store(output))
    tables.refuse_foreign_files()
    tables.open(PREDICTIONS)
    return tables


@dataclass(frozen=True)
class PublishedRun:
    """The run that a night consists of, as the table of predictions says."""

    date: str
    """YYYY-MM-DD"""
    model: str
    """name of the registered model"""
    run: str
    """name of the run"""
    rows: int
    """number of predictions"""
    committed: float
    """when the run was published or restored, in seconds since 1970"""


def published_runs(predictions: TableSnapshot) -> list[PublishedRun]:
    """The runs that the predictions consist of, one per date and model, by date and model."""
    files = predictions.file_table
    runs = pc.replace_substring_regex(files["path"], "/.*", "")
    nights = files.append_column("run", runs).group_by(["date", "model", "run"])
    totals = nights.aggregate([("rows", "sum"), ("modified", "max")])
    return sorted(
        (
            PublishedRun(
                date=row["date"],
                model=row["model"],
                run=row["run"],
                rows=row["rows_sum"],
                committed=row["modified_max"] / 1000,
            )
            for row in totals.to_pylist()
        ),
        key=lambda run: (run.date, run.model),
    )


def named_runs(side: TableSnapshot, table: str, predictions: TableSnapshot) -> set[str]:
    """The runs whose rows belong into a side table: the published ones.

    In the inputs, these are also the names of deleted runs whose date and model have no night since.
    """
    nights = published_runs(predictions)
    runs = {night.run for night in nights}
    if table != INPUTS:
        return runs
    there = {(night.date, night.model) for night in nights}
    deleted = [each for each in partitions(side) if is_deleted_name(each["run"])]
    return runs | {each["run"] for each in deleted if (each["date"], each["model"]) not in there}


def deleted_name(run: str) -> str:
    """The name of a run in the rows of the inputs that stay taken once its night is deleted."""
    return f"{run}{_DELETED}"


def is_deleted_name(run: str) -> bool:
    """Whether rows of the inputs are of a deleted night."""
    return run.endswith(_DELETED)


def named_keys(tables: NightTables, predictions: TableSnapshot) -> set[str]:
    """The keys in the output of the files that the predictions, and for the same runs the other tables, consist of."""
    keys = {f"{PREDICTIONS}/{path}" for path in predictions.file_table["path"].to_pylist()}
    for table in SIDE_TABLES:
        side = tables.open(table)
        named = named_runs(side, table, predictions)
        files = side.file_table.select(["run", "path"]).to_pylist()
        keys |= {f"{table}/{file['path']}" for file in files if file["run"] in named}
    return keys


def was_published(predictions: TableSnapshot, run: str) -> bool:
    """Whether a run was published, now or at any time before."""
    return predictions.last_transaction(run_app(run)) is not None


def run_app(run: str) -> str:
    """The name under which the tables count the publications of a run."""
    return f"run:{run}"


def partitions(snapshot: TableSnapshot) -> list[dict[str, str]]:
    """The values of the partition columns that the files of a table have, each once."""
    names = list(snapshot.partition_columns)
    values: list[dict[str, str]] = snapshot.file_table.select(names).group_by(names).aggregate([]).to_pylist()
    return values


def partition_of(table: str, *, date: str, model: str, run: str) -> dict[str, str]:
    """The values of the partition columns of a table for a run.

    The run is no partition of the predictions: a commit replaces all rows of a date and a model.
    """
    values = {"date": date, "model": model, "run": run}
    return {name: values[name] for name in _PARTITIONS[table]}


def table_schema(table: str, kept: pa.Schema = NO_COLUMNS) -> pa.Schema:
    """The columns of a table and of its files: those of the run, our own, and kept ones where the table has them."""
    own = predictions_schema() if table == PREDICTIONS else _COLUMNS[table]
    return pa.schema([*_RUN_COLUMNS.items(), *own, *(kept if table in _CARRYING else NO_COLUMNS)])


def reserved_names() -> frozenset[str]:
    """The names, in lower case, of our own columns in the tables that carry kept ones: none of these can have them."""
    return frozenset(name.lower() for table in _CARRYING for name in table_schema(table).names)


def file_rows(table: str, rows: pa.Table, *, date: str, model: str, run: str, kept: pa.Schema = NO_COLUMNS) -> pa.Table:
    """Rows as a file of a table holds them: with all columns of the table, null where the rows have none.

    The files hold the partition columns too. The log has their values, but Polars reads them from the names of folders
    or from the files, and would see nulls.
    """
    rows = columns_of_type(rows, table_schema(table, kept))
    for name, value in (("date", day.fromisoformat(date)), ("model", model), ("run", run)):
        rows = _fill_column(rows, name, value)
    return rows


def of_run(rows: pa.Table, run: str) -> pa.Table:
    """Rows of a file of a table as rows of another run. Files of runs that are older than their column get it."""
    if "run" not in rows.column_names:
        rows = rows.append_column("run", pa.nulls(len(rows), pa.string()))
    return _fill_column(rows, "run", run)


def _fill_column(rows: pa.Table, name: str, value: object) -> pa.Table:
    """Rows with one value in all rows of a column."""
    at = rows.column_names.index(name)
    return rows.set_column(at, rows.field(at), pa.repeat(pa.scalar(value, rows.field(at).type), len(rows)))


def merge_schemas(snapshot: TableSnapshot, table: str, kept: pa.Schema) -> pa.Schema:
    """The columns of a table, and after them those that a night with some kept columns adds.

    Raises UserError for a column that the table has with another type or spelling.
    """
    known = {field.name.lower(): field for field in snapshot.schema}
    added = []
    for column in table_schema(table, kept):
        before = known.get(column.name.lower())
        if before is None:
            added.append(column)
        elif (before.name, before.type) != (column.name, column.type):
            raise UserError(
                f"{snapshot.store.uri}: the table has a column '{before.name}' of type {before.type}, this night has "
                f"'{column.name}' of type {column.type}; a column keeps its type. Keep it under another name, or use "
                "another output"
            )
    return pa.schema([*snapshot.schema, *added])


def check_kept_columns(tables: NightTables, kept: pa.Schema) -> None:
    """Raise UserError if a table has a kept column with another type or spelling."""
    for table in _CARRYING:
        snapshot = tables.find(table)
        if snapshot is not None:
            merge_schemas(snapshot, table, kept)


def read_night(
    tables: NightTables, table: str, columns: Sequence[str], *, date: str, model: str, run: str
) -> Iterator[pa.RecordBatch]:
    """Some columns of the files that a run has in a table, in the order of their names, some rows at a time."""
    snapshot = tables.open(table)
    files = snapshot.files(partition_of(table, date=date, model=model, run=run))
    for file in sorted(files, key=lambda file: file.path):
        with store_errors(f"{snapshot.store.uri}/{file.path}"), snapshot.store.open(file.path) as source:
            yield from pq.ParquetFile(source).iter_batches(columns=list(columns))


def read_rows(snapshot: TableSnapshot, partition: Mapping[str, str]) -> pa.Table:
    """The rows of some partitions of a table, with the table's columns but for the partition columns."""
    schema = pa.schema([field for field in snapshot.schema if field.name not in snapshot.partition_columns])
    parts = [schema.empty_table()]
    for file in snapshot.files(partition):
        with store_errors(f"{snapshot.store.uri}/{file.path}"), snapshot.store.open(file.path) as source:
            rows = pq.ParquetFile(source).read()
        parts.append(columns_of_type(rows, schema))
    return pa.concat_tables(parts)
