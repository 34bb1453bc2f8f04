"""What a night asks of an object store: requests by kind, by the calls that its code makes of S3, and bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

_PAGE = 1000
"""keys that S3 lists, or deletes, in one request"""
_BEAT = 5.0
"""seconds from one renewal of a lease to the next"""


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


# calls of a Store as s3fs makes them
_READ = Traffic(head=1, get=1)
_READ_RANGE = Traffic(get=1)
_WRITE = Traffic(put=1)
_ABSENT = Traffic(head=1, list=1)
"""an object that is looked for where there is none"""
_LIST = Traffic(list=1)
_LIST_NOTHING = _LIST + _ABSENT
_COPY = Traffic(list=2, head=1, put=1)
_DELETE = Traffic(list=1, delete=1) + _ABSENT
_DELETE_NOTHING = _LIST_NOTHING + _ABSENT * 2

_CHECK = _READ + _LIST
"""that a lease still holds"""
_STEP = _CHECK + _WRITE
"""of publishing"""
_BEGIN = _LIST_NOTHING + _WRITE + _CHECK + _ABSENT * 3 + _CHECK + _DELETE_NOTHING * 2 + _LIST_NOTHING + _WRITE * 2
"""a lease, then a plan where there is none"""
_END = _ABSENT + _WRITE + _ABSENT * 2 + _LIST_NOTHING * 3 + _STEP * 6 + (_CHECK + _DELETE) * 3 + _CHECK * 3 + _STEP
"""the manifest, where its parts will lie, the reports, `latest`, the folders of work, the lease"""
_PART = _WRITE + _ABSENT + _CHECK + _COPY
"""a file that is published, from its first key to its last"""
_ATTEMPT = _ABSENT + _WRITE + _WRITE + _CHECK
"""a shard begun and its outcome committed, beside its files"""


def night_requests(
    shards: float, *, dead_shards: float, files: float, workers: int, seconds: float, partitions: int, drift: bool
) -> Traffic:
    """The requests of a first night in an output, whose input is a folder of so many files, but for reading these.

    `dead_shards` have dead letters; `partitions` of ids are looked through, none where ids are trusted; `drift` is
    measured where the model holds a reference. Nothing fails and is tried again.
    """
    night = _BEGIN + _ABSENT + _WRITE * 2 + _LIST_NOTHING + _READ * 2 * workers + _CHECK + _END
    night += (_LIST * (2 * _pages(files)) + Traffic(head=files)) * 2  # listed when planned, and again at the end
    night += (_CHECK + _WRITE) * (seconds // _BEAT)
    night += (_ATTEMPT + _WRITE + _PART + _READ * drift) * shards + _PART * dead_shards
    night += _DELETE_NOTHING  # of a shadow
    night += _more_keys(3 * shards + dead_shards) + _more_keys(shards)
    if not partitions:
        return night + _DELETE_NOTHING * 2
    night += (_LIST_NOTHING + _DELETE) * 2 + (_ATTEMPT + _WRITE) * shards + _ATTEMPT * partitions
    night += _READ_RANGE * (2 * shards * partitions)
    return night + _more_keys(3 * shards) + _more_keys(2 * partitions)


def _pages(keys: float) -> int:
    return max(1, ceil(keys / _PAGE))


def _more_keys(keys: float) -> Traffic:
    """What a folder of work takes to be deleted beyond its first thousand keys."""
    return Traffic(list=1, delete=1) * (_pages(keys) - 1)


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
