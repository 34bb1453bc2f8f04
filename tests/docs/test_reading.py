"""The lines of the documentation that read the tables return the rows that a night has published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import duckdb_extension_delta
import pyarrow as pa
import pytest

from pipelines.nightly.tables import publication
from pipelines.nightly.tables.night_tables import PREDICTIONS, TABLES, file_rows, table_schema
from pipelines.storage.object_store import Store
from tests.docs.pages import read_code_blocks
from tests.support import nights
from tests.support.nights import run_night
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "how-to" / "read-the-tables.md"
READERS = (
    "deltalake",
    "polars",
    "pandas",
    "duckdb",
    "duckdb without a network",
    "view of duckdb",
    "view of polars",
    "read_predictions",
)
"""of the blocks of the page, in order"""
NIGHT = "2026-11-24"
"""the date that the page names"""


def provide_duckdb_extension() -> None:
    """Load the extension from its wheel into DuckDB's default connection, which would download it."""
    [extension] = Path(next(iter(duckdb_extension_delta.__path__))).rglob("delta.duckdb_extension")
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.load_extension(str(extension))
    duckdb.set_default_connection(connection)


def abort(*_: Any) -> NoReturn:
    raise ConnectionAbortedError("the process ends between the side tables and the predictions")


def rows_without_run(table: str, rows: pa.Table, **columns: Any) -> pa.Table:
    """The rows of a file, of predictions without the column of the run."""
    complete = file_rows(table, rows, **columns)
    return complete.drop_columns("run") if table == PREDICTIONS else complete


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Run the blocks of the page next to an output `nights`; the names that each defines, by reader.

    Each block is complete in itself. One run of the night was killed before its last commit, and the predictions of
    the next night have no column `run`.
    """
    out = Store(str(tmp_path / "nights"))
    run_night(out, ["other date"], date="2026-11-23")
    run_night(out, ["gone"], date=NIGHT)
    run_night(out, ["a", "b"], dead=["d"], date=NIGHT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nights, "file_rows", rows_without_run)
        run_night(out, ["e"], dead=["f"], date="2026-11-25")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publication, "_commit_predictions", abort)
        with pytest.raises(ConnectionAbortedError):
            run_night(out, ["c"], dead=["unpublished"], date=NIGHT)
    monkeypatch.chdir(tmp_path)
    provide_duckdb_extension()
    names: dict[str, dict[str, Any]] = {reader: {} for reader in READERS}
    for (reader, own), code in zip(names.items(), read_code_blocks(PAGE, "python"), strict=True):
        exec(compile(code, reader, "exec"), own)
    return names


@pytest.mark.slow
def test_every_reader_of_the_page_returns_the_rows_of_the_night(names: dict[str, dict[str, Any]]) -> None:
    assert sorted(names["deltalake"]["predictions"]["id"].to_pylist()) == ["a", "b"]
    assert sorted(names["polars"]["predictions"]["id"].to_list()) == ["a", "b"]
    assert sorted(names["pandas"]["predictions"]["id"]) == ["a", "b"]
    assert sorted(names["duckdb"]["predictions"]["id"].to_pylist()) == ["a", "b"]
    assert sorted(names["duckdb without a network"]["predictions"]["id"].to_pylist()) == ["a", "b"]
    assert [(row["id"], row["scores"]) for row in names["read_predictions"]["first"]] == [
        ("e", {"good": 0.75, "bad": 0.25})
    ]


@pytest.mark.slow
def test_the_views_of_the_page_show_published_rows_alone(names: dict[str, dict[str, Any]]) -> None:
    assert names["view of duckdb"]["dead_letters"]["id"].to_pylist() == ["d"]
    assert names["view of polars"]["dead_letters"]["id"].to_list() == ["d"]
    every = duckdb.sql("select id from published_dead_letters").to_arrow_table()
    assert sorted(every["id"].to_pylist()) == ["d", "f"]
    assert sorted(names["view of polars"]["letters"].collect()["id"]) == ["d", "f"]
    stored = duckdb.sql("select id from delta_scan('nights/dead_letters')").to_arrow_table()
    assert sorted(stored["id"].to_pylist()) == ["d", "f", "unpublished"]


def test_the_layout_page_describes_every_column() -> None:
    """Kept columns and partition columns are described in words."""
    page = (ROOT / "docs" / "reference" / "layout.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0]: part for part in page.split("\n## ")}
    for table in TABLES:
        assert [name for name in table_schema(table).names if f"`{name}`" not in sections[table]] == [], table


def test_the_layout_page_names_every_reason_of_a_dead_letter() -> None:
    """The reasons are those that the code gives."""
    page = (ROOT / "docs" / "reference" / "layout.md").read_text(encoding="utf-8")
    spool = (ROOT / "pipelines" / "data" / "spool.py").read_text(encoding="utf-8")
    step = (ROOT / "pipelines" / "nightly" / "steps" / "classify_step.py").read_text(encoding="utf-8")
    reasons = {*re.findall(r'dead\[row\] = "(\w+)"', spool), *re.findall(r'\("(\w+)", (?:"|message)', step)}
    assert reasons >= {"malformed", "repeated_id", "poison"}
    assert set(re.findall(r"^\| `(\w+)` \| [^|]* \|$", page, re.MULTILINE)) >= reasons
