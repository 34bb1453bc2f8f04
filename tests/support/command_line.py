"""The `spin` command in the process of a test."""

from __future__ import annotations

import re
import sys

import pytest

from jobs import cli


def run_spin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, status: int = 0) -> str:
    """Run `spin WORDS…` and check its exit status; return what it prints, or where it fails its error message."""
    monkeypatch.setattr(sys, "argv", ["spin", *words])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    out, error = capsys.readouterr()
    assert exit_info.value.code == status, error
    return error if status else out


def read_cells(printed: str) -> list[list[str]]:
    """Return the cells of each line of tables that were printed into a pipe; a line without any is left out."""
    return [re.split(r" {2,}", line.strip()) for line in printed.splitlines() if line.strip()]
