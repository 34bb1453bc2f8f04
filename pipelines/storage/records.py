"""Typed records as JSON: the one place where a record becomes JSON values and JSON values become a record."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
"""built once per type"""


class NullsWritten:
    """Base of the records that write a field that is None as null; other records leave such a field out."""


def to_json(record: Any) -> Any:
    """A frozen dataclass or model, or a list or tuple of them, as JSON values.

    A field that is None is left out, unless the record is `NullsWritten`.
    A dictionary is returned as it is: it must hold JSON values.
    """
    if isinstance(record, dict):
        return record
    if isinstance(record, (list, tuple)):
        return [to_json(item) for item in record]
    exclude_none = not isinstance(record, NullsWritten)
    return _adapter(type(record)).dump_python(record, mode="json", by_alias=True, exclude_none=exclude_none)


def from_json(kind: type[T], value: Any) -> T:
    """The record of a type from JSON values. Keys that the type does not have are ignored.

    Raises pydantic.ValidationError if a required field is missing or has another type.
    """
    record: T = _adapter(kind).validate_python(value)
    return record


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
