"""The `spin` command in the process of a test."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest

from jobs import cli

CallSpin = Callable[..., tuple[int, str, str]]


def call_spin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Run `spin WORDS…`; return its exit status, its output and its errors."""
    monkeypatch.setattr(sys, "argv", ["spin", *map(str, words)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0), *capsys.readouterr()


def run_spin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, status: int = 0) -> str:
    """Run `spin WORDS…` and check its exit status; return what it prints, or where it fails its error message."""
    found, out, error = call_spin(monkeypatch, capsys, *words)
    assert found == status, error
    return error if status else out


def read_cells(printed: str) -> list[list[str]]:
    """Return the cells of each line of tables that were printed into a pipe; a line without any is left out."""
    return [re.split(r" {2,}", line.strip()) for line in printed.splitlines() if line.strip()]
