"""The runs that this process works on, and the open span of a trace: log lines and metrics name them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


_runs: ContextVar[tuple[CurrentRun, ...]] = ContextVar("current_runs", default=())
_span: ContextVar[Mapping[str, str] | None] = ContextVar("current_span", default=None)


def current_runs() -> tuple[CurrentRun, ...]:
    """The runs of the innermost `working_on`: several where models share a pass, none outside of one."""
    return _runs.get()


def current_span() -> Mapping[str, str]:
    """The ids of the span of the innermost `within_span`, nothing outside of one."""
    return _span.get() or {}


@contextmanager
def working_on(runs: Sequence[CurrentRun]) -> Iterator[None]:
    """Name the runs that all work within the context is for."""
    token = _runs.set(tuple(runs))
    try:
        yield
    finally:
        _runs.reset(token)


@contextmanager
def within_span(span: Mapping[str, str]) -> Iterator[None]:
    """Add the ids of a span to all log lines that are written within the context."""
    token = _span.set(span)
    try:
        yield
    finally:
        _span.reset(token)
