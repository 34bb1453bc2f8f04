"""Features of many documents, a block of rows at a time: from memory, or from a temporary file if they are too many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.arrays import Floats, Rows
from spin.labels.standardizer import Standardizer

MOST_IN_MEMORY = 1 << 30
"""bytes of features, counted as float32, that are kept in memory; more go to a temporary file"""
BLOCK_BYTES = 1 << 24
"""bytes of features, counted as float32, that are computed at once"""


class RowFile:
    """Values (n, p) of one type in a temporary file without a name, which ends with the process however that ends.

    A slice of rows is mapped into memory for as long as it is in use, so the file never adds to the memory of the
    process. Rows that are picked by their numbers are copied.
    """

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = (0, width), dtype
        self._file = tempfile.TemporaryFile(prefix="spin-rows-")  # noqa: SIM115 (open as long as its rows are read)

    def append(self, values: Floats) -> None:
        """Add rows (m, p) at the end. Raises OSError if the disk is full."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self._file.flush()
        self.shape = (self.shape[0] + len(values), self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Rows) -> Floats:
        if not isinstance(rows, slice):
            picked: Floats = self[:][rows]
            return picked
        start, stop, _ = rows.indices(len(self))
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        offset = start * self.shape[1] * self.dtype.itemsize
        return np.memmap(self._file, self.dtype, "c", offset, (stop - start, self.shape[1]))


@dataclass(frozen=True)
class FeatureRows:
    """The features (n, p) of n documents, standardised as they are read if there is a standardizer."""

    values: Floats | RowFile
    """(n, p)"""
    standardizer: Standardizer | None = None
    """(p,) applied to the values of every block"""

    @classmethod
    def collect(cls, blocks: Iterable[Floats], count: int) -> FeatureRows:
        """The rows of some blocks (m, p), of which there is at least one; `count` is the number of all rows.

        They are kept in the type that the blocks have.
        """
        rows = iter(blocks)
        first = next(rows)
        if count * first.shape[1] * 4 <= MOST_IN_MEMORY:
            return cls(np.concatenate([first, *rows]))
        file = RowFile(first.shape[1], first.dtype)
        file.append(first)
        for block in rows:
            file.append(block)
        return cls(file)

    def standardize(self, standardizer: Standardizer) -> FeatureRows:
        """Raw features, standardised: at once if they are in memory, else whenever a block of them is read."""
        if isinstance(self.values, RowFile):
            return FeatureRows(self.values, standardizer)
        return FeatureRows(standardizer.transform(self.values))

    def take(self, rows: Rows, features: NDArray[np.int64]) -> FeatureRows:
        """Some rows of some features, given by their positions. Raises ValueError for rows that do not ascend."""
        if not (np.diff(rows) > 0).all():
            raise ValueError("expected positions of rows in ascending order, each of them once")
        if len(rows) == len(self) and np.array_equal(features, np.arange(self.shape[1])):
            return self
        step = _rows_per_block(self.values.shape[1])
        starts = range(0, max(1, len(self)), step)
        borders = np.searchsorted(rows, [*starts, len(self)])
        blocks = (
            np.asarray(self.values[start : start + step])[np.ix_(rows[first:last] - start, features)]
            for start, first, last in zip(starts, borders[:-1], borders[1:], strict=True)
        )
        return FeatureRows.collect(blocks, len(rows))

    def blocks(self, first: int = 0) -> Iterator[Floats]:
        """The rows from `first` on in order, as float32 blocks (m, p); a single one if they are in memory."""
        if not isinstance(self.values, RowFile):
            yield self._compute(self.values[first:])
            return
        step = _rows_per_block(self.shape[1])
        for start in range(first, len(self), step):
            yield self._compute(self.values[start : start + step])

    def pick(self, rows: Rows) -> Floats:
        """(m, p) some rows in any order, as float32."""
        return self._compute(np.asarray(self.values[rows]))

    def _compute(self, values: Floats) -> Floats:
        return (
            values.astype(np.float32, copy=False) if self.standardizer is None else self.standardizer.transform(values)
        )

    @property
    def in_memory(self) -> bool:
        """Whether there is a single block."""
        return not isinstance(self.values, RowFile)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of features (n, p)."""
        return self.values.shape[0], self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)


def _rows_per_block(width: int) -> int:
    return max(1, BLOCK_BYTES // (4 * max(1, width)))
