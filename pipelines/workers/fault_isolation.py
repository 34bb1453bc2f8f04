"""Isolate the documents of a shard that raise an error or kill their process."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Generic, TypeVar

from pipelines.service_errors import WorkerFaultError
from pipelines.storage.shard_log import Attempt, AttemptNote
from pipelines.workers.worker_faults import describe_worker, faults_of_worker
from spin.errors import NotFiniteError, SpinError, describe_error

_log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_CRASHES = 2
"""crashes of a shard's process that are blamed on the machine, before its documents are suspected"""
MAX_DEADLY_CHECKS = 2
"""processes that may die in a row on the known-good check of a worker"""
_DEATHS_OF_A_DOCUMENT = 2
"""processes that must die while they compute a document alone, before the document is blamed"""
_PIECES = 16
"""number of pieces that rows are divided into after one of them killed the process"""


@dataclass(frozen=True)
class IsolatedRows(Generic[T]):
    """The rows of a shard, divided into those that could be computed and those that could not."""

    pieces: list[tuple[list[int], T]] = field(default_factory=list)
    """rows and what `work` returned for them, in order"""
    failing: dict[int, str] = field(default_factory=dict)
    """rows that could not be computed, each with the reason"""


def isolate_failing_rows(
    rows: list[int], work: Callable[[list[int]], T], attempt: Attempt, check: Callable[[], object] | None = None
) -> IsolatedRows[T]:
    """Call `work` on all rows in order, in few pieces, and isolate the rows that it cannot compute.

    A piece that raises is halved until the failing row is alone. A killed process reports nothing, so after
    `MAX_CRASHES` crashes each piece is written down before it is tried. The next process divides the piece that killed
    the last one. Both take a number of tries that is logarithmic in the number of rows.

    `check` computes what is known to be good. Before a row is blamed it is called: if that fails too, WorkerFaultError
    is raised instead. It is raised as well for MemoryError, OSError and errors of a GPU, which are never the fault of
    a document. Raises SpinError if processes die during the check. Another SpinError is raised unchanged, except for
    activations that are not finite.
    """
    isolation = _Isolation(work, attempt, check)
    with isolation.begun(rows):
        isolation.compute(rows)
    return isolation.isolated


def check_readable(what: str, attempt: Attempt) -> None:
    """Raise SpinError if a shard's process was killed repeatedly before it reached any document.

    The run ends and names the shard or file. Neither is given up: nothing is known against its documents.
    """
    if attempt.crashes > MAX_CRASHES and attempt.note is None:
        raise SpinError(
            f"{what}: {attempt.crashes} worker processes in a row were killed before they had read it; look at the "
            "memory of the workers, then run it again to resume, or take the file out of the input"
        )


def run_check(check: Callable[[], object]) -> None:
    """Call a known-good check; raise WorkerFaultError if it fails. A SpinError is raised unchanged, as for rows."""
    try:
        check()
    except Exception as error:
        if isinstance(error, SpinError) and not isinstance(error, NotFiniteError):
            raise
        raise WorkerFaultError(
            f"the worker on {describe_worker()} fails on a text that is known to be good, so no document is blamed: "
            f"{describe_error(error)}; replace it or its GPU, then run it again to resume"
        ) from error


class _Isolation(Generic[T]):
    """The rows of a shard while they are computed, and what this process and earlier ones have noted of them."""

    def __init__(self, work: Callable[[list[int]], T], attempt: Attempt, check: Callable[[], object] | None) -> None:
        note = attempt.note or AttemptNote()
        self.work, self.attempt, self.check = work, attempt, check
        self.isolated: IsolatedRows[T] = IsolatedRows()
        self.suspicious = attempt.crashes >= MAX_CRASHES
        """whether pieces are written down before they are tried"""
        self.deadly, self.deadly_checks = note.deadly, note.deadly_checks

    @contextmanager
    def begun(self, rows: list[int]) -> Iterator[None]:
        """The context in which rows are computed: it begins with a check of the worker if processes have crashed."""
        # guarded by test_crashes_of_the_machine_are_not_blamed_on_a_document; broken by:
        #   if self.suspicious and not self.deadly:
        if self.suspicious and len(rows) > 1 and not self.deadly:
            self.deadly += ((rows[0], rows[-1]),)
        try:
            if self.suspicious:
                self._check_after_crashes()
            yield
        except (Exception, KeyboardInterrupt):
            self._forget_current_piece()  # it ended with an error, so it did not kill its process
            raise
        self._forget_current_piece()

    def _note(self) -> AttemptNote:
        return AttemptNote(self.deadly, deadly_checks=self.deadly_checks)

    def _forget_current_piece(self) -> None:
        if self.suspicious:
            self.attempt.write_note(self._note())

    def compute(self, rows: list[int]) -> None:
        """Compute rows that follow one another, in pieces where they fail."""
        if not rows:
            return
        bounds = rows[0], rows[-1]
        if self.suspicious and len(rows) == 1 and self.deadly.count(bounds) >= _DEATHS_OF_A_DOCUMENT:
            self.isolated.failing[rows[0]] = "every process that computed it was killed"
            return
        if self.suspicious and len(rows) > 1 and bounds in self.deadly:
            self._divide(rows, _PIECES)
            return
        if self.suspicious:
            # guarded by test_exactly_the_failing_rows_become_dead_letters
            self.attempt.write_note(replace(self._note(), trying=bounds))
        try:
            with faults_of_worker():
                self.isolated.pieces.append((rows, self.work(rows)))
        except Exception as error:
            if isinstance(error, SpinError) and not isinstance(error, NotFiniteError):
                raise
            # without the error's message, which may hold the text of a document
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.debug("%d rows raised %s:\n%s", len(rows), type(error).__name__, frames)
            if len(rows) > 1:
                # guarded by test_a_document_that_raises_is_the_only_dead_letter_of_its_shard; broken by:
                #   raise
                self._divide(rows, 2)
                return
            self._forget_current_piece()  # should the check kill the process, the row is not blamed
            self._check_worker()
            self.isolated.failing[rows[0]] = f"computing it raised {type(error).__name__}"

    def _divide(self, rows: list[int], pieces: int) -> None:
        edges = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        for start, stop in pairwise(edges):
            self.compute(rows[start:stop])

    def _check_worker(self) -> None:
        """Raise WorkerFaultError if the worker cannot compute what is known to be good."""
        if self.check is not None:
            # guarded by test_a_worker_that_fails_on_what_is_known_to_be_good_is_blamed_itself
            run_check(self.check)

    def _check_after_crashes(self) -> None:
        """Check the worker, and write down that it is checked; raise WorkerFaultError if that kills its processes."""
        if self.check is None:
            return
        if self.deadly_checks >= MAX_DEADLY_CHECKS:
            raise SpinError(
                f"{self.deadly_checks} worker processes in a row were killed by a text that is known to be good, the "
                f"last before this one on {describe_worker()}, so no document is blamed; set another backbone.engine "
                "or backbone.dtype, or replace the worker, then run it again to resume"
            )
        self.attempt.write_note(replace(self._note(), checking=True))
        self._check_worker()
        self.deadly_checks = 0
