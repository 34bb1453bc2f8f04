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
        """What was added after earlier totals."""
        return RequestTotals(self.requests - earlier.requests, self.errors - earlier.errors)


_LOCK = threading.Lock()
"""held while totals change: every thread with a file system has its own event loop"""
_totals = RequestTotals()


def request_totals() -> RequestTotals:
    """The totals of this process. Requests of Delta commits, which are not sent by botocore, are not among them."""
    with _LOCK:
        return RequestTotals(_totals.requests.copy(), _totals.errors.copy())


def count_requests(session: Any) -> None:
    """Count all requests of the clients that a session of aiobotocore makes from now on."""
    session.register("response-received.s3", _count_answer)


def _count_answer(response_dict: dict[str, Any] | None, event_name: str, **_: Any) -> None:
    """Called by botocore after each attempt at a request; `response_dict` is None if no answer came."""
    operation = event_name.rpartition(".")[2]
    status = None if response_dict is None else int(response_dict["status_code"])
    with _LOCK:
        _totals.requests[operation] += 1
        if status is None:
            _totals.errors[operation, "unanswered"] += 1
        elif status >= 400 and status not in _EXPECTED:
            _totals.errors[operation, str(status)] += 1
