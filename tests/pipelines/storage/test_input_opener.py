"""Input files on a disk, which anybody may write while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.service_errors import BadFileError
from pipelines.storage.input_opener import InputOpener

CONTENT = b"a line\n" * 100_000


def cut(path: Path) -> None:
    os.truncate(path, 7 * 50_000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"half a li")


def overwrite(path: Path) -> None:
    path.write_bytes(CONTENT.upper())


@pytest.mark.parametrize("change", [cut, empty, append, overwrite])
def test_a_file_that_is_written_while_it_is_read_is_bad(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Also where it was cut at the end of a line: its other rows would be lost, and nobody would know."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    os.utime(path, (1, 1))
    version = str(path.stat().st_mtime)
    whole, streamed, whole_at_once = (InputOpener().open(str(path), size=len(CONTENT), version=version) for _ in "123")
    assert InputOpener().read(str(path), size=len(CONTENT), version=version) == CONTENT
    assert streamed.read(10) == CONTENT[:10]
    change(path)
    with pytest.raises(BadFileError, match="has changed since it was listed"):
        whole.read(len(CONTENT))
    with pytest.raises(BadFileError, match="has changed since it was listed"):
        list(iter(lambda: streamed.read(8192), b""))
    with pytest.raises(BadFileError, match="has changed since it was listed"):
        whole_at_once.read()
    with pytest.raises(BadFileError, match="has changed since it was listed"):
        InputOpener().open(str(path), size=len(CONTENT), version=version)


def test_a_file_that_is_replaced_by_another_one_is_read_to_its_end(tmp_path: Path) -> None:
    """The one that was opened stays as it was."""
    path, other = tmp_path / "a.jsonl", tmp_path / "b"
    path.write_bytes(CONTENT)
    other.write_bytes(b"")
    opened = InputOpener().open(str(path), size=len(CONTENT), version=str(path.stat().st_mtime))
    other.rename(path)
    assert opened.read() == CONTENT
