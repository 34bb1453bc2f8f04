"""Thrift's compact protocol without a schema: what is read can be changed and written again.

The footer and the page headers of Parquet files are such structures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)


@dataclass
class Items:
    """A list."""

    kind: int
    """of its items"""
    values: list[Any] = field(default_factory=list)
    length: int | None = None
    """number of items that the header claims, if it lies"""


@dataclass
class Struct:
    """A structure: kind and value of each field by number."""

    fields: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Any:
        value = self.fields[number][1]
        return value.values if isinstance(value, Items) else value

    def __setitem__(self, number: int, value: Any) -> None:
        """Replace the value of a field that is there, or add one, by default a 32-bit number."""
        kind, old = self.fields.get(number, (_kind_of(value), None))
        if isinstance(value, list):
            value = Items(old.kind if old is not None else _kind_of(value[0]), value)
        self.fields[number] = kind, value

    def __contains__(self, number: int) -> bool:
        return number in self.fields


def _kind_of(value: Any) -> int:
    kinds = {int: I32, bytes: BINARY, Struct: STRUCT, list: LIST, Items: LIST}
    return kinds[type(value)]


def read_struct(data: bytes, at: int = 0) -> tuple[Struct, int]:
    """The structure at a position, and the position after it."""
    fields: dict[int, tuple[int, Any]] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = read_signed(data, at)
        value, at = _read_value(data, at, kind)
        fields[number] = kind, value
    return Struct(fields), at + 1


def write_struct(value: Struct) -> bytes:
    """The bytes of a structure."""
    out, before = bytearray(), 0
    for number, (kind, each) in value.fields.items():
        if 0 < number - before < 16:
            out.append((number - before) << 4 | kind)
        else:
            out.append(kind)
            out += write_signed(number)
        out += _write_value(kind, each)
        before = number
    return bytes(out) + b"\0"


def read_unsigned(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def write_unsigned(value: int) -> bytes:
    """A number in as many bytes as it needs."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def read_signed(data: bytes, at: int) -> tuple[int, int]:
    """A number whose sign is its lowest bit, and the position after it."""
    value, at = read_unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def write_signed(value: int) -> bytes:
    """A number whose sign is its lowest bit."""
    return write_unsigned((value << 1) ^ (value >> 127) if value >= 0 else (-value << 1) - 1)


def walk(value: Any) -> Iterator[tuple[Struct, int, int]]:
    """Every field in a structure and those within it: the structure that has it, its number and its kind."""
    if isinstance(value, Items):
        for item in value.values:
            yield from walk(item)
    elif isinstance(value, Struct):
        for number, (kind, inner) in list(value.fields.items()):
            yield value, number, kind
            yield from walk(inner)


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind in INTEGERS:
        return read_signed(data, at)
    if kind == DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == BINARY:
        length, at = read_unsigned(data, at)
        return data[at : at + length], at + length
    if kind in (LIST, SET):
        return _read_items(data, at)
    if kind == STRUCT:
        return read_struct(data, at)
    raise ValueError(f"found kind {kind} at byte {at}, which Parquet does not use; expected another one")


def _read_items(data: bytes, at: int) -> tuple[Items, int]:
    kind, length, at = data[at] & 15, data[at] >> 4, at + 1
    if length == 15:
        length, at = read_unsigned(data, at)
    items = Items(kind)
    for _ in range(length):
        # a truth value in a list has a byte of its own
        value, at = (data[at], at + 1) if kind in (TRUE, FALSE) else _read_value(data, at, kind)
        items.values.append(value)
    return items, at


def _write_value(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return b""
    if kind == BYTE:
        return bytes([value])
    if kind in INTEGERS:
        return write_signed(value)
    if kind == DOUBLE:
        return struct.pack("<d", value)
    if kind == BINARY:
        return write_unsigned(len(value)) + bytes(value)
    if kind == STRUCT:
        return write_struct(value)
    length = len(value.values) if value.length is None else value.length
    head = bytes([length << 4 | value.kind]) if length < 15 else bytes([0xF0 | value.kind]) + write_unsigned(length)
    items = (bytes([item]) if value.kind in (TRUE, FALSE) else _write_value(value.kind, item) for item in value.values)
    return head + b"".join(items)
