"""Strings in a fraction of the memory that Python takes for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import pyarrow as pa

_READ = 10_000
"""strings that are Python objects at a time"""


class ArrowStrings(Sequence[str]):
    """A sequence of strings in an Arrow array; a Python object of each is made when it is asked for."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        """`values` are n strings without nulls."""
        self._values = pa.chunked_array(values.chunks, pa.string())

    @classmethod
    def of(cls, values: Iterable[str]) -> ArrowStrings:
        """The strings of an iterator, few of which are Python objects at a time."""
        iterator, chunks = iter(values), []
        while chunk := list(islice(iterator, _READ)):
            chunks.append(pa.array(chunk, pa.string()))
        return cls(pa.chunked_array(chunks, pa.string()))

    @property
    def arrow(self) -> pa.ChunkedArray:
        """The strings as an Arrow array."""
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _READ):
            yield from self[first : first + _READ]

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        values = self._values[index]
        return list(values.to_pylist()) if isinstance(index, slice) else str(values.as_py())


def shared_values(column: pa.ChunkedArray) -> list[Any]:
    """A column as a list, in which equal strings are one Python object."""
    if not pa.types.is_string(column.type):
        return list(column.to_pylist())
    known: dict[str, str] = {}
    values: list[Any] = []
    for first in range(0, len(column), _READ):
        values += [known.setdefault(value, value) for value in column[first : first + _READ].to_pylist()]
    return values
