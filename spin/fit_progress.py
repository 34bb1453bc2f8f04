"""Progress of a fit, step by step: bars on a terminal, or silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

StartStep = Callable[[str, int], Callable[[int], None]]
"""begins a step of at most so many units, and returns what is called with the number of further ones that are done"""


def start_silently(step: str, total: int) -> Callable[[int], None]:
    """Begin a step that nobody watches."""
    return lambda done: None


@contextmanager
def show_steps() -> Iterator[StartStep]:
    """Show a bar for each step on standard error. A step has ended when the next one begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def complete_last() -> None:
            for task in bars.tasks[-1:]:
                bars.update(task.id, completed=task.total)
                bars.stop_task(task.id)

        def start(step: str, total: int) -> Callable[[int], None]:
            complete_last()
            task = bars.add_task(step, total=total)
            return lambda done: bars.advance(task, done)

        yield start
        complete_last()
