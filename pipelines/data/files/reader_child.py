"""What a child process does that reads input files: it answers requests within limits of memory and time.

The limits guard against files that abort, exhaust or stall a library. They are no sandbox: a file that takes over the
child could send its parent anything.
"""

from __future__ import annotations

import ctypes
import io
import math
import os
import resource
import signal
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.files.formats import unreadable_file
from pipelines.data.files.reader import Role
from pipelines.data.files.readers import open_all, read_piece
from pipelines.data.files.shards import Piece
from pipelines.service_errors import WorkerFaultError
from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestTotals
from spin.errors import SpinError, describe_error
from spin.settings import DataSettings

MEMORY = 2_000_000_000
"""bytes of memory that a child may have"""
SECONDS, SECONDS_PER_MB = 10, 10
"""processor time of a child for a file or a part of it, and besides for each MB of the file"""
_QUESTION_SECONDS = 600
"""processor time for a question about a file that was read before"""
NO_MEMORY = 77
"""exit status of a child that has no memory left"""
_IO_THREADS = 2
"""threads with which Arrow reads a file"""
_SET_DEATH_SIGNAL = 1
"""option of `prctl` by which a process ends when its parent does"""
_OOM_SCORE = "500"
"""where a machine has no memory left, the kernel ends a child before its parent"""


@dataclass(frozen=True)
class Answer:
    """What a child sends: a value of what it reads, or an error, and whether a piece or all of the request is done."""

    value: Any = None
    error: SpinError | None = None
    trace: str = ""
    """traceback of an error that no reader expects"""
    ends: Literal["", "piece", "request"] = ""
    requests: RequestTotals = field(default_factory=RequestTotals)
    """requests to stores and reads of input since the last answer"""

    def get(self) -> Any:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


Job = Callable[[], Iterator[Answer]]


def serve(handle: int) -> None:
    """Answer requests on a connection until the parent closes it or ends. This is all that a child does."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    with suppress(OSError):  # no Linux, or no /proc
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    pa.set_cpu_count(1)
    pa.set_io_thread_count(_IO_THREADS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # of memory that can be written: libraries reserve more addresses than they use
    # guarded by test_a_file_that_takes_all_memory_is_quarantined
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    _read_good_file()
    connection = Connection(handle)
    connection.send("ready")
    try:
        with suppress(EOFError, OSError):  # the parent has closed the connection, or has ended
            while True:
                environment, job = connection.recv()
                _limit_seconds(math.inf)
                if os.environ != environment:
                    os.environ.clear()
                    os.environ.update(environment)
                for answer in _count(job):
                    connection.send(answer)
    except MemoryError:
        os._exit(NO_MEMORY)


def _read_good_file() -> None:
    """Show that this machine can read under these limits, so that no file is blamed if it cannot."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}), sink)
    pq.read_table(io.BytesIO(sink.getvalue()))


def _count(job: Job) -> Iterator[Answer]:
    """The answers of a job, each with what was requested and read since the one before."""
    before = PROCESS_REQUESTS.totals()
    for answer in job():
        totals = PROCESS_REQUESTS.totals()
        yield replace(answer, requests=totals.since(before))
        before = totals


def read_rows(pieces: Sequence[Piece], data: DataSettings, columns: Collection[Role]) -> Iterator[Answer]:
    """The rows of all pieces, with an end or an error after those of each."""
    with open_all(pieces) as opened:
        for number, (piece, open_file) in enumerate(opened, 1):
            _limit_seconds(SECONDS + SECONDS_PER_MB * max(piece.size, piece.stop - piece.start) / 1e6)
            ends: Literal["piece", "request"] = "piece" if number < len(pieces) else "request"
            try:
                for documents in read_piece(piece, data, open_file, columns=columns):
                    documents.drop_unfit_texts(data)
                    yield Answer(documents)
            except Exception as error:
                yield _describe(error, piece, ends)
            else:
                yield Answer(ends=ends)


def answer_question(piece: Piece, question: Callable[[], Any]) -> Iterator[Answer]:
    """What a function returns that reads a file."""
    _limit_seconds(_QUESTION_SECONDS)
    try:
        yield Answer(question(), ends="request")
    except Exception as error:
        yield _describe(error, piece, "request")


def _describe(error: Exception, piece: Piece, ends: Literal["piece", "request"]) -> Answer:
    """The answer for an error. Raises MemoryError, which ends the process."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, SpinError):  # made anew: the traceback of this one holds what was read
        return Answer(error=type(error)(str(error)), ends=ends)
    fault = isinstance(error, ImportError) or "can't start new thread" in str(error)
    kind = WorkerFaultError(describe_error(error)) if fault else unreadable_file(piece.uri, describe_error(error))
    return Answer(error=kind, ends=ends, trace="".join(traceback.format_tb(error.__traceback__)))


def _limit_seconds(seconds: float) -> None:
    """Let the kernel end this process if it takes so much more processor time."""
    used, (_, hard) = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)
    allowed = used.ru_utime + used.ru_stime + seconds
    soft = hard if math.isinf(allowed) else math.ceil(allowed)
    # guarded by test_a_file_that_takes_too_long_is_quarantined
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
