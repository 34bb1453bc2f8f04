"""Mutated files are read or quarantined, and harm nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.hostile import fuzz


@pytest.mark.slow
def test_a_minute_of_mutated_files_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "BUILD", tmp_path)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)  # to be put back: the command changes it
    status = fuzz.main(["--minutes", "1", "--seed", "0"])
    assert status == 0, capsys.readouterr().out
