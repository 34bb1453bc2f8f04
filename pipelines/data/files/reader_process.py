"""Read input files in a child process, whose death is the fault of the file that it was reading.

A file that was made to harm can abort a library in C++, ask for all memory or take hours. So files are parsed by a
child, which the kernel limits to `MEMORY` bytes and, per file, to some seconds of processor time. It sends the rows as
Python values and validated Arrow columns. If it dies, the file that it was reading is tried once more by a new child,
which is not worn out by the files before. A file that ends two of them, or takes too much time once, is a BadFileError,
and the files after it are read.

SIGKILL is sent by a machine that has no memory left, or by somebody. It says nothing about a file, so after a few such
deaths WorkerFaultError is raised.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pyarrow as pa

from pipelines.data.files.formats import list_columns, unreadable_file
from pipelines.data.files.reader import ID_AND_TEXT, Documents, Role
from pipelines.data.files.readers import find_columns, find_lines, open_all, read_piece
from pipelines.data.files.shards import Piece
from pipelines.service_errors import BadFileError, WorkerFaultError
from pipelines.storage.request_counting import active_traffic, count_input_reads
from spin.errors import SpinError, describe_error, error_types, shorten_message
from spin.settings import DataSettings

MEMORY = 2_000_000_000
"""bytes of memory that a child may have"""
SECONDS, SECONDS_PER_MB = 10, 10
"""processor time of a child for a file, and besides for each MB of it or of the part that is read"""
_TRIES = 2
"""children that a file must end before it is bad"""
_KILLS = 4
"""children that may be killed from outside while they read one file"""
_NO_MEMORY, _HANGS = 77, 78
"""statuses of a child that has no memory left, and of one that was ended because it hangs"""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""a child multiplies no matrices; threads of a library that does would take some of its memory"""
_IO_THREADS = 2
"""threads with which Arrow reads a file"""
_STALL_SECONDS = 900
"""time after which a child is ended that neither answers nor computes; requests to a store give up before"""

_log = logging.getLogger(__name__)


def read_pieces(
    pieces: Sequence[Piece], data: DataSettings, columns: Collection[Role] = ID_AND_TEXT
) -> Iterator[tuple[Piece, Iterator[Documents]]]:
    """The pieces in order, each with its rows as `read_piece` yields them; these must be read to their end.

    Raises BadFileError, naming the file, while the rows of a piece are read; the pieces after it can be read all the
    same. Raises WorkerFaultError if children are killed again and again.
    """
    with closing(_read_all(tuple(pieces), data, tuple(columns))) as answers:
        for piece in pieces:
            yield piece, _rows_of_piece(answers)


def describe_columns(piece: Piece, data: DataSettings) -> str:
    """The columns of a file for a message; empty if it cannot be read now."""
    try:
        names = _ask(piece, partial(find_columns, piece, data))
        return f"{piece.uri} has {list_columns(names) or 'none'}"
    except SpinError:
        _log.debug("the columns of %s could not be listed", piece.uri, exc_info=True)
        return ""


def locate_rows(piece: Piece, rows: Collection[int], data: DataSettings, first: int = 0) -> list[int] | None:
    """The lines of rows as `find_lines` finds them; None also if the file cannot be read any more."""
    try:
        lines: list[int] | None = _ask(piece, partial(find_lines, piece, rows, data, first))
        return lines
    except SpinError:
        _log.debug("the lines of %s could not be counted", piece.uri, exc_info=True)
        return None


@dataclass(frozen=True)
class _Answer:
    """What a child sends: a value of what it reads, an error, or neither at the end of a piece."""

    value: Any = None
    error: tuple[str, str] | None = None
    """class and message of a SpinError, which ends the piece, too"""
    read: tuple[int, int] = (0, 0)
    """requests and bytes since the last answer"""

    def get(self) -> Any:
        """The value. Raises the error."""
        if self.error is not None:
            kind, message = self.error
            raise error_types()[kind](message)
        return self.value


_Answers = Generator[_Answer, None, None]


def _rows_of_piece(answers: Iterator[_Answer]) -> Iterator[Documents]:
    for answer in answers:
        documents = answer.get()
        if documents is None:
            return
        yield documents


