"""Count the requests and bytes that reading the input files takes."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Traffic:
    """Requests and bytes of reading from an object store."""

    get: int = 0
    read: int = 0
    """bytes that leave the store"""
    _outer: Traffic | None = field(default=None, repr=False, compare=False)
    """counts of the context around that of these"""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """held while counts change: several threads may read"""

    def add(self, read: int, requests: int = 1) -> None:
        """Count requests that have returned so many bytes."""
        with self._lock:
            self.get += requests
            self.read += read
        if self._outer is not None:
            self._outer.add(read, requests)


_counting: ContextVar[Traffic | None] = ContextVar("counting", default=None)


@contextmanager
def count_input_reads() -> Iterator[Traffic]:
    """Count what this thread reads of input files within the context, as if they lay in an object store.

    The yielded counts grow while the context lasts. Those of `reader_process` count here, too. Listings and reads of a
    `Store` do not, nor do those of workers: to count the reads of a stage, run it with `map_shards(here=True)`.
    """
    traffic = Traffic(_outer=_counting.get())
    token = _counting.set(traffic)
    try:
        yield traffic
    finally:
        _counting.reset(token)


def active_traffic() -> Traffic | None:
    """The counts of the `count_input_reads` that this thread is in, None outside of one."""
    return _counting.get()


class CountingFile(io.RawIOBase):
    """A file whose reads are counted. Each read that returns bytes is one request: files are opened without a cache."""

    def __init__(self, source: Any, traffic: Traffic) -> None:
        self.source, self.traffic = source, traffic

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.source.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.source.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self.source.read(len(buffer))
        if data:
            self.traffic.add(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.source.close()
        super().close()
