"""Show the progress of a stage: a bar on a terminal, elsewhere a line every 30 seconds, in JSON if the log is."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

from pipelines.telemetry.json_lines import is_logging_json, to_line
from pipelines.workers.repeated_calls import repeat

_log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)
LINE_SECONDS = 30.0
"""seconds between two lines"""
_POLL_SECONDS = 0.5
"""seconds between two counts of what is done"""
_TELLING_SECONDS = 3.0
"""seconds of work after which its pace tells how much longer it takes"""
Advance = Callable[[float], None]
"""called with the number of further units"""


class Pace:
    """The progress of a stage: what is done, how fast, and the time left; `others` are further counts by name.

    The pace is that since the first report: what comes before it, such as the start of workers, says nothing of it.
    """

    def __init__(
        self,
        total: float,
        done: float = 0.0,
        others: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.others = total, others or {}
        self._done, self._clock = done, clock
        self._first: tuple[float, float] | None = None
        """time and units done of the first report"""

    def advance(self, units: float) -> None:
        """Count further units."""
        self.reach(self._done + units)

    def reach(self, done: float) -> None:
        """Note the units that are done, unless more were before."""
        if done > self._done:
            self._done = done
            self._first = self._first or (self._clock(), done)

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
def progress(stage: str, total: float, unit: str) -> Iterator[Advance]:
    """Show progress towards `total` units; call the yielded function with further ones."""
    pace = Pace(total)
    with show_pace(stage, unit, pace):
        yield pace.advance


@contextmanager
def polled_progress(
    stage: str, total: float, unit: str, count_done: Callable[[], float], others: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Show progress as `count_done()` tells it, which a thread calls twice per second, and counts that others update.

    An error that it raises is logged and ends there: nothing depends on progress.
    """
    pace = Pace(total, count_done(), others)

    def poll() -> None:
        try:
            pace.reach(count_done())
        except Exception:
            _log.debug("%s: what is done could not be counted", stage, exc_info=True)

    with show_pace(stage, unit, pace), repeat(poll, _POLL_SECONDS, "poll"):
        yield


@contextmanager
def show_pace(stage: str, unit: str, pace: Pace) -> Iterator[None]:
    """Show a pace as a bar, or by a line now and then, while the context lasts."""
    if console.is_terminal and not is_logging_json():
        columns = (
            _Column(lambda: Text(f"{stage:<9}")),
            _Column(lambda: ProgressBar(total=pace.total, completed=pace.done, width=28)),
            _Column(lambda: Text(f"{pace.done:,.0f}/{pace.total:,.0f} {unit}")),
            _Column(lambda: Text(_describe_speed(unit, pace))),
            _Column(lambda: Text(_describe_remaining(pace.remaining))),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            bar.add_task(stage, total=None)
            yield
    else:
        with repeat(lambda: _write_line(stage, unit, pace), LINE_SECONDS, "progress"):
            yield


class _Column(ProgressColumn):
    """A part of the bar, made anew whenever it is drawn."""

    def __init__(self, make: Callable[[], RenderableType]) -> None:
        super().__init__()
        self._make = make

    def render(self, task: Task) -> RenderableType:
        return self._make()


def _describe_speed(unit: str, pace: Pace) -> str:
    """Units per second, and the other counts."""
    speed = pace.per_second
    shown = f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s" if speed else ""
    return " · ".join([shown, *_describe_others(pace)])


def _describe_others(pace: Pace) -> list[str]:
    return [f"{name} {count:,}" for name, count in pace.others.items() if count]


def _describe_remaining(seconds: int | None) -> str:
    """Hours, minutes and seconds that remain, once that can be told."""
    if seconds is None:
        return ""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def _write_line(stage: str, unit: str, pace: Pace) -> None:
    """Write how much is done in one line for people, or as JSON where the log is."""
    done, total, speed, remaining = round(pace.done), round(pace.total), round(pace.per_second, 1), pace.remaining
    if is_logging_json():
        line = {"stage": stage, "done": done, "total": total, "unit": unit, "per_s": speed, "remaining_s": remaining}
        shown = to_line({**line, **pace.others})
    else:
        parts = [f"progress: {stage} {done:,} of {total:,} {unit}"]
        parts += [f"{speed:,.1f} per second"] if speed else []
        parts += [] if remaining is None else [f"{remaining:,} s left"]
        shown = ", ".join([*parts, *_describe_others(pace)])
    console.print(shown, soft_wrap=True, markup=False)
