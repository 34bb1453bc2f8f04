"""Progress without a terminal: lines for a log, in JSON if the log is."""

from __future__ import annotations

import io
import json
import re
import threading
from collections import Counter

import pytest
from rich.console import Console
from rich.text import Text

from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.workers import progress as progress_module
from pipelines.workers.progress import Pace, polled_progress, progress, show_pace


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


def log_progress(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False, as_json: bool = True) -> ErrorStream:
    """Let lines of progress be written every 0.05 s; return where they go."""
    stream = ErrorStream(terminal)
    monkeypatch.setattr(progress_module, "console", Console(file=stream, highlight=False, width=20))
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress_module, "is_logging_json", lambda: as_json)
    return stream


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
def test_progress_is_logged_as_json_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line holds counts, rate and remaining time. On a terminal, too, lines are written."""
    stream = log_progress(monkeypatch, terminal=terminal)
    others = Counter(dead=0, retried=0)
    pace = Pace(100, 20, others)
    with show_pace("classify", "documents", pace):
        pace.advance(30)
        pace.advance(10)
        others.update(dead=2, retried=1)
        for _ in range(2):  # the first of them may have begun before
            stream.written.clear()
            assert stream.written.wait(10)
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert {key: line[key] for key in ("stage", "done", "total", "unit", "dead", "retried")} == {
        "stage": "classify",
        "done": 60,
        "total": 100,
        "unit": "documents",
        "dead": 2,
        "retried": 1,
    }
    assert line["per_s"] > 0
    assert line["remaining_s"] is None


def test_progress_in_a_pipe_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the log is JSON; counts of zero are left out, and so is a pace that is not known yet."""
    stream = log_progress(monkeypatch, as_json=False)
    monkeypatch.setattr(progress_module, "_TELLING_SECONDS", 0)
    lines, others = [], Counter(dead=0, retried=0)
    pace = Pace(2_000, 900, others)
    with show_pace("classify", "documents", pace):
        for units in (60, 40):
            others["dead"] += units // 30
            pace.advance(units)
            for _ in range(2):  # the first of them may have begun before
                stream.written.clear()
                assert stream.written.wait(10)
            lines.append(stream.getvalue().splitlines()[-1])
    assert lines[0] == "progress: classify 960 of 2,000 documents, dead 2"
    assert re.fullmatch(
        r"progress: classify 1,000 of 2,000 documents, [\d,.]+ per second, [\d,]+ s left, dead 3", lines[1]
    ), lines


def test_a_short_stage_logs_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is written before the first interval ends, and no progress thread is left running."""
    stream = ErrorStream(terminal=False)
    monkeypatch.setattr(progress_module, "console", Console(file=stream))
    with progress("classify", 1, "documents") as advance:
        advance(1)
    assert stream.getvalue() == ""
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_a_total_that_was_estimated_too_low_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of units stays at it, and nobody is told that nothing remains."""
    stream = log_progress(monkeypatch)
    with progress("intake", 10, "documents") as advance:
        advance(30)
        stream.written.clear()
        assert stream.written.wait(10)
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert (line["done"], line["total"], line["remaining_s"]) == (10, 10, None)


def test_what_remains_follows_the_pace_since_the_first_report_and_is_never_nothing() -> None:
    """Neither the start of workers counts, nor what was done before; one report alone tells nothing."""
    now = 0.0
    pace = Pace(1000, 500, clock=lambda: now)
    assert (pace.done, pace.per_second, pace.remaining) == (500, 0, None)
    now = 60.0
    pace.advance(10)
    assert (pace.per_second, pace.remaining) == (0, None)
    now = 62.0
    pace.advance(40)
    assert (pace.per_second, pace.remaining) == (20, None)  # too early to tell
    now = 70.0
    pace.advance(160)
    assert (pace.done, pace.per_second, pace.remaining) == (710, 20, 15)
    pace.advance(289.9)
    assert pace.remaining == 1
    pace.advance(1)
    assert (pace.done, pace.remaining) == (1000, None)


def test_a_bar_shows_what_is_done_of_a_fixed_total(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ErrorStream(terminal=True)
    console = Console(file=stream, width=100, force_terminal=True)
    monkeypatch.setattr(progress_module, "console", console)
    monkeypatch.setattr(progress_module, "is_logging_json", lambda: False)
    pace = Pace(12_000, 1_000, {"dead": 2})
    with show_pace("extract", "documents", pace):
        pace.advance(500)
        pace.advance(20_000)
    shown = Text.from_ansi(stream.getvalue()).plain
    assert "extract" in shown
    assert "12,000/12,000 documents" in shown
    assert "21," not in shown
    assert "dead 2" in shown


def test_what_is_done_is_polled_and_an_error_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_POLL_SECONDS", 0.01)
    seen, ended = [], threading.Event()
    counts = iter([3, 5, None, 9])

    def count() -> float:
        if (number := next(counts, -1)) is None:
            raise ConnectionError
        if number < 0:
            ended.set()
        return 9 if number < 0 else number

    class ListeningPace(Pace):
        def reach(self, done: float) -> None:
            super().reach(done)
            seen.append(self.done)

    monkeypatch.setattr(progress_module, "Pace", ListeningPace)
    with polled_progress("probe", 10, "fits", count):
        assert ended.wait(10)
    assert seen[:3] == [5, 9, 9]
    assert "poll" not in [thread.name for thread in threading.enumerate()]


def test_a_line_names_the_runs_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the thread that writes the lines; outside of a run it has no such entry."""
    stream = log_progress(monkeypatch)
    for runs in ([CurrentRun("run-a", "a"), CurrentRun("run-b", "b")], []):
        with working_on(runs), progress("classify", 10, "documents"):
            stream.written.clear()
            assert stream.written.wait(10)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["run"] == "run-a,run-b"
    assert "run" not in lines[-1]
