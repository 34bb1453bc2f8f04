"""Show the progress of a stage: a bar on a terminal, elsewhere a line every 30 seconds, in JSON if the log is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipelines.telemetry.json_lines import is_logging_json, to_line

console = Console(stderr=True, highlight=False)
LINE_SECONDS = 30.0
"""seconds between two lines"""
Advance = Callable[..., None]
"""called with the number of further units, and with other counts by name: `advance(40, dead=2)`"""


@contextmanager
def progress(stage: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Show progress towards `total` units, of which `done` are done before; call the yielded function for more.

    The total may be an estimate; it grows if more is done.
    """
    shown = _bar if console.is_terminal and not is_logging_json() else _lines
    with shown(stage, total, unit, done) as advance:
        yield advance


class _Rate(ProgressColumn):
    """Units per second, and the other counts."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = "" if speed is None else f"{speed:,.{0 if speed >= 10 else 1}f} {task.fields['unit']}/s"
        return Text(" · ".join([shown, *(f"{name} {count:,}" for name, count in task.fields["counts"].items())]))


@contextmanager
def _bar(stage: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    other: Counter[str] = Counter()
    with Progress(*columns, console=console, transient=True, speed_estimate_period=10) as bar:
        task = bar.add_task(stage, total=total, completed=done, unit=unit, counts=other)

        def advance(units: int, **counts: int) -> None:
            other.update({name: count for name, count in counts.items() if count})
            bar.advance(task, units)
            bar.update(task, total=max(total, bar.tasks[0].completed))

        yield advance


def _describe(line: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """The entries of a JSON line for people."""
    shown = "progress: {stage} {done:,} of {total:,} {unit}, {per_s:,} per second".format_map(line)
    left = [] if line["remaining_s"] is None else [f"{line['remaining_s']:,} s left"]
    return ", ".join([shown, *left, *(f"{name} {count:,}" for name, count in counts.items() if count)])


@contextmanager
def _lines(stage: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    """Write a line every `LINE_SECONDS` seconds, as JSON under `--log json`."""
    ended, start, now = threading.Event(), time.monotonic(), done
    other: Counter[str] = Counter()

    def advance(units: int, **counts: int) -> None:
        nonlocal now
        now += units
        other.update(counts)

    def write_lines() -> None:
        while not ended.wait(LINE_SECONDS):
            speed = (now - done) / (time.monotonic() - start)
            line: dict[str, Any] = {
                "stage": stage,
                "done": now,
                "total": max(total, now),
                "unit": unit,
                "per_s": round(speed, 1),
            }
            remaining = round(max(0, total - now) / speed) if speed else None
            line["remaining_s"] = remaining
            shown = to_line({**line, **other}) if is_logging_json() else _describe(line, other)
            console.print(shown, soft_wrap=True, markup=False)

    # in this context, whose runs the lines name
    work = partial(copy_context().run, write_lines)
    writer = threading.Thread(target=work, daemon=True, name="progress")
    writer.start()
    try:
        yield advance
    finally:
        ended.set()
        writer.join()
