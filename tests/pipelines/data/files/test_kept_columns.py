"""Columns of the input that are carried into the output: names, types and values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from pipelines.data.files.input_files import list_files
from pipelines.data.files.kept_columns import (
    check_kept_names,
    keep_column,
    parse_type,
    settle_types,
    table_type,
    type_text,
    unify_types,
)
from pipelines.data.files.reader_process import describe_columns
from pipelines.service_errors import BadFileError
from spin.errors import UserError
from spin.settings import DataSettings, parse_settings
from tests.pipelines.data.files.test_readers import to_csv, to_jsonl, to_parquet, write_file
from tests.pipelines.data.test_intake import Night, run_night


def keep(columns: Any) -> DataSettings:
    return DataSettings(train="unused", keep=columns)


def kept_values(night: Night) -> dict[str, list[Any]]:
    table = pa.concat_tables(part.kept for part in night.rows)
    assert {field.name: type_text(field.type) for field in table.schema} == night.plan.types
    values: dict[str, list[Any]] = table.to_pydict()
    return values


# Settings


@pytest.mark.parametrize(
    ("written", "columns"),
    [
        (["lang", "source"], {"lang": None, "source": None}),
        ({"priority": "int64", "lang": None}, {"priority": "int64", "lang": None}),
        ({"a": "list<string>", "b": "decimal(10,2)"}, {"a": "list<string>", "b": "decimal(10,2)"}),
        ([], {}),
    ],
)
def test_kept_columns_are_a_list_of_names_or_names_with_types(written: Any, columns: dict[str, str | None]) -> None:
    assert keep(written).keep == columns
    assert DataSettings.model_validate(keep(written).model_dump()) == keep(written)


@pytest.mark.parametrize("written", [{"a": "uint64"}, {"a": "list<list<string>>"}, {"a": "text"}, ["a", "a"], "a", [1]])
def test_an_invalid_list_of_kept_columns_is_refused(written: Any) -> None:
    tree = {"backbone": {"model": "m"}, "data": {"train": "x", "keep": written}, "store": "s"}
    with pytest.raises(UserError, match=r"data\.keep"):
        parse_settings(tree)


@pytest.mark.parametrize("name", ["label", "Label", "model_version", "a b", "a=b", ""])
def test_a_name_that_the_output_cannot_have_is_refused(name: str) -> None:
    expected = r"^data\.keep: (the output has a column '.*' of its own|'.*' cannot be the name of a column)"
    with pytest.raises(UserError, match=expected):
        check_kept_names(keep([name]), {"label", "model_version"})


def test_names_that_differ_by_case_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"'LANG' is there twice"):
        check_kept_names(keep(["lang", "LANG"]), ())


# Types

PARQUET_COLUMNS: dict[str, tuple[pa.Array, str, list[Any]]] = {
    "strings": (pa.array(["a", None]), "string", ["a", None]),
    "large strings": (pa.array(["a", None], pa.large_string()), "string", ["a", None]),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), "string", ["a", None]),
    "UUIDs": (pa.array([UUID(int=1).bytes, None], pa.uuid()), "string", [str(UUID(int=1)), None]),
    "bools": (pa.array([True, None]), "bool", [True, None]),
    "small ints": (pa.array([1, None], pa.int8()), "int8", [1, None]),
    "unsigned ints": (pa.array([2**32 - 1, None], pa.uint32()), "int64", [2**32 - 1, None]),
    "half floats": (pa.array([0.5, None], pa.float16()), "float32", [0.5, None]),
    "floats": (pa.array([0.1, None]), "float64", [0.1, None]),
    "decimals": (pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)), "decimal(9,2)", [Decimal("1.50"), None]),
    "dates": (pa.array([date(2026, 1, 31), None]), "date", [date(2026, 1, 31), None]),
    "naive nanoseconds": (
        pa.array([1_767_225_600_123_456_789, None], pa.timestamp("ns")),
        "timestamp",
        [datetime(2026, 1, 1, 0, 0, 0, 123456, UTC), None],
    ),
    "times elsewhere": (
        pa.array([datetime(2026, 1, 1, tzinfo=UTC), None], pa.timestamp("s", "Europe/Berlin")),
        "timestamp",
        [datetime(2026, 1, 1, tzinfo=UTC), None],
    ),
    "lists": (pa.array([[1], None], pa.large_list(pa.uint8())), "list<int16>", [[1], None]),
    "structs": (
        pa.array([{"a": 1, "b": ["x"]}, None]),
        'struct<"a": int64, "b": list<string>>',
        [{"a": 1, "b": ["x"]}, None],
    ),
    "nulls": (pa.nulls(2), "string", [None, None]),
}


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("case", PARQUET_COLUMNS)
def test_a_parquet_column_keeps_its_type(
    case: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types that a table of the output does not have become the next one that holds their values."""
    monkeypatch.setattr("pipelines.data.intake.SMALL", 1 if large else 8_000_000)
    column, kind, values = PARQUET_COLUMNS[case]
    write_file(tmp_path, "a.parquet", to_parquet(pa.table({"id": ["1", "2"], "text": ["a", "b"], "x": column})))
    night = run_night(tmp_path, data=keep(["x"]))
    assert night.plan.types == {"x": kind}
    assert kept_values(night) == {"x": values}
    assert type_text(parse_type(kind)) == kind


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1], pa.uint64()),
        pa.array([b"a"]),
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([1], pa.duration("s")),
        pa.array([1], pa.time32("s")),
    ],
)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_parquet_column_of_another_type_makes_a_bad_file(
    column: pa.Array, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.data.intake.SMALL", 1 if large else 8_000_000)
    write_file(tmp_path, "a.parquet", to_parquet(pa.table({"id": ["1"], "text": ["a"], "x": column})))
    write_file(tmp_path, "b.parquet", to_parquet(pa.table({"id": ["2"], "text": ["a"], "x": [1]})))
    night = run_night(tmp_path, data=keep(["x"]))
    assert re.search(
        "the kept column 'x' is [^;]*; expected string, bool, a signed integer", night.reasons["a.parquet"]
    )
    assert kept_values(night) == {"x": [1]}


STRINGS = ["a", "1", "1", "true", '{"b": [1]}', ""]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
DECLARED: dict[str, tuple[list[Any], list[str], list[Any]]] = {
    "string": (["a", 1, 1.0, True, {"b": [1]}, ""], STRINGS, STRINGS),
    "bool": ([True, "false", None], ["true", "false", ""], [True, False, None]),
    "int64": ([1, "2", 3.0, None], ["1", "2", "3", ""], [1, 2, 3, None]),
    "float32": ([0.5, 1, "2.5", None], ["0.5", "1", "2.5", ""], [0.5, 1, 2.5, None]),
    "decimal(9,2)": (
        [1.5, "2.25", 3, None],
        ["1.5", "2.25", "3", ""],
        [Decimal("1.50"), Decimal("2.25"), Decimal("3.00"), None],
    ),
    "date": (["2026-01-31", None], ["2026-01-31", ""], [date(2026, 1, 31), None]),
    "timestamp": (
        ["2026-01-31T12:00:00", "2026-01-31 14:00:00+02:00", "2026-01-31T12:00:00Z", None],
        ["2026-01-31T12:00:00", "2026-01-31 14:00:00+02:00", "2026-01-31T12:00:00Z", ""],
        [NOON, NOON, NOON, None],
    ),
    "list<string>": ([["a"], [], None], ['["a"]', "[]", ""], [["a"], [], None]),
    "list<int8>": ([[1, "2", None], None], ['[1, "2", null]', ""], [[1, 2, None], None]),
}
"""values of JSONL, texts of CSV, and the values of the output, by type"""


@pytest.mark.parametrize("kind", DECLARED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_jsonl_and_csv_values_have_the_declared_type(kind: str, name: str, tmp_path: Path) -> None:
    """A text of the value's form will do; an empty value of CSV is null, except in a string."""
    values, texts, expected = DECLARED[kind]
    if name == "a.csv":
        write_file(tmp_path, name, to_csv([{"id": n, "text": "t", "x": text} for n, text in enumerate(texts)]))
    else:
        write_file(tmp_path, name, to_jsonl([{"id": n, "text": "t", "x": value} for n, value in enumerate(values)]))
    night = run_night(tmp_path, data=keep({"x": kind}))
    assert kept_values(night) == {"x": expected}
    assert not night.rows[0].dead


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int8", "1000"),
        ("int64", "1.5"),
        ("date", "yesterday"),
        ("date", "20260131"),
        ("timestamp", "1712011500000"),
        ("bool", "maybe"),
        ("list<int8>", "7"),
        ("int8", "hush"),
    ],
)
def test_a_value_of_another_type_is_a_dead_letter(kind: str, value: str, name: str, tmp_path: Path) -> None:
    """The message names column and type, not the value; the rows around it are sound."""
    write: Callable[..., bytes] = to_csv if name == "a.csv" else to_jsonl
    write_file(tmp_path, name, write([{"id": n, "text": "t", "x": value if n == 1 else None} for n in range(3)]))
    [part] = run_night(tmp_path, data=keep({"x": kind})).rows
    assert part.dead == {1: ("malformed", f"the value of 'x' is no {kind}")}
    assert part.kept.to_pydict() == {"x": [None] * 3}


