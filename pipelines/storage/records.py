"""Typed records as JSON: the one place where a record becomes JSON values and JSON values become a record."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")


class NullsWritten:
    """Base of the records that write a field that is None as null; other records leave such a field out."""


def to_json(record: Any, kind: Any = None) -> Any:
    """A frozen dataclass or model, or a list or tuple of them, as JSON values.

    `kind` is the type of a generic record with its parameter; other records know theirs. A field that is None is left
    out, unless the record is `NullsWritten`. A dictionary is returned as it is: it must hold JSON values.
    """
    if isinstance(record, dict):
        return record
    if isinstance(record, (list, tuple)):
        return [to_json(item) for item in record]
    adapter: TypeAdapter[Any] = _adapter(cast(Any, kind or type(record)))
    exclude_none = not isinstance(record, NullsWritten)
    return adapter.dump_python(record, mode="json", by_alias=True, exclude_none=exclude_none)


def to_bytes(record: Any) -> bytes:
    """The JSON values of a record as the content of a file."""
    return json.dumps(to_json(record), indent=2).encode() + b"\n"


def from_json(kind: type[T], value: Any) -> T:
    """The record of a type from JSON values. Keys that the type does not have are ignored.

    Raises pydantic.ValidationError if a required field is missing or has another type.
    """
    adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
    return adapter.validate_python(value)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """The adapter of a type, which is built once."""
    return TypeAdapter(kind)
