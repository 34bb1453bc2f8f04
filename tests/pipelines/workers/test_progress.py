"""Progress without a terminal: lines for a log, in JSON if the log is."""

from __future__ import annotations

import io
import json
import re
import threading

import pytest
from rich.console import Console

from pipelines.telemetry import json_lines
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.json_lines import log_as_json
from pipelines.workers import progress as progress_module
from pipelines.workers.progress import progress


class ErrorStream(io.StringIO):
    """A standard error stream that sets the event `written` on each write."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        length = super().write(text)
        self.written.set()
        return length


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_progress_is_logged_as_json_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line holds counts, rate and remaining time. On a terminal, too, lines are written after `log_as_json`."""
    stream = ErrorStream(terminal)
    monkeypatch.setattr(progress_module, "console", Console(file=stream, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(json_lines, "_mode", {"json": False})
    log_as_json()
    with progress("classify", 100, "documents", done=20) as advance:
        advance(30, dead=2, retried=0)
        advance(10, dead=1, retried=1)
        stream.written.clear()
        assert stream.written.wait(10)
    line = json.loads(stream.getvalue().splitlines()[-1])
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


def test_progress_in_a_pipe_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the log is JSON; counts of zero are left out."""
    stream = ErrorStream(terminal=False)
    monkeypatch.setattr(progress_module, "console", Console(file=stream, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(json_lines, "_mode", {"json": False})
    with progress("classify", 2_000, "documents", done=900) as advance:
        advance(100, dead=2, retried=0)
        stream.written.clear()
        assert stream.written.wait(10)
    line = stream.getvalue().splitlines()[-1]
    assert re.fullmatch(
        r"progress: classify 1,000 of 2,000 documents, [\d,.]+ per second, [\d,]+ s left, dead 2", line
    ), line


def test_a_short_stage_logs_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is written before the first interval ends, and no progress thread is left running."""
    stream = ErrorStream(terminal=False)
    monkeypatch.setattr(progress_module, "console", Console(file=stream))
    with progress("classify", 1, "documents") as advance:
        advance(1)
    assert stream.getvalue() == ""
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_a_total_that_was_estimated_too_low_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ErrorStream(terminal=False)
    monkeypatch.setattr(progress_module, "console", Console(file=stream, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(json_lines, "_mode", {"json": True})
    with progress("intake", 10, "documents") as advance:
        advance(30)
        stream.written.clear()
        assert stream.written.wait(10)
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert (line["done"], line["total"], line["remaining_s"]) == (30, 30, 0)


def test_a_line_names_the_runs_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of the thread which writes the lines; outside of a run it has no such entry."""
    stream = ErrorStream(terminal=False)
    monkeypatch.setattr(progress_module, "console", Console(file=stream, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(json_lines, "_mode", {"json": True})
    for runs in ([CurrentRun("run-a", "a"), CurrentRun("run-b", "b")], []):
        with working_on(runs), progress("classify", 10, "documents"):
            stream.written.clear()
            assert stream.written.wait(10)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["run"] == "run-a,run-b"
    assert "run" not in lines[-1]