def _read_all(pieces: tuple[Piece, ...], data: DataSettings, columns: tuple[Role, ...]) -> _Answers:
    """The answers for all pieces, whatever ends the children that read them."""
    ended = passed_on = 0
    deaths: list[_Death] = []
    last = _Answer()
    while ended < len(pieces):
        rest = pieces[ended : ended + 1] if deaths else pieces[ended:]
        try:
            with closing(_run(partial(_read, rest, data, columns))) as answers:
                for last in islice(answers, passed_on, None):
                    passed_on += 1
                    if last.value is None:
                        ended, passed_on, deaths = ended + 1, 0, []
                    if ended < len(pieces):
                        yield last
        except _Death as death:
            if ended == len(pieces):
                break
            deaths.append(death)
            _log.debug("a child read %s: %s %s", pieces[ended].uri, death.reason, death.last_words)
            error = _blame(pieces[ended], deaths)
            if error is not None:
                last = _Answer(error=(type(error).__name__, str(error)))
                ended, passed_on, deaths = ended + 1, 0, []
                if ended < len(pieces):
                    yield last
    if pieces:
        yield last  # here, where its child is used again even if nobody reads on


def _ask(piece: Piece, question: Callable[[], Any]) -> Any:
    """The answer of a child to a question about a file. Raises BadFileError if the question ends the child."""
    try:
        [answer] = _run(partial(_reply, piece, question))
    except _Death as death:
        raise _unreadable(piece, death) from None
    return answer.get()


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
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)

    @property
    def reason(self) -> str:
        """What has ended the child."""
        if self.status == _NO_MEMORY:
            return f"it takes more than {MEMORY / 1e9:g} GB of memory"
        if self.status == -signal.SIGXCPU:
            return f"it takes more than {SECONDS} s of processor time and {SECONDS_PER_MB} s per MB"
        if self.status == _HANGS:
            return f"the process that reads it has done nothing for {_STALL_SECONDS} s"
        name = signal.Signals(-self.status).name if self.status < 0 else f"status {self.status}"
        return f"it ends the process that reads it ({name})"


def _blame(piece: Piece, deaths: Sequence[_Death]) -> SpinError | None:
    """The error for a piece at which so many children ended; None if it is to be read once more."""
    own = [death for death in deaths if not death.is_from_outside]
    # guarded by test_a_file_that_ends_its_readers_is_quarantined
    if len(own) >= _TRIES or (own and own[-1].status == -signal.SIGXCPU):
        return _unreadable(piece, own[-1])
    if len(deaths) - len(own) >= _KILLS:
        return WorkerFaultError(
            f"{_KILLS} processes in a row were killed while they read {piece.uri}, which says nothing of the file; "
            "give the machine more memory, or fewer workers, then run it again to resume"
        )
    return None


def _unreadable(piece: Piece, death: _Death) -> BadFileError:
    return BadFileError(f"{piece.uri} cannot be read: {death.reason}; mend it, or take it out of the input")


class _Child:
    """A child process. It answers one request at a time."""

    def __init__(self) -> None:
        """Start it. Raises WorkerFaultError if it does not start."""
        self.errors = tempfile.TemporaryFile(prefix="spin-reader-")  # noqa: SIM115 (open as long as the child lives)
        self.connection, theirs = Pipe()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env={**os.environ, **_ENVIRONMENT},
            )
        try:
            self.connection.recv()
        except (EOFError, ConnectionError):
            ended = f"status {self.process.wait()}: {self.last_words()}"
            self.end()
            message = f"a process that reads input files could not start ({ended}); mend that, then run it again"
            # guarded by test_a_child_that_cannot_start_is_not_the_fault_of_a_file
            raise WorkerFaultError(message) from None

    def answer(self, job: Callable[[], Iterator[_Answer]]) -> Iterator[_Answer]:
        """The answers to a request. Raises _Death if the child ends before the last one."""
        traffic = active_traffic()
        try:
            self.connection.send((dict(os.environ), job))  # variables say how to reach a store
            while (answer := self._receive()) is not None:
                if traffic is not None and any(answer.read):
                    requests, read = answer.read
                    traffic.add(read, requests)
                yield answer
        except (EOFError, ConnectionError):
            raise _Death(self.process.wait(), self.last_words()) from None

    def _receive(self) -> _Answer | None:
        """The next answer. Raises _Death if the child hangs."""
        computed = -1.0
        while not self.connection.poll(_STALL_SECONDS):
            before, computed = computed, sum(psutil.Process(self.process.pid).cpu_times()[:2])
            # guarded by test_a_child_that_hangs_is_ended
            if computed == before:
                raise _Death(_HANGS)
        answer: _Answer | None = self.connection.recv()
        return answer

    def last_words(self) -> str:
        """The end of what the process has written to its standard error."""
        self.errors.seek(0)
        return shorten_message(self.errors.read().decode(errors="replace"), keep_end=True)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


