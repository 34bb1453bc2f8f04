"""Documents that cannot be computed, each isolated to its row: by exceptions, and by deaths of the process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

from pipelines.service_errors import BadFileError
from pipelines.storage.shard_log import Attempt
from spin.errors import NotFiniteError, SpinError

T = TypeVar("T")
MAX_CRASHES = 2
"""deaths of a shard's process that are laid to the machine, before its documents are suspected"""
_PIECES = 16
"""into which rows are divided, one of which is deadly"""


def isolate(
    rows: list[int], work: Callable[[list[int]], T], attempt: Attempt
) -> tuple[list[tuple[list[int], T]], dict[int, str]]:
    """`work` over all rows in order, in few pieces, and the rows that it cannot do, each with a reason.

    A piece that raises is halved until the row that does it is alone. A process that is killed says nothing: once
    that has happened `MAX_CRASHES` times, each piece is noted before it is tried, so that the next process knows which
    one was deadly and divides it. Both end after a number of tries that is logarithmic in the number of rows.
    A SpinError is no document's fault and passes, but for activations that are not finite.
    """
    return _Isolation(work, attempt).run(rows)


def check_readable(uri: str, attempt: Attempt) -> None:
    """Raise BadFileError where a shard's process was killed again and again before it came to any document."""
    if attempt.deaths > MAX_CRASHES and not attempt.note:
        raise BadFileError(f"{uri}: every process that read it was killed")


class _Isolation:
    def __init__(self, work: Callable[[list[int]], T], attempt: Attempt) -> None:
        self.work, self.attempt = work, attempt
        self.wary = attempt.deaths >= MAX_CRASHES
        self.deadly: list[list[int]] = attempt.note.get("deadly", [])
        """first and last row of the pieces that killed a process"""
        tried = attempt.note.get("trying")
        if self.wary and tried is not None and tried not in self.deadly:
            self.deadly.append(tried)

    def run(self, rows: list[int]) -> tuple[list[tuple[list[int], Any]], dict[int, str]]:
        done: list[tuple[list[int], Any]] = []
        dead: dict[int, str] = {}
        if self.wary and len(rows) > 1 and not self.deadly:
            self.deadly.append([rows[0], rows[-1]])
        try:
            self._do(rows, done, dead)
        except (Exception, KeyboardInterrupt):
            self._clear()  # no death: the piece that it came from is not to be suspected
            raise
        self._clear()
        return done, dead

    def _clear(self) -> None:
        if self.wary:
            self.attempt.keep({"deadly": self.deadly})

    def _do(self, rows: list[int], done: list[tuple[list[int], Any]], dead: dict[int, str]) -> None:
        if not rows:
            return
        if self.wary and [rows[0], rows[-1]] in self.deadly:
            if len(rows) == 1:
                dead[rows[0]] = "every process that computed it was killed"
                return
            self._divide(rows, _PIECES, done, dead)
            return
        if self.wary:
            self.attempt.keep({"deadly": self.deadly, "trying": [rows[0], rows[-1]]})
        try:
            done.append((rows, self.work(rows)))
        except Exception as error:
            if isinstance(error, SpinError) and not isinstance(error, NotFiniteError):
                raise
            if len(rows) == 1:
                dead[rows[0]] = f"computing it raised {type(error).__name__}"  # its words may hold the text
                return
            self._divide(rows, 2, done, dead)

    def _divide(self, rows: list[int], pieces: int, done: list[tuple[list[int], Any]], dead: dict[int, str]) -> None:
        edges = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        for start, stop in pairwise(edges):
            self._do(rows[start:stop], done, dead)
