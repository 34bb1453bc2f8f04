"""The columns of the input that `data.keep` carries into predictions and dead letters: their names, types and values.

A type is written as in the settings: string, bool, int8 to int64, float32, float64, decimal(P,S), date, timestamp
(microseconds, UTC), list<TYPE>; from Parquet also struct<NAME: TYPE, …>. The type null holds nothing but nulls.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.files.text_values import column_to_text, is_unicode, to_text, to_unicode
from pipelines.service_errors import BadFileError, KeptTypeError
from spin.errors import UserError
from spin.pages.number_format import counted
from spin.settings import DataSettings

_log = logging.getLogger(__name__)
_SCALARS: dict[str, pa.DataType] = {
    "null": pa.null(),
    "string": pa.string(),
    "bool": pa.bool_(),
    **{f"int{bits}": getattr(pa, f"int{bits}")() for bits in (8, 16, 32, 64)},
    "float32": pa.float32(),
    "float64": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_NAMES = {kind: name for name, kind in _SCALARS.items()}
_WIDENED = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
}
"""types that a table does not have, each with the one that holds all of its values"""
_SCALAR = re.compile(r"decimal\((\d+), ?(\d+)\)|[a-z]+[0-9]*")
_FORBIDDEN = re.compile(r"[ ,;{}()\n\t=]")
"""characters that a Delta table has in no column's name"""


def check_kept_names(data: DataSettings, ours: Collection[str]) -> None:
    """Raise UserError if `data.keep` holds a name that no column of the output can have; `ours` are in lower case."""
    seen: set[str] = set()
    for name in data.keep:
        if name.lower() in ours:
            raise UserError(
                f"data.keep: the output has a column '{name}' of its own; rename the input's or leave it out"
            )
        if not name or _FORBIDDEN.search(name) or not is_unicode(name):
            raise UserError(
                f"data.keep: '{name}' cannot be the name of a column; expected no space and none of ,;{{}}()="
            )
        if name.lower() in seen:
            raise UserError(f"data.keep: '{name}' is there twice, upper and lower case being equal")
        seen.add(name.lower())


def without_kept(data: DataSettings) -> DataSettings:
    """The settings without kept columns, for readers that have no use for them."""
    return data.model_copy(update={"keep": {}})


def parse_type(text: str) -> pa.DataType:
    """The Arrow type of a type as text. Raises ValueError for a text that is no type."""
    kind, rest = _read_type(text)
    if rest:
        raise ValueError(f"'{text}' is no type")
    return kind


def _read_type(text: str) -> tuple[pa.DataType, str]:
    """The type at the beginning of a text, and the rest of the text."""
    text = text.lstrip()
    if text.startswith("list<"):
        kind, rest = _read_type(text.removeprefix("list<"))
        return pa.list_(kind), _skip(">", rest)
    if text.startswith("struct<"):
        fields, rest, separator = [], text, "struct<"
        while rest.startswith(separator):
            name, end = json.JSONDecoder().raw_decode(rest := _skip(separator, rest))
            kind, rest = _read_type(_skip(":", rest[end:]))
            fields.append((name, kind))
            separator = ","
        return pa.struct(fields), _skip(">", rest)
    match = _SCALAR.match(text)
    name = match[0] if match else text
    if match is None or (not match[1] and name not in _SCALARS):
        raise ValueError(f"'{name}' is no type")
    kind = pa.decimal128(int(match[1]), int(match[2])) if match[1] else _SCALARS[name]
    return kind, text[match.end() :].lstrip()


def _skip(symbol: str, text: str) -> str:
    """The text after a symbol. Raises ValueError if it does not begin with the symbol."""
    if not text.startswith(symbol):
        raise ValueError(f"expected {symbol} before '{text}'")
    return text.removeprefix(symbol).lstrip()


def type_text(kind: pa.DataType) -> str:
    """A type as text, which `parse_type` reads."""
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_list(kind):
        return f"list<{type_text(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{json.dumps(field.name)}: {type_text(field.type)}' for field in kind)}>"
    return _NAMES[kind]


