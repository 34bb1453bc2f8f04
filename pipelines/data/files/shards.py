"""Shards, the units of work of a stage, and the pieces of files that they consist of."""

from __future__ import annotations

from dataclasses import dataclass, field

EVEN_SHARDS = 32
"""shards into which few documents are divided, so that all workers have some"""
LEAST_DOCUMENTS = 256
"""documents of a shard, if there are as many: what comes with every shard costs little beside them"""


@dataclass(frozen=True)
class Piece:
    """A range of one file: bytes of an input file, which the intake reads, or rows of a part of the spool."""

    uri: str
    """of the file"""
    kind: str
    """name of the reader of an input file; spool for a part of the spool"""
    start: int
    """first byte or row"""
    stop: int
    """byte or row after the last; of an input file the piece holds the rows that begin within the bytes"""
    documents: int = field(default=0, compare=False)
    """rows of a part of the spool; 0 where they are not counted yet"""
    size: int = 0
    """bytes of the whole file, by which it is opened without a request; 0 if not known"""
    version: str = ""
    """version of the file, as `InputFile.version`; empty if any version may be read"""
    rows: tuple[int, ...] | None = None
    """those rows of a part of the spool that are wanted, counted from `start` and ascending; None: all"""


@dataclass(frozen=True)
class Shard:
    """A unit of work: many small files or a range of a large one, or parts of the spool."""

    index: int
    """place in the plan, from 0"""
    pieces: tuple[Piece, ...] = ()
    """in the order of their documents; none if the work is not on documents"""
    key: str | None = None
    """name of a shard that several plans may have; None: the index is the name"""

    @property
    def name(self) -> str:
        """Key of the shard in the shard log."""
        return f"{self.index:06d}" if self.key is None else self.key

    @property
    def documents(self) -> int:
        """Rows of all pieces."""
        return sum(piece.documents for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """Bytes of all pieces, which are ranges of input files."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def even_size(documents: int, most: int) -> int:
    """The documents of a shard where there are so many in all: at most `most`, fewer where all are few.

    It does not depend on the number of workers, so that a run can go on with another one.
    """
    return min(most, max(LEAST_DOCUMENTS, -(-documents // EVEN_SHARDS)))
