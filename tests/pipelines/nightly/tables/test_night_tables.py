"""Files of another program where a table belongs are refused and left as they are; reading a table from a store."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.nightly.tables.night_tables import PREDICTIONS, TABLES, NightTables, open_output, read_night, read_rows
from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError
from tests.support.nights import MODEL, published_ids, run_night
from tests.support.unreadable_files import READ_ERRORS, UnreadableFile


@pytest.fixture
def out(store_uri: str) -> Store:
    """An empty output."""
    return Store(store_uri)


@pytest.mark.parametrize("table", TABLES)
def test_files_without_a_table_are_refused(table: str, out: Store) -> None:
    """The message names three of them at most."""
    NightTables(out).refuse_foreign_files()
    files = {f"{table}/{name}": name.encode() for name in ("a.parquet", "b.parquet", "c.parquet", "date=1/d.parquet")}
    for key, content in files.items():
        out.write(key, content)
    found = f"{out.uri}/{table} holds a.parquet, b.parquet, c.parquet, … and no Delta table"
    for refuse in (NightTables(out).refuse_foreign_files, lambda: open_output(out.uri)):
        with pytest.raises(UserError) as error:
            refuse()
        assert str(error.value).startswith(found)
    assert {key: out.read(key) for key in out.list()} == files


def test_a_table_of_another_program_is_refused(tmp_path: Path) -> None:
    out = Store(str(tmp_path / "out"))
    write_deltalake(f"{out.uri}/predictions", pa.table({"id": ["a"], "day": ["1"]}), partition_by=["day"])
    before = {key: out.read(key) for key in out.list()}
    with pytest.raises(UserError, match="predictions holds a Delta table with the partition columns day; expected"):
        open_output(out.uri)
    assert {key: out.read(key) for key in out.list()} == before


def test_tables_of_nights_are_not_refused(tmp_path: Path) -> None:
    """Also after another program has written files into folders of dates, as one that compacts a table does."""
    out = Store(str(tmp_path / "out"))
    night = run_night(out, ["a"])
    DeltaTable(f"{out.uri}/predictions").optimize.z_order(["id"])
    assert any(name.startswith("date=") for name in out.list_names("predictions"))
    assert published_ids(open_output(out.uri)) == {(night.date, MODEL): ["a"]}


@pytest.mark.parametrize("failure", READ_ERRORS)
def test_an_error_of_the_store_while_a_table_is_read_is_no_defect(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone once it was opened is not found; otherwise trying again may help."""
    out = Store(str(tmp_path / "out"))
    night = run_night(out, ["a"])
    tables = NightTables(out)
    predictions = tables.open(PREDICTIONS)
    monkeypatch.setattr(Store, "open", lambda store, key: UnreadableFile(READ_ERRORS[failure]))
    expected: type[SpinError] = UserError if failure == "gone" else UnavailableError
    with pytest.raises(expected, match=f"predictions/{night.name}/"):
        read_rows(predictions, {})
    with pytest.raises(expected, match=f"predictions/{night.name}/"):
        list(read_night(tables, PREDICTIONS, ["id"], date=night.date, model=night.model, run=night.name))
