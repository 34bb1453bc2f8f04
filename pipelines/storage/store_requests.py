"""Count the requests that this process sends to S3, and those that fail, for the metrics of operators."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_EXPECTED = (404, 412)
"""answers that are no failure: there is no object, or a conditional write found one"""


@dataclass(frozen=True)
class RequestTotals:
    """Requests since the start of the process; each attempt at a request counts."""

    requests: Counter[str] = field(default_factory=Counter)
    """by operation of the S3 API, such as `GetObject`"""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """by operation and error: the HTTP status, or `unanswered`"""

    def since(self, earlier: RequestTotals) -> RequestTotals:
        """The requests after earlier totals."""
        return RequestTotals(self.requests - earlier.requests, self.errors - earlier.errors)


class RequestCounter:
    """Counts the requests of the sessions that it watches, not those of Delta commits, which botocore does not send."""

    def __init__(self) -> None:
        self._totals = RequestTotals()
        self._lock = threading.Lock()  # every thread with a file system has its own event loop

    def watch(self, session: Any) -> None:
        """Count all requests of the clients that a session of aiobotocore makes from now on."""
        session.register("response-received.s3", self._count_answer)

    def totals(self) -> RequestTotals:
        """The totals until now."""
        with self._lock:
            return RequestTotals(self._totals.requests.copy(), self._totals.errors.copy())

    def add(self, totals: RequestTotals) -> None:
        """Count requests that another process has sent for this one."""
        if totals.requests:
            with self._lock:
                self._totals.requests.update(totals.requests)
                self._totals.errors.update(totals.errors)

    def _count_answer(self, response_dict: dict[str, Any] | None, event_name: str, **_: Any) -> None:
        """Called by botocore after each attempt at a request; `response_dict` is None if no answer came."""
        operation = event_name.rpartition(".")[2]
        status = None if response_dict is None else int(response_dict["status_code"])
        with self._lock:
            self._totals.requests[operation] += 1
            if status is None:
                self._totals.errors[operation, "unanswered"] += 1
            elif status >= 400 and status not in _EXPECTED:
                self._totals.errors[operation, str(status)] += 1


PROCESS_REQUESTS = RequestCounter()
"""of all stores and inputs that this process opens"""
