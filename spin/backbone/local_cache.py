"""The folder in which this machine keeps what was computed or fetched once, and small JSON records in it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

_log = logging.getLogger(__name__)
_reported: set[Path] = set()
"""folders of which this process has logged that they cannot be used"""


def cache_folder() -> Path:
    """The cache folder of this machine: `SPIN_CACHE`, by default ~/.cache/spin. It may not exist yet."""
    return Path(os.environ.get("SPIN_CACHE", "~/.cache/spin")).expanduser()


@contextmanager
def lock_record(file: Path) -> Iterator[None]:
    """Hold the lock of a record, which one thread of all processes of this machine has at a time; create its folder.

    Where the folder is read-only or supports no locks, the context runs without one, and a warning is logged once.
    """
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:
            _report_unusable(file.parent, error)
        yield


def read_record(file: Path) -> object:
    """The content of a record; None if it does not exist or cannot be read, of which the latter is logged."""
    try:
        return json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s) and is written anew", file, error)
        return None


def write_record(file: Path, content: Mapping[str, object]) -> None:
    """Replace a record in one step, so that a reader sees the old or the new one. A failure is logged once."""
    try:
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            written = Path(scratch) / file.name
            written.write_text(json.dumps(content, indent=2), encoding="utf-8")
            written.replace(file)
    except OSError as error:
        _report_unusable(file.parent, error)


def _report_unusable(folder: Path, error: Exception) -> None:
    if folder not in _reported:
        _reported.add(folder)
        _log.warning(
            "%s cannot be written or locked (%s), so every process repeats what would be kept there; "
            "set SPIN_CACHE to a folder that can",
            folder,
            error,
        )
