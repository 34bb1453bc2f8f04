"""How far a stage is: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        shown = "" if speed is None else f"{speed:,.{0 if speed >= 10 else 1}f} {task.fields['unit']}/s"
        return Text(shown)


@contextmanager
def progress(stage: str, total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar for `total` units of which `done` are done already; the yielded function is told of further ones."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet, speed_estimate_period=10) as bar:
        task = bar.add_task(stage, total=total, completed=done, unit=unit)
        yield lambda units: bar.advance(task, units)