def test_a_parquet_column_is_cast_to_the_declared_type(tmp_path: Path) -> None:
    """A file with a value that does not fit is bad."""
    write_file(tmp_path, "a.parquet", to_parquet([{"id": "1", "text": "t", "x": 7}]))
    write_file(tmp_path, "b.parquet", to_parquet([{"id": "2", "text": "t", "x": 700}]))
    night = run_night(tmp_path, data=keep({"x": "int8"}))
    assert (night.plan.types, kept_values(night)) == ({"x": "int8"}, {"x": [7]})
    assert "the kept column 'x' is int64; expected int8" in night.reasons["b.parquet"]


@pytest.mark.parametrize("kind", ["timestamp", "date"])
def test_a_parquet_column_of_numbers_holds_no_times(kind: str, tmp_path: Path) -> None:
    """They may count seconds, milliseconds or the digits of a date; Arrow would take microseconds, or days."""
    write_file(tmp_path, "a.parquet", to_parquet([{"id": "1", "text": "t", "x": 20260131}]))
    write_file(tmp_path, "b.parquet", to_parquet([{"id": "2", "text": "t", "x": None}]))
    night = run_night(tmp_path, data=keep({"x": kind}))
    assert f"the kept column 'x' is int64; expected {kind}" in night.reasons["a.parquet"]
    assert kept_values(night) == {"x": [None]}
    column = pa.chunked_array([pa.array([[1]], pa.list_(pa.int64()))])
    with pytest.raises(BadFileError):
        keep_column(column, "x", f"list<{kind}>", "a.parquet")


