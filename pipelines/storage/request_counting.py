"""Count the requests and bytes that reading the input files takes."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass
class Traffic:
    """Requests and bytes of reading from an object store."""

    get: int = 0
    head: int = 0
    list: int = 0
    read: int = 0
    """bytes that leave the store"""


_PAGE = 1000
"""keys per listing request"""
_LOCK = threading.Lock()
"""held while counts change: several threads may read"""
_counting: ContextVar[Traffic | None] = ContextVar("counting", default=None)


@contextmanager
def count_input_reads() -> Iterator[Traffic]:
    """Count what this thread reads of input files within the context, as if they lay in an object store.

    The yielded counts grow while the context lasts. Reads of a `Store` do not count, nor do those of other processes:
    to count the reads of a stage, run it with `map_shards(here=True)`.
    """
    traffic = Traffic()
    token = _counting.set(traffic)
    try:
        yield traffic
    finally:
        _counting.reset(token)


def with_counting(fs: Any) -> Any:
    """The file system itself, or within `count_input_reads` one that counts its reads."""
    traffic = _counting.get()
    return fs if traffic is None else _CountingFileSystem(fs, traffic)


def active_traffic() -> Traffic | None:
    """The counts of the `count_input_reads` that this thread is in, None outside of one."""
    return _counting.get()


def counting_file(source: Any, traffic: Traffic | None, *, known_size: bool) -> Any:
    """The file itself, or one that counts its reads. A file of unknown size costs a request when it is opened."""
    if traffic is None:
        return source
    if not known_size:
        with _LOCK:
            traffic.head += 1
    return _CountingFile(source, traffic)


class _CountingFileSystem:
    """A file system whose reads are counted."""

    def __init__(self, fs: Any, traffic: Traffic) -> None:
        self.fs, self.traffic = fs, traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)

    def open(self, path: str, mode: str) -> Any:
        return counting_file(self.fs.open(path, mode), self.traffic, known_size=False)

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        data = bytes(self.fs.cat_file(path, start=start, end=end))
        with _LOCK:
            self.traffic.get += 1
            self.traffic.read += len(data)
        return data

    def find(self, path: str, **options: Any) -> Any:
        return self._count_pages(self.fs.find(path, **options))

    def glob(self, path: str, **options: Any) -> Any:
        return self._count_pages(self.fs.glob(path, **options))

    def info(self, path: str) -> Any:
        self.traffic.head += 1
        return self.fs.info(path)

    def exists(self, path: str) -> bool:
        self.traffic.head += 1
        return bool(self.fs.exists(path))

    def isdir(self, path: str) -> bool:
        self.traffic.list += 1
        return bool(self.fs.isdir(path))

    def _count_pages(self, listed: Any) -> Any:
        self.traffic.list += max(1, math.ceil(len(listed) / _PAGE))
        return listed


class _CountingFile(io.RawIOBase):
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
            with _LOCK:
                self.traffic.get += 1
                self.traffic.read += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.source.close()
        super().close()
