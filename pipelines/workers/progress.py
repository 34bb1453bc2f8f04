"""Show the progress of a stage: a bar on a terminal, elsewhere a line every 30 seconds, in JSON if the log is."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pipelines.telemetry.json_lines import is_logging_json, to_line

_log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)
LINE_SECONDS = 30.0
"""seconds between two lines"""
_POLL_SECONDS = 0.5
"""seconds between two counts of what is done"""
_TELLING_SECONDS = 3.0
"""seconds of work after which its pace tells how much longer it takes"""
Advance = Callable[..., None]
"""called with the number of further units, and with other counts by name: `advance(40, dead=2)`"""


class Pace:
    """How much of a stage is done, how fast, and how much longer it takes.

    The pace is that since the first report: what comes before it, such as the start of workers, says nothing of it.
    """

    def __init__(self, total: float, done: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.counts = total, Counter[str]()
        self._done, self._clock = done, clock
        self._first: tuple[float, float] | None = None
        """time and units done of the first report"""

    def advance(self, units: float, counts: Mapping[str, int]) -> None:
        """Count further units, and other counts by name."""
        self._done += units
        self.counts.update(counts)
        if units and self._first is None:
            self._first = self._clock(), self._done

    @property
    def done(self) -> float:
        """The units that are done, of a total that is never exceeded, also where it was estimated."""
        return min(self._done, self.total)

    @property
    def per_second(self) -> float:
        """Units per second; 0 until there is a second report."""
        if self._first is None or self._done <= self._first[1]:
            return 0.0
        return (self._done - self._first[1]) / max(1e-3, self._clock() - self._first[0])

    @property
    def remaining(self) -> int | None:
        """Seconds until all units are done, at least 1; None while that cannot be told."""
        left, per_second = self.total - self._done, self.per_second
        if self._first is None or left <= 0 or not per_second or self._clock() - self._first[0] < _TELLING_SECONDS:
            return None
        return max(1, math.ceil(left / per_second))


@contextmanager
def progress(stage: str, total: float, unit: str, *, done: float = 0.0) -> Iterator[Advance]:
    """Show progress towards `total` units, of which `done` are done before; call the yielded function for more."""
    pace = Pace(total, done)
    shown = _bar if console.is_terminal and not is_logging_json() else _lines
    with shown(stage, unit, pace) as refresh:

        def advance(units: float, **counts: int) -> None:
            pace.advance(units, counts)
            refresh()

        yield advance


@contextmanager
def polled_progress(stage: str, total: float, unit: str, count_done: Callable[[], float]) -> Iterator[Advance]:
    """Show progress as `count_done()` tells it, which a thread calls twice per second.

    An error that it raises is logged and ends there: nothing depends on progress. The yielded function takes other
    counts.
    """
    done, ended = count_done(), threading.Event()
    with progress(stage, total, unit, done=done) as advance:

        def poll() -> None:
            before = done
            while not ended.wait(_POLL_SECONDS):
                try:
                    now = count_done()
                except Exception:
                    _log.debug("%s: what is done could not be counted", stage, exc_info=True)
                    continue
                if now > before:
                    advance(now - before)
                    before = now

        poller = threading.Thread(target=poll, daemon=True, name="poll")
        poller.start()
        try:
            yield advance
        finally:
            ended.set()
            poller.join()


class _Rate(ProgressColumn):
    """Units per second, and the other counts."""

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        speed = pace.per_second
        shown = f"{speed:,.{0 if speed >= 10 else 1}f} {task.fields['unit']}/s" if speed else ""
        counts = [f"{name} {count:,}" for name, count in pace.counts.items() if count]
        return Text(" · ".join([shown, *counts]))


class _Remaining(ProgressColumn):
    """Minutes and seconds that remain, once that can be told."""

    def render(self, task: Task) -> Text:
        seconds = task.fields["pace"].remaining
        if seconds is None:
            return Text("")
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}")


@contextmanager
def _bar(stage: str, unit: str, pace: Pace) -> Iterator[Callable[[], None]]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        _Rate(),
        _Remaining(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=pace.total, completed=pace.done, unit=unit, pace=pace)  # type: ignore[arg-type]
        yield lambda: bar.update(task, completed=pace.done)


def _describe(line: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """The entries of a JSON line for people."""
    shown = "progress: {stage} {done:,} of {total:,} {unit}".format_map(line)
    pace = [f"{line['per_s']:,} per second"] if line["per_s"] else []
    left = [] if line["remaining_s"] is None else [f"{line['remaining_s']:,} s left"]
    return ", ".join([shown, *pace, *left, *(f"{name} {count:,}" for name, count in counts.items() if count)])


@contextmanager
def _lines(stage: str, unit: str, pace: Pace) -> Iterator[Callable[[], None]]:
    """Write a line every `LINE_SECONDS` seconds, as JSON under `--log json`."""
    ended = threading.Event()

    def write_lines() -> None:
        while not ended.wait(LINE_SECONDS):
            line: dict[str, Any] = {
                "stage": stage,
                "done": round(pace.done),
                "total": round(pace.total),
                "unit": unit,
                "per_s": round(pace.per_second, 1),
                "remaining_s": pace.remaining,
            }
            shown = to_line({**line, **pace.counts}) if is_logging_json() else _describe(line, pace.counts)
            console.print(shown, soft_wrap=True, markup=False)

    # in this context, whose runs the lines name
    work = partial(copy_context().run, write_lines)
    writer = threading.Thread(target=work, daemon=True, name="progress")
    writer.start()
    try:
        yield lambda: None
    finally:
        ended.set()
        writer.join()
