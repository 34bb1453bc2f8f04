"""Count the requests and bytes that are read of a file system."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Traffic:
    """Requests and bytes. A share of a request is what a mean comes to."""

    get: float = 0
    put: float = 0
    """copies within the store among them"""
    head: float = 0
    list: float = 0
    delete: float = 0
    """each of up to a thousand keys"""
    read: float = 0
    """bytes that leave the store"""
    written: float = 0
    """bytes that are put into it; a copy moves none"""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Traffic:
        return Traffic(*(getattr(self, f.name) * times for f in fields(self)))


_watching: ContextVar[Traffic | None] = ContextVar("watching", default=None)


@contextmanager
def watched() -> Iterator[Traffic]:
    """Counts what is read of the inputs that are opened within, as if they lay in an object store.

    For `corpus` and `documents`, which only read; no Store may be made within.
    """
    traffic = Traffic()
    token = _watching.set(traffic)
    try:
        yield traffic
    finally:
        _watching.reset(token)


def seen(fs: Any) -> Any:
    """A file system, or where someone watches one that counts."""
    traffic = _watching.get()
    return fs if traffic is None else _Watched(fs, traffic)


class _Watched:
    """A file system whose reads are counted."""

    def __init__(self, fs: Any, traffic: Traffic) -> None:
        self.fs, self.traffic = fs, traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)

    def open(self, path: str, mode: str) -> io.RawIOBase:
        self.traffic.head += 1  # s3fs asks for the size
        return _WatchedFile(self.fs.open(path, mode), self.traffic)

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        data = bytes(self.fs.cat_file(path, start=start, end=end))
        self.traffic.get += 1
        self.traffic.read += len(data)
        return data


class _WatchedFile(io.RawIOBase):
    """Each read that gives bytes is a request: files of a store are opened without a cache."""

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
            self.traffic.get += 1
            self.traffic.read += len(data)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.source.close()
        super().close()
