"""The lines of the documentation that read the tables return the rows that a night has published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import duckdb_extension_delta
import pytest

from pipelines.nightly.tables.night_tables import TABLES, table_schema
from pipelines.storage.object_store import Store
from tests.docs.pages import read_code_blocks
from tests.support.nights import run_night
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "how-to" / "read-the-tables.md"
READERS = ("deltalake", "polars", "pandas", "duckdb", "duckdb without a network")
NIGHT = "2026-11-24"
"""the date that the page names"""


def provide_duckdb_extension() -> None:
    """Load the extension from its wheel into DuckDB's default connection, which would download it."""
    [extension] = Path(next(iter(duckdb_extension_delta.__path__))).rglob("delta.duckdb_extension")
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.load_extension(str(extension))
    duckdb.set_default_connection(connection)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of the page next to an output `nights`; what each calls `predictions`, by reader.

    Each block is complete in itself.
    """
    out = Store(str(tmp_path / "nights"))
    run_night(out, ["other date"], date="2026-11-23")
    run_night(out, ["gone"], date=NIGHT)
    run_night(out, ["a", "b"], date=NIGHT)
    monkeypatch.chdir(tmp_path)
    provide_duckdb_extension()
    read: dict[str, Any] = {}
    *blocks, last = read_code_blocks(PAGE, "python")
    for reader, code in zip(READERS, blocks, strict=True):
        names: dict[str, Any] = {}
        exec(compile(code, reader, "exec"), names)
        read[reader] = names["predictions"]
    exec(compile(last, "read_predictions", "exec"), names)
    return {**read, "first": names["first"]}


def test_every_reader_of_the_page_returns_the_rows_of_the_night(names: dict[str, Any]) -> None:
    assert sorted(names["deltalake"]["id"].to_pylist()) == ["a", "b"]
    assert sorted(names["polars"]["id"].to_list()) == ["a", "b"]
    assert sorted(names["pandas"]["id"]) == ["a", "b"]
    assert sorted(names["duckdb"]["id"].to_pylist()) == ["a", "b"]
    assert sorted(names["duckdb without a network"]["id"].to_pylist()) == ["a", "b"]
    assert [(row["id"], row["scores"]) for row in names["first"]] == [
        (id, {"good": 0.75, "bad": 0.25}) for id in ("a", "b")
    ]


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
