"""Atomic writes on a local disk."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


def write_file(path: Path, data: bytes, *, private_below: Path | None = None) -> None:
    """Write a file, replacing the one there; a crash leaves the old file or the new one.

    A file below `private_below`, and the folders below it that are made for the file, are for this user alone. All
    other files and folders are as the umask says.
    """
    # guarded by test_a_failed_write_keeps_the_old_object; broken by:
    #   temporary = _temporary(path, data, private_below); path.write_bytes(data)
    temporary = _temporary(path, data, private_below)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def create_file(path: Path, data: bytes, *, private_below: Path | None = None) -> bool:
    """The same only if there is no file; return whether it was written."""
    temporary = _temporary(path, data, private_below)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync(path.parent)
    return True


def flush_files(folder: Path, names: Iterable[str]) -> None:
    """Flush files that another library has written to a folder, those of the names that are there, and the folder."""
    for name in names:
        with suppress(FileNotFoundError):
            _sync(folder / name)
    _sync(folder)


def make_folder(folder: Path, *, private_below: Path | None = None) -> None:
    """Make a folder and those above it that are not there, and flush their names to the disk."""
    if not folder.exists():
        make_folder(folder.parent, private_below=private_below)
        folder.mkdir(0o700 if private_below in folder.parents else 0o777, exist_ok=True)
        _sync(folder.parent)


def is_temporary(name: str) -> bool:
    """Whether a file has the name of one that is still being written, or that a killed process has left behind."""
    return _TEMPORARY.fullmatch(name) is not None


def _temporary(path: Path, data: bytes, private_below: Path | None) -> Path:
    """Write data to a temporary file next to a path; neither an error nor an interrupt leaves one behind."""
    make_folder(path.parent, private_below=private_below)
    mode = 0o600 if private_below in path.parents else 0o666
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # guarded by test_what_a_private_store_holds_is_for_its_user_alone; broken by:
        #   with temporary.open("xb") as file:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
