"""Read input files in the process of the test, where it has changed how they are read."""

from __future__ import annotations

import pytest

from pipelines.data.files import reader_child, reader_process


def read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process do what a child would, without limits."""
    monkeypatch.setattr(reader_process, "_run", lambda job: job())
    monkeypatch.setattr(reader_child, "_limit_seconds", lambda seconds: None)
