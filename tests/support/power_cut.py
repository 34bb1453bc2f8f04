"""A power cut: files whose content was never flushed to the disk are empty afterwards, folders may be gone."""

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
    """Record the files and folders that this process flushes. Libraries that are not of Python flush none."""
    flushed: set[Inode] = set()
    fsync = os.fsync

    def record_and_flush(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(_inode(os.fstat(descriptor)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", record_and_flush)
        yield flushed


def cut_power(folder: Path, flushed: set[Inode]) -> list[str]:
    """Empty all files below a folder that were not flushed; return their paths, and folders that were not flushed."""
    paths = [folder.parent, folder, *folder.rglob("*")]
    lost = [path for path in paths if path.exists() and _inode(path.stat()) not in flushed]
    for path in lost:
        if path.is_file():
            os.truncate(path, 0)
    return [str(path) for path in lost]


def _inode(state: os.stat_result) -> Inode:
    return state.st_dev, state.st_ino