def test_files_without_a_kept_column_have_nulls(tmp_path: Path) -> None:
    """Whatever their format, and also if the first files lack it."""
    row = {"id": "1", "text": "t"}
    write_file(tmp_path, "a.parquet", to_parquet([row]))
    write_file(tmp_path, "b.csv", to_csv([row]))
    write_file(tmp_path, "c.jsonl", to_jsonl([row]))
    write_file(tmp_path, "d.parquet", to_parquet([{**row, "x": None}]))
    write_file(tmp_path, "e.parquet", to_parquet([{**row, "x": 7}]))
    for documents in (1, 100):
        night = run_night(tmp_path, documents, keep(["x"]))
        assert (night.plan.types, kept_values(night)) == ({"x": "int64"}, {"x": [None] * 4 + [7]})


@pytest.mark.parametrize(("name", "convert"), [("a.csv", to_csv), ("a.jsonl", to_jsonl), ("a.parquet", to_parquet)])
def test_a_kept_column_that_no_file_has_is_refused(name: str, convert: Any, tmp_path: Path) -> None:
    """The columns of a file are listed. It may be missing for a night if the table of the output has it."""
    write_file(tmp_path, name, convert([{"id": "1", "text": "t", "lang": "de"}]))
    columns = f"expected it in at least one; .*{name} has id, text, lang. Correct"
    with pytest.raises(UserError, match=f"no file has a column 'language', {columns}"):
        run_night(tmp_path, data=keep(["lang", "language"]))
    assert settle_types(keep(["x"]), {}, any_rows=True, known={"x": "int32"}) == pa.schema({"x": pa.int32()})


