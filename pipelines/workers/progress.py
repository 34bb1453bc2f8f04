"""How far a stage is: a bar on a terminal, a JSON line now and then elsewhere."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)
EVERY = 30.0
"""seconds from a line to the next"""
Advance = Callable[..., None]
"""told of further units, and by name of what happened besides: `advance(40, dead=2)`"""
_log = {"json": False}


def log_as_json() -> None:
    """Lines also where standard error is a terminal."""
    _log["json"] = True


@contextmanager
def progress(stage: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """How far `total` units are of which `done` are done already; the yielded function is told of further ones."""
    shown = _bar if console.is_terminal and not _log["json"] else _lines
    with shown(stage, total, unit, done) as advance:
        yield advance


class _Rate(ProgressColumn):
    """Units a second, and what happened besides."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = "" if speed is None else f"{speed:,.{0 if speed >= 10 else 1}f} {task.fields['unit']}/s"
        return Text(" · ".join([shown, *(f"{name} {count:,}" for name, count in task.fields["besides"].items())]))


@contextmanager
def _bar(stage: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    besides: Counter[str] = Counter()
    with Progress(*columns, console=console, transient=True, speed_estimate_period=10) as bar:
        task = bar.add_task(stage, total=total, completed=done, unit=unit, besides=besides)

        def advance(units: int, **counts: int) -> None:
            besides.update({name: count for name, count in counts.items() if count})
            bar.advance(task, units)

        yield advance


@contextmanager
def _lines(stage: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    """One line every `EVERY` seconds that the stage lasts."""
    ended, start, now = threading.Event(), time.monotonic(), done
    besides: Counter[str] = Counter()

    def advance(units: int, **counts: int) -> None:
        nonlocal now
        now += units
        besides.update(counts)

    def tell() -> None:
        while not ended.wait(EVERY):
            speed = (now - done) / (time.monotonic() - start)
            line = {"stage": stage, "done": now, "total": total, "unit": unit, "per_s": round(speed, 1)}
            remaining = round((total - now) / speed) if speed else None
            console.print(json.dumps({**line, "remaining_s": remaining, **besides}), soft_wrap=True, markup=False)

    teller = threading.Thread(target=tell, daemon=True, name="progress")
    teller.start()
    try:
        yield advance
    finally:
        ended.set()
        teller.join()
