"""Atomic writes on a local disk."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


def write_file(path: Path, data: bytes) -> None:
    """Write a file, replacing the one there; a crash leaves the old file or the new one."""
    # guarded by test_a_failed_write_keeps_the_old_object; broken by:
    #   temporary = _temporary(path, data); path.write_bytes(data)
    temporary = _temporary(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write a file only if there is none; return whether it was written."""
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(path.parent)
    return True


def is_temporary(name: str) -> bool:
    """Whether a file has the name of one that is still being written, or that a killed process has left behind."""
    return _TEMPORARY.fullmatch(name) is not None


def _temporary(path: Path, data: bytes) -> Path:
    """Write data to a temporary file next to a path; neither an error nor an interrupt leaves one behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
