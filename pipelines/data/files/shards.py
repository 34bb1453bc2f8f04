"""Shards, the units of work of a stage, and the pieces of files that they consist of."""

from __future__ import annotations

from dataclasses import dataclass, field

EVEN_SHARDS = 32
"""shards into which few documents are divided, so that all workers have some"""
LEAST_DOCUMENTS = 256
"""documents of a shard, if there are as many: what comes with every shard costs little beside them"""


@dataclass(frozen=True)
class Piece:
    """A range of one file: of rows, or of bytes."""

    uri: str
    """of the file"""
    kind: str
    """parquet, jsonl or csv; spool for a part of the spool"""
    start: int
    """first row or byte"""
    stop: int
    """row or byte after the last"""
    by_bytes: bool = False
    """whether `start` and `stop` are bytes; the piece holds the lines, or the row groups, that begin within them"""
    documents: int = field(default=0, compare=False)
    """rows; an estimate where the file has not been read"""
    size: int = 0
    """bytes of the whole file, by which it is opened without a request; 0 if not known"""
    version: str = ""
    """version of the file, as `InputFile.version`; empty if any version may be read"""


@dataclass(frozen=True)
class Shard:
    """A unit of work: many whole small files or parts of the spool, or one piece of one large file."""

    index: int
    """place in the plan, from 0"""
    pieces: tuple[Piece, ...] = ()
    """in the order of their documents; none if the work is not on documents"""

    @property
    def name(self) -> str:
        """Key of the shard in the shard log."""
        return f"{self.index:06d}"

    @property
    def documents(self) -> int:
        """Rows of all pieces."""
        return sum(piece.documents for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """Bytes of the pieces that are ranges of bytes."""
        return sum(piece.stop - piece.start for piece in self.pieces if piece.by_bytes)

    @property
    def piece(self) -> Piece:
        """The only piece. Raises ValueError if there are none or several."""
        [piece] = self.pieces
        return piece

    @property
    def uri(self) -> str:
        """File of the only piece."""
        return self.piece.uri

    @property
    def start(self) -> int:
        """First row or byte of the only piece."""
        return self.piece.start

    @property
    def stop(self) -> int:
        """Row or byte after the last of the only piece."""
        return self.piece.stop

    @property
    def by_bytes(self) -> bool:
        """Whether the only piece is a range of bytes."""
        return self.piece.by_bytes


def even_size(documents: int, most: int) -> int:
    """The documents of a shard where there are so many in all: at most `most`, fewer where all are few.

    It does not depend on the number of workers, so that a run can go on with another one.
    """
    return min(most, max(LEAST_DOCUMENTS, -(-documents // EVEN_SHARDS)))
