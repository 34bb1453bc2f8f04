"""Folders on a disk that cannot be listed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def break_listing(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int, times: int = 1_000_000) -> None:
    """Let listing a folder fail with an error of the system so many times: permissions do not stop root."""
    scandir, failures = os.scandir, iter(range(times))

    def fail_in_folder(path: Any = ".") -> Any:
        if str(path) == str(folder) and next(failures, None) is not None:
            raise OSError(code, os.strerror(code), str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail_in_folder)
