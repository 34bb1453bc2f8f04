"""Count the requests that this process sends to S3, those that fail, and what it reads of input files."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_EXPECTED = (404, 412)
"""answers that are no failure: there is no object, or a conditional write found one"""


@dataclass(frozen=True)
class RequestTotals:
    """Requests and reads of input files since the start of the process; each attempt at a request counts."""

    requests: Counter[str] = field(default_factory=Counter)
    """by operation of the S3 API, such as `GetObject`"""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """by operation and error: the HTTP status, or `unanswered`"""
    reads: int = 0
    """of input files and of the spool, on disks too: requests, if they lay in an object store"""
    bytes_read: int = 0
    """that these reads have returned"""

    def plus(self, other: RequestTotals) -> RequestTotals:
        """These and other totals."""
        requests, errors = self.requests + other.requests, self.errors + other.errors
        return RequestTotals(requests, errors, self.reads + other.reads, self.bytes_read + other.bytes_read)

    def since(self, earlier: RequestTotals) -> RequestTotals:
        """What came after earlier totals."""
        requests, errors = self.requests - earlier.requests, self.errors - earlier.errors
        return RequestTotals(requests, errors, self.reads - earlier.reads, self.bytes_read - earlier.bytes_read)


class RequestCounter:
    """Counts the requests of the sessions that it watches, not those of Delta commits, which botocore does not send.

    It counts the reads of the files that `InputOpener` opens. Several threads may count.
    """

    def __init__(self) -> None:
        self._totals = RequestTotals()
        self._lock = threading.Lock()  # every thread with a file system has its own event loop

    def watch(self, session: Any) -> None:
        """Count all requests of the clients that a session of aiobotocore makes from now on."""
        session.register("response-received.s3", self._count_answer)

    def totals(self) -> RequestTotals:
        """The totals until now."""
        return self._totals

    def add(self, totals: RequestTotals) -> None:
        """Count further requests and reads, such as those of another process that has read for this one."""
        with self._lock:
            self._totals = self._totals.plus(totals)

    def count_read(self, size: int) -> None:
        """Count a read that has returned so many bytes."""
        self.add(RequestTotals(reads=1, bytes_read=size))

    def _count_answer(self, response_dict: dict[str, Any] | None, event_name: str, **_: Any) -> None:
        """Called by botocore after each attempt at a request; `response_dict` is None if no answer came."""
        operation = event_name.rpartition(".")[2]
        status = None if response_dict is None else int(response_dict["status_code"])
        errors: Counter[tuple[str, str]] = Counter()
        if status is None:
            errors[operation, "unanswered"] = 1
        elif status >= 400 and status not in _EXPECTED:
            errors[operation, str(status)] = 1
        self.add(RequestTotals(Counter({operation: 1}), errors))


PROCESS_REQUESTS = RequestCounter()
"""of all stores and inputs that this process opens"""