def table_type(kind: pa.DataType) -> pa.DataType:
    """The type that a table of the output has for a column of a file. Raises ValueError if it has none."""
    types = pa.types
    if types.is_dictionary(kind):
        return table_type(kind.value_type)
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if types.is_timestamp(kind):
        return _SCALARS["timestamp"]
    if types.is_decimal(kind) and kind.precision <= 38:
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_struct(kind) and kind.num_fields:
        if len({field.name.lower() for field in kind}) < kind.num_fields:
            raise ValueError(f"{kind} has fields whose names differ at most in upper and lower case")
        return pa.struct([(field.name, table_type(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(table_type(kind.value_type))
    kind = _WIDENED.get(kind, kind)
    if kind not in _NAMES:
        raise ValueError(f"{kind} is not a type of the output's columns")
    return kind


def unify_types(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds the values of both. Raises ValueError if only one of them can be kept."""
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if types.is_list(one) and types.is_list(other):
        return pa.list_(unify_types(one.value_type, other.value_type))
    if types.is_struct(one) and types.is_struct(other) and [f.name for f in one] == [f.name for f in other]:
        return pa.struct([(a.name, unify_types(a.type, b.type)) for a, b in zip(one, other, strict=True)])
    raise ValueError(f"{type_text(one)} and {type_text(other)}")


def merge_types(types: Mapping[str, str], more: Mapping[str, str], where: str) -> dict[str, str]:
    """The types of columns by name. Raises KeptTypeError, which says `where`, for two types of one column."""
    merged = dict(types)
    for name, text in more.items():
        if name in merged:
            try:
                text = type_text(unify_types(parse_type(merged[name]), parse_type(text)))
            except ValueError:
                raise KeptTypeError(
                    f"{where}: the kept column '{name}' is {text}, elsewhere it is {merged[name]}; expected one type: "
                    "mend the files or name the type in data.keep, then start over with --restart"
                ) from None
        merged[name] = text
    return merged


def settle_types(
    data: DataSettings,
    seen: Mapping[str, str],
    *,
    any_rows: bool,
    known: Mapping[str, str] | None = None,
    unreadable: Sequence[str] = (),
    describe_columns: Callable[[], str] = lambda: "",
) -> pa.Schema:
    """The kept columns of a night with their types: those that were declared, else those in the files.

    `seen` are the types in the files, `known` those of the table that the night is written to. A column without any
    value has the type of the table, else it is a string. `unreadable` are the reasons of files that could not be read
    and may have had a column; `describe_columns` names a file and its columns. Raises UserError if a column is in no
    file, or if it has another type in the table.
    """
    columns = {}
    for name, declared in data.keep.items():
        if any_rows and name not in seen and name not in (known or {}):
            present = describe_columns()
            more = f"; {present}" if present else ""
            more += f"; {counted(len(unreadable), 'file')} could not be read: {unreadable[0]}" if unreadable else ""
            raise UserError(
                f"data.keep: no file has a column '{name}', expected it in at least one{more}. Correct the name or the "
                "files, or remove it from data.keep; then start over with --restart"
            )
        types = merge_types({name: seen.get(name, "null")}, {name: declared} if declared else {}, "data.keep")
        columns[name] = _without_nulls(_unify_with_table(name, types[name], "the input", known or {}))
    return pa.schema(columns)


def check_declared_types(data: DataSettings, known: Mapping[str, str]) -> None:
    """Raise UserError if a type in `data.keep` differs from the column's type in the table of the output."""
    for name, declared in data.keep.items():
        _unify_with_table(name, declared or "null", "data.keep", known)


def _unify_with_table(name: str, text: str, where: str, known: Mapping[str, str]) -> pa.DataType:
    """The type of a column, given as text, and of the table of the output. Raises UserError if they differ."""
    kind = parse_type(text)
    try:
        return unify_types(parse_type(known[name]), kind) if name in known else kind
    except ValueError:
        raise UserError(
            f"the kept column '{name}' is {text} in {where}, but {known[name]} in the table of the output; expected "
            f"{known[name]}: declare that type in data.keep, or use another output"
        ) from None


def schema_of(types: Mapping[str, str]) -> pa.Schema:
    """The Arrow schema of columns whose types are given as text."""
    return pa.schema([(name, parse_type(kind)) for name, kind in types.items()])


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    """The type with strings where nothing but nulls was seen."""
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in kind])
    return pa.string() if pa.types.is_null(kind) else kind


def keep_column(column: pa.ChunkedArray, name: str, declared: str | None, uri: str) -> pa.ChunkedArray:
    """A Parquet column in the type of the output, or in the declared type.

    Raises BadFileError if there is no such type or the values do not fit into the declared one.
    """
    try:
        kind = table_type(column.type)
        if isinstance(column.type, pa.UuidType):
            column = pa.chunked_array([column_to_text(column)], kind)
        column = pc.cast(column, kind, safe=False)  # nanoseconds are cut off
        if declared:
            wanted, inner, found = parse_type(declared), parse_type(declared), column.type
            while pa.types.is_list(inner) and pa.types.is_list(found):
                inner, found = inner.value_type, found.value_type
            if pa.types.is_temporal(inner) and pa.types.is_integer(found):
                raise ValueError("Arrow takes a whole number for microseconds or days, whatever it counts")
            column = pc.cast(column, wanted)
        column.validate(full=True)
    except (ValueError, pa.ArrowException) as error:
        _log.debug("%s: %s", uri, error)
        expected = declared or "string, bool, a signed integer, float, decimal, date, timestamp, or lists of these"
        raise BadFileError(f"{uri}: the kept column '{name}' is {column.type}; expected {expected}") from None
    return column


def parse_column(values: Sequence[Any], declared: str | None) -> tuple[pa.ChunkedArray, list[int]]:
    """Values of JSON or texts of CSV as a column, by default of strings, and the rows whose values do not fit.

    Such a value is null in the column. Numbers become strings as ids do, lists and objects become JSON.
    """
    kind = parse_type(declared or "string")
    try:
        return pa.chunked_array([_parse_all(values, kind)], kind), []
    except (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException):
        pass
    parsed, rejected = [], []
    for row, value in enumerate(values):
        try:
            parsed.append(_parse_all([value], kind)[0].as_py())
        except (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException):
            parsed.append(None)
            rejected.append(row)
    return pa.chunked_array([parsed], kind), rejected


def _parse_all(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Raises an error of Python or Arrow if a value does not fit."""
    if pa.types.is_string(kind):
        return pa.array([_as_string(value) for value in values], kind)
    if pa.types.is_list(kind):
        lists = [(json.loads(value) if value else None) if isinstance(value, str) else value for value in values]
        if any(not isinstance(value, (list, type(None))) for value in lists):
            raise ValueError("not a list")
        return pa.array(
            [None if value is None else _parse_all(value, kind.value_type).to_pylist() for value in lists], kind
        )
    texts = [_as_number_or_text(value) for value in values]
    if pa.types.is_timestamp(kind):
        return pa.array([text and _parse_time(text) for text in texts], kind)
    return pc.cast(pa.array(texts, pa.string()), kind)


def _as_string(value: Any) -> str | None:
    if isinstance(value, str):
        return to_unicode(value)
    return to_unicode(json.dumps(value, ensure_ascii=False)) if isinstance(value, (dict, list)) else to_text(value)


def _as_number_or_text(value: Any) -> str | None:
    if isinstance(value, (dict, list)):
        raise ValueError("not a single value")
    return to_text(value)


def _parse_time(text: str) -> datetime:
    if text.isdecimal():  # Python reads the digits of a number of milliseconds as a date
        raise ValueError("no time in the form 2026-01-31T12:00:00")
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def columns_of_type(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema from a table that may lack columns, or hold nulls alone in one."""
    columns = [
        pc.cast(table[field.name], field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
