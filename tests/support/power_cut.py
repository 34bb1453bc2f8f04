"""A power cut: files whose content was never flushed to the disk are empty afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Inode = tuple[int, int]
"""device and number of a file, which it keeps when it is renamed"""


@contextmanager
def recording_flushes() -> Iterator[set[Inode]]:
    """Record the files that this process flushes. Libraries that are not of Python flush none."""
    flushed: set[Inode] = set()
    fsync = os.fsync

    def record_and_flush(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(_inode(os.fstat(descriptor)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", record_and_flush)
        yield flushed


def cut_power(folder: Path, flushed: set[Inode]) -> list[str]:
    """Empty all files below a folder that were not flushed; return their paths in it."""
    lost = [path for path in folder.rglob("*") if path.is_file() and _inode(path.stat()) not in flushed]
    for path in lost:
        os.truncate(path, 0)
    return [str(path.relative_to(folder)) for path in lost]


def _inode(state: os.stat_result) -> Inode:
    return state.st_dev, state.st_ino
