"""Read input files in a child process, whose death is the fault of the file that it was reading.

A file that was made to harm can abort a library in C++, ask for all memory or take hours. So files are parsed by a
child, which the kernel limits to some bytes of memory and, per file, to some seconds of processor time
(`reader_child.py`). If it dies, the file that it was reading is tried once more by a new child, which is not worn out
by the files before. A file that ends two of them is a BadFileError, and the files after it are read.

SIGKILL is sent by a machine that has no memory left, or by somebody. It says nothing about a file, so after a few such
deaths WorkerFaultError is raised.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing import Pipe
from typing import Any

import psutil

from pipelines.data.files import reader_child
from pipelines.data.files.formats import list_columns
from pipelines.data.files.reader import ID_AND_TEXT, Documents, Role
from pipelines.data.files.reader_child import MEMORY, NO_MEMORY, SECONDS, SECONDS_PER_MB, Answer, Job
from pipelines.data.files.readers import find_columns, find_lines
from pipelines.data.files.shards import Piece
from pipelines.service_errors import BadFileError, UnavailableError, WorkerFaultError
from pipelines.storage.store_requests import PROCESS_REQUESTS
from spin.errors import SpinError, shorten_message
from spin.settings import DataSettings

_TRIES = 2
"""children that a file must end before it is bad"""
_KILLS = 4
"""children that may be killed from outside while they read one file"""
_FROM_OUTSIDE = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)
"""statuses of a child that was ended from outside; 0 is that of any child where the parent ignores SIGCHLD"""
_HANGS = 78
"""status of a child that was ended because it hangs"""
_STALL_SECONDS = 900
"""time without an answer or any computing after which a child is ended; requests to a store give up before"""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MIMALLOC_ARENA_EAGER_COMMIT": "0",
}
"""a child multiplies no matrices, and what libraries take in advance would count as its memory"""
_SHELL = ("/bin/sh", "-c", 'ulimit -S -s 8192 2>/dev/null; exec "$@"', "sh")
"""the stacks of threads count as memory, too, and some machines have very large ones"""

_log = logging.getLogger(__name__)
_Answers = Generator[Answer, None, None]


def read_pieces(
    pieces: Sequence[Piece], data: DataSettings, columns: Collection[Role] = ID_AND_TEXT
) -> Iterator[tuple[Piece, Iterator[Documents]]]:
    """The pieces in order, each with its rows as `read_piece` yields them; these must be read to their end.

    Texts that no night classifies are dropped, see `Documents.drop_unfit_texts`. Raises BadFileError, naming the file,
    while the rows of a piece are read; the pieces after it can be read all the same. Raises WorkerFaultError if
    children are killed again and again or cannot start, UnavailableError if they hang.
    """
    with closing(_read_all(tuple(pieces), data, tuple(columns))) as answers:
        for piece in pieces:
            yield piece, _rows_of_piece(answers)


def describe_columns(piece: Piece, data: DataSettings) -> str:
    """The columns of a file for a message; empty if it cannot be read now."""
    names = _ask(piece, partial(find_columns, piece, data))
    return "" if names is None else f"{piece.uri} has {list_columns(names) or 'none'}"


def locate_rows(piece: Piece, rows: Collection[int], data: DataSettings, first: int = 0) -> list[int] | None:
    """The lines of rows as `find_lines` finds them; None also if the file cannot be read any more."""
    lines: list[int] | None = _ask(piece, partial(find_lines, piece, rows, data, first))
    return lines


def _ask(piece: Piece, question: Callable[[], Any]) -> Any:
    """The answer of a child to a question about a file; None if there is none."""
    try:
        [answer] = _run(partial(reader_child.answer_question, piece, question))
        return answer.get()
    except (SpinError, _Death):
        _log.debug("%s could not be read again", piece.uri, exc_info=True)
        return None


def _rows_of_piece(answers: Iterator[Answer]) -> Iterator[Documents]:
    for answer in answers:
        documents = answer.get()
        if answer.ends:
            return
        yield documents


def _read_all(pieces: tuple[Piece, ...], data: DataSettings, columns: tuple[Role, ...]) -> _Answers:
    """The answers for all pieces, whatever ends the children that read them."""
    number = passed_on = 0
    deaths: list[_Death] = []
    while number < len(pieces):
        rest = pieces[number : number + 1] if deaths else pieces[number:]
        skipped = passed_on  # answers that an earlier child has given
        try:
            with closing(_run(partial(reader_child.read_rows, rest, data, columns))) as answers:
                for answer in answers:
                    if answer.trace:
                        _log.warning("%s could not be read:\n%s", pieces[number].uri, answer.trace)
                    if answer.ends:
                        number, passed_on, skipped, deaths = number + 1, 0, 0, []
                    elif skipped:
                        skipped -= 1
                        continue
                    else:
                        passed_on += 1
                    yield answer
        except _Death as death:
            deaths.append(death)
            _log.debug("a child read %s: %s %s", pieces[number].uri, death.reason, death.last_words)
            error = _blame(pieces[number], deaths, alone=len(rest) == 1)
            if error is not None:
                number, passed_on, deaths = number + 1, 0, []
                yield Answer(error=error, ends="piece")


class _Death(Exception):
    """A child has ended instead of answering."""

    def __init__(self, status: int, last_words: str = "") -> None:
        super().__init__(status, last_words)
        self.status, self.last_words = status, last_words

    @property
    def is_from_outside(self) -> bool:
        """Whether a signal from outside has ended the child, and not what it read."""
        # guarded by test_a_child_that_is_killed_is_not_the_fault_of_its_file; broken by:
        #   return False
        return self.status in _FROM_OUTSIDE

    @property
    def reason(self) -> str:
        """What has ended the child."""
        if self.status == NO_MEMORY:
            return f"it takes more than {MEMORY / 1e9:g} GB of memory"
        if self.status == -signal.SIGXCPU:
            return f"it takes more than {SECONDS} s of processor time and {SECONDS_PER_MB} s per MB"
        if self.status == _HANGS:
            return f"the process that reads it has done nothing for {_STALL_SECONDS} s"
        name = signal.Signals(-self.status).name if self.status < 0 else f"status {self.status}"
        return f"it ends the process that reads it ({name})"


def _blame(piece: Piece, deaths: Sequence[_Death], *, alone: bool) -> SpinError | None:
    """The error for a piece at which so many children ended; None if it is to be read once more.

    Processor time is limited exactly, so one child says enough that read the piece alone: the requests of others count,
    too.
    """
    own = [death for death in deaths if not death.is_from_outside]
    if len(own) >= _TRIES and own[-1].status == _HANGS:
        return UnavailableError(f"{piece.uri}: {own[-1].reason}; look at the store, then run it again to resume")
    # guarded by test_a_file_that_ends_its_readers_is_quarantined
    if len(own) >= _TRIES or (own and own[-1].status == -signal.SIGXCPU and alone):
        return BadFileError(f"{piece.uri} cannot be read: {own[-1].reason}; mend it, or take it out of the input")
    if len(deaths) - len(own) >= _KILLS:
        return WorkerFaultError(
            f"{_KILLS} processes in a row were killed while they read {piece.uri}, which says nothing of the file; "
            "give the machine more memory, or fewer workers, then run it again to resume"
        )
    return None


class _Child:
    """A child process. It answers one request at a time."""

    def __init__(self) -> None:
        """Start it. Raises WorkerFaultError if it does not start, and _Death if something from outside ends it."""
        self.errors = tempfile.TemporaryFile(prefix="spin-reader-")  # noqa: SIM115 (open as long as the child lives)
        self.connection, theirs = Pipe()
        path, module = [os.fspath(each) for each in sys.path], reader_child.__name__
        code = f"import sys; sys.path[:] = {path!r}; from {module} import serve; serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                [*_SHELL, sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
            )
        try:
            self._receive()
        except _Death as death:
            self.end()
            if death.is_from_outside:
                raise
            message = f"a process that reads input files could not start: {death.last_words or death.reason}"
            # guarded by test_a_child_that_cannot_start_is_not_the_fault_of_a_file
            raise WorkerFaultError(f"{message}; mend that, then run it again to resume") from None

    def answer(self, job: Job) -> Iterator[Answer]:
        """The answers to a request. Raises _Death if the child ends before the last one."""
        try:
            self.connection.send((dict(os.environ), job))  # variables say how to reach a store
        except OSError:
            raise self._death() from None
        while True:
            answer = self._receive()
            PROCESS_REQUESTS.add(answer.requests)
            yield answer
            if answer.ends == "request":
                return

    def _receive(self) -> Any:
        """What the child sends next. Raises _Death if it ends or hangs."""
        computed = self._computed()
        while not self.connection.poll(_STALL_SECONDS):
            before, computed = computed, self._computed()
            # guarded by test_a_child_that_hangs_is_ended
            if computed == before:
                raise _Death(_HANGS)
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # also within a message
            raise self._death() from None

    def _computed(self) -> float:
        """Seconds of processor time so far, 0 once it has ended."""
        try:
            return float(sum(psutil.Process(self.process.pid).cpu_times()[:2]))
        except psutil.Error:
            return 0.0

    def _death(self) -> _Death:
        status = self.process.wait()
        self.errors.seek(0)
        return _Death(status, shorten_message(self.errors.read().decode(errors="replace"), keep_end=True))

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


_idle: list[_Child] = []
"""children that wait for a request: to start one takes about a second"""


def _run(job: Job) -> _Answers:
    """The answers of a child, which is used again unless it ends or the answers are not read to their end."""
    try:
        child = _take_child()
    except OSError as error:
        raise WorkerFaultError(f"a process that reads input files could not start: {error}") from error
    try:
        for answer in child.answer(job):
            if answer.ends == "request":
                _idle.append(child)
            yield answer
    finally:
        if child not in _idle:
            child.end()


def _take_child() -> _Child:
    """An idle child, or a new one."""
    while _idle:
        child = _idle.pop()
        if child.process.poll() is None:
            return child
        child.end()
    return _Child()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()
