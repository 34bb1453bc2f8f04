"""The runs that this process works on, and the open span of a trace: log lines and metrics name them."""

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


@dataclass(frozen=True)
class CurrentSpan:
    """The ids of a span, as in W3C Trace Context."""

    trace_id: str
    """32 hexadecimal digits"""
    span_id: str
    """16 hexadecimal digits"""


_runs: ContextVar[tuple[CurrentRun, ...]] = ContextVar("current_runs", default=())
_span: ContextVar[CurrentSpan | None] = ContextVar("current_span", default=None)


def current_runs() -> tuple[CurrentRun, ...]:
    """The runs of the innermost `working_on`: several where models share a pass, none outside of one."""
    return _runs.get()


def current_span() -> CurrentSpan | None:
    """The span of the innermost `within_span`, None outside of one."""
    return _span.get()


@contextmanager
def working_on(runs: Sequence[CurrentRun]) -> Iterator[None]:
    """Name the runs that all work within the context is for."""
    token = _runs.set(tuple(runs))
    try:
        yield
    finally:
        _runs.reset(token)


@contextmanager
def within_span(span: CurrentSpan) -> Iterator[None]:
    """Name a span in all log lines that are written within the context."""
    token = _span.set(span)
    try:
        yield
    finally:
        _span.reset(token)
