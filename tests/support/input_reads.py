"""Count what this process and the children that read for it read of input files, and of the spool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestTotals


@dataclass
class InputReads:
    """Reads from the first totals on: to the last ones, or until now."""

    first: RequestTotals = field(default_factory=PROCESS_REQUESTS.totals)
    last: RequestTotals | None = None

    @property
    def count(self) -> int:
        return self._totals.reads

    @property
    def bytes(self) -> int:
        return self._totals.bytes_read

    @property
    def _totals(self) -> RequestTotals:
        return (self.last or PROCESS_REQUESTS.totals()).since(self.first)


@contextmanager
def count_input_reads() -> Iterator[InputReads]:
    """Count the reads within the context; the counts grow while it lasts."""
    reads = InputReads()
    try:
        yield reads
    finally:
        reads.last = PROCESS_REQUESTS.totals()
