"""The runs that this process works on, by which log lines, metrics and traces name their work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class CurrentRun:
    """A night or a training that is at work."""

    name: str
    """of the run, such as `2026-11-24-tweets-000001`"""
    model: str
    """name of the registered model"""


_current: ContextVar[tuple[CurrentRun, ...]] = ContextVar("current_runs", default=())


def current_runs() -> tuple[CurrentRun, ...]:
    """The runs of the innermost `working_on`: several where models share a pass, none outside of one."""
    return _current.get()


@contextmanager
def working_on(runs: Sequence[CurrentRun]) -> Iterator[None]:
    """Name the runs that all work within the context is for."""
    token = _current.set(tuple(runs))
    try:
        yield
    finally:
        _current.reset(token)