_idle: list[_Child] = []
"""children that wait for a request: to start one takes about a second"""


def _run(job: Callable[[], Iterator[_Answer]]) -> _Answers:
    """The answers of a child, which is used again unless it ends or the answers are not read to their end."""
    child = _take_child()
    try:
        yield from child.answer(job)
    except BaseException:
        child.end()
        raise
    _idle.append(child)


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


def serve(handle: int) -> None:
    """Answer requests on a connection until the parent closes it or ends. This is all that a child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the child
    pa.set_cpu_count(1)
    pa.set_io_thread_count(_IO_THREADS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # of memory that can be written: libraries reserve more addresses than they use
    # guarded by test_a_file_that_takes_all_memory_is_quarantined
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    connection = Connection(handle)
    connection.send("ready")
    try:
        with suppress(EOFError, ConnectionError):
            while True:
                environment, job = connection.recv()
                os.environ.clear()
                os.environ.update(environment)
                for answer in _count_reads(job):
                    connection.send(answer)
                connection.send(None)
    except MemoryError:
        os._exit(_NO_MEMORY)


def _count_reads(job: Callable[[], Iterator[_Answer]]) -> Iterator[_Answer]:
    """The answers of a job, each with what was read since the one before."""
    with count_input_reads() as traffic:
        before = 0, 0
        for answer in job():
            now = traffic.get, traffic.read
            yield replace(answer, read=(now[0] - before[0], now[1] - before[1]))
            before = now


def _read(pieces: Sequence[Piece], data: DataSettings, columns: Collection[Role]) -> Iterator[_Answer]:
    """In a child: the rows of all pieces, with an end or an error after those of each."""
    with open_all(pieces) as opened:
        for piece, open_file in opened:
            _limit_seconds(piece)
            rows = read_piece(piece, data, open_file, columns=columns)
            yield from _answer_or_fail(piece, (_Answer(documents) for documents in rows), last=_Answer())


def _reply(piece: Piece, question: Callable[[], Any]) -> Iterator[_Answer]:
    """In a child: the answer to a question about a file."""
    _limit_seconds(piece)
    yield from _answer_or_fail(piece, (_Answer(question()) for _ in range(1)))


def _limit_seconds(piece: Piece) -> None:
    """Let the kernel end this process if a piece takes too much processor time."""
    used, (_, hard) = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)
    allowed = used.ru_utime + used.ru_stime + SECONDS + SECONDS_PER_MB * (piece.stop - piece.start) / 1e6
    soft = math.ceil(allowed) if hard == resource.RLIM_INFINITY else min(math.ceil(allowed), hard)
    # guarded by test_a_file_that_takes_too_long_is_quarantined
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _answer_or_fail(piece: Piece, answers: Iterator[_Answer], *, last: _Answer | None = None) -> Iterator[_Answer]:
    """Answers about a file, with an error in place of the rest if there is one, else with a last one."""
    try:
        yield from answers
    except MemoryError:
        raise
    except SpinError as error:
        last = _Answer(error=(type(error).__name__, str(error)))
    except Exception as error:
        _log.warning("%s could not be read", piece.uri, exc_info=True)
        reason = unreadable_file(piece.uri, describe_error(error))
        last = _Answer(error=(BadFileError.__name__, str(reason)))
    if last is not None:
        yield last
