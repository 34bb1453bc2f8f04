"""Isolate the documents of a shard that raise an error or kill their process."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

from pipelines.service_errors import BadFileError
from pipelines.storage.shard_log import Attempt, AttemptNote
from spin.errors import NotFiniteError, SpinError

_log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_CRASHES = 2
"""crashes of a shard's process that are blamed on the machine, before its documents are suspected"""
_PIECES = 16
"""number of pieces that rows are divided into after one of them killed the process"""


@dataclass(frozen=True)
class IsolatedRows(Generic[T]):
    """The rows of a shard, divided into those that could be computed and those that could not."""

    pieces: list[tuple[list[int], T]] = field(default_factory=list)
    """rows and what `work` returned for them, in order"""
    failing: dict[int, str] = field(default_factory=dict)
    """rows that could not be computed, each with the reason"""


def isolate_failing_rows(rows: list[int], work: Callable[[list[int]], T], attempt: Attempt) -> IsolatedRows[T]:
    """Call `work` on all rows in order, in few pieces, and isolate the rows that it cannot compute.

    A piece that raises is halved until the failing row is alone. A killed process reports nothing, so after
    `MAX_CRASHES` crashes each piece is written down before it is tried, and the next process divides the piece that
    killed the last one. Both take a number of tries that is logarithmic in the number of rows. A SpinError is not the
    fault of a document and is raised, except for activations that are not finite.
    """
    return _Isolation(work, attempt).run(rows)


def check_readable(uri: str, attempt: Attempt) -> None:
    """Raise BadFileError if a shard's process was killed repeatedly before it reached any document."""
    if attempt.crashes > MAX_CRASHES and attempt.note is None:
        raise BadFileError(f"{uri}: every process that read it was killed")


class _Isolation(Generic[T]):
    def __init__(self, work: Callable[[list[int]], T], attempt: Attempt) -> None:
        note = attempt.note or AttemptNote()
        self.work, self.attempt = work, attempt
        self.suspicious = attempt.crashes >= MAX_CRASHES
        """whether pieces are written down before they are tried"""
        self.deadly = note.deadly
        if self.suspicious and note.trying is not None and note.trying not in self.deadly:
            self.deadly += (note.trying,)

    def run(self, rows: list[int]) -> IsolatedRows[T]:
        result: IsolatedRows[T] = IsolatedRows()
        if self.suspicious and len(rows) > 1 and not self.deadly:
            self.deadly += ((rows[0], rows[-1]),)
        try:
            self._compute(rows, result)
        except (Exception, KeyboardInterrupt):
            self._forget_current_piece()  # it ended with an error, so it did not kill its process
            raise
        self._forget_current_piece()
        return result

    def _forget_current_piece(self) -> None:
        if self.suspicious:
            self.attempt.write_note(AttemptNote(self.deadly))

    def _compute(self, rows: list[int], result: IsolatedRows[T]) -> None:
        if not rows:
            return
        bounds = rows[0], rows[-1]
        if self.suspicious and bounds in self.deadly:
            if len(rows) == 1:
                result.failing[rows[0]] = "every process that computed it was killed"
                return
            self._divide(rows, _PIECES, result)
            return
        if self.suspicious:
            self.attempt.write_note(AttemptNote(self.deadly, trying=bounds))
        try:
            result.pieces.append((rows, self.work(rows)))
        except Exception as error:
            if isinstance(error, SpinError) and not isinstance(error, NotFiniteError):
                raise
            # without the error's message, which may hold the text of a document
            _log.debug("%d rows raised %s:\n%s", len(rows), type(error).__name__, _frames(error))
            if len(rows) == 1:
                result.failing[rows[0]] = f"computing it raised {type(error).__name__}"
                return
            self._divide(rows, 2, result)

    def _divide(self, rows: list[int], pieces: int, result: IsolatedRows[T]) -> None:
        edges = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        for start, stop in pairwise(edges):
            self._compute(rows[start:stop], result)


def _frames(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))
