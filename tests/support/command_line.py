"""The `spin` command in the process of a test."""

from __future__ import annotations

import sys

import pytest

from jobs import cli, terminal


def run_spin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, status: int = 0) -> str:
    """Run `spin WORDS…` and check its exit status; return what it prints, or where it fails its error message."""
    monkeypatch.setattr(sys, "argv", ["spin", *words])
    monkeypatch.setattr(terminal.out, "_width", 160)
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    out, error = capsys.readouterr()
    assert exit_info.value.code == status, error
    return error if status else out