def test_the_columns_of_a_file_that_has_vanished_are_not_listed(tmp_path: Path) -> None:
    write_file(tmp_path, "a.csv", to_csv([{"id": "1", "text": "t"}]))
    [file] = list_files(str(tmp_path))
    Path(file.uri).unlink()
    assert describe_columns(file.whole, keep([])) == ""


def test_another_type_than_in_the_table_of_the_output_is_refused() -> None:
    with pytest.raises(UserError, match="'x' is string in the input, but int64 in the table of the output; expected"):
        settle_types(keep(["x"]), {"x": "string"}, any_rows=True, known={"x": "int64"})


def test_a_file_that_cannot_be_read_may_have_had_the_column(tmp_path: Path) -> None:
    """The error names the reason of the file."""
    write_file(tmp_path, "a.csv", to_csv([{"id": "1", "text": "t"}]))
    write_file(tmp_path, "b.csv", b"id,text,lang\n1,t")
    with pytest.raises(UserError, match=r"column 'lang'.*; 1 file could not be read: .*b\.csv line 2 has 2 values"):
        run_night(tmp_path, data=keep(["lang"]))


@pytest.mark.parametrize("text", ["int7", "int64>", "list<string", 'struct<"a" int8>', "struct<a: int8>", "int8, x"])
def test_a_text_that_is_no_type_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_type(text)


@pytest.mark.parametrize("names", [["x", "X"], ["x", "x"]])
def test_a_struct_with_names_that_a_table_takes_for_one_is_no_type(names: list[str]) -> None:
    with pytest.raises(ValueError, match="differ at most in upper and lower case"):
        table_type(pa.struct([(name, pa.int64()) for name in names]))


def test_names_in_structs_may_hold_any_character() -> None:
    kind = pa.struct([('quote" and back\\', pa.int8()), ("end\\", pa.list_(pa.struct([("<,>:", pa.string())])))])
    assert parse_type(type_text(kind)) == kind


@pytest.mark.parametrize("one", ["string", "list<null>", 'struct<"a, b": null, "c": list<int8>>', "null"])
def test_nulls_fit_every_type(one: str) -> None:
    assert unify_types(parse_type(one), pa.null()) == unify_types(pa.null(), parse_type(one)) == parse_type(one)
    filled = parse_type(one.replace("null", "float64"))
    assert unify_types(parse_type(one), filled) == unify_types(filled, parse_type(one)) == filled
    assert parse_type(type_text(filled)) == filled


def test_a_kept_column_with_bytes_that_are_no_text_makes_a_bad_file(tmp_path: Path) -> None:
    """A string that is not UTF-8 is found before it is in the output."""
    column = pa.array([b"\xff"]).view(pa.string())
    write_file(tmp_path, "a.parquet", to_parquet(pa.table({"id": ["1"], "text": ["a"], "x": column})))
    assert "the kept column 'x'" in run_night(tmp_path, data=keep(["x"])).reasons["a.parquet"]
