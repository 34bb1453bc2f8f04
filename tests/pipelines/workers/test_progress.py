"""Progress where there is no terminal: JSON lines that a log can be read by."""

from __future__ import annotations

import io
import json
import threading

import pytest
from rich.console import Console

from pipelines.workers import progress as progress_module
from pipelines.workers.progress import log_as_json, progress


class Said(io.StringIO):
    """Standard error that says when a line has come."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.come = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        self.come.set()
        return written


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_a_line_says_how_far_it_is(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts, rate and remaining time, and what happened besides; on a terminal where it is asked for."""
    said = Said(terminal)
    monkeypatch.setattr(progress_module, "console", Console(file=said, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress_module, "_mode", {"json": False})
    if terminal:
        log_as_json()
    with progress("classify", 100, "documents", done=20) as advance:
        advance(30, dead=2, retried=0)
        advance(10, dead=1, retried=1)
        said.come.clear()
        assert said.come.wait(10)
    line = json.loads(said.getvalue().splitlines()[-1])
    assert {key: line[key] for key in ("stage", "done", "total", "unit", "dead", "retried")} == {
        "stage": "classify",
        "done": 60,
        "total": 100,
        "unit": "documents",
        "dead": 3,
        "retried": 1,
    }
    assert line["per_s"] > 0
    assert line["remaining_s"] >= 0


def test_a_short_stage_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line before its time, and no thread that goes on."""
    said = Said(False)
    monkeypatch.setattr(progress_module, "console", Console(file=said))
    with progress("classify", 1, "documents") as advance:
        advance(1)
    assert said.getvalue() == ""
    assert "progress" not in [thread.name for thread in threading.enumerate()]
