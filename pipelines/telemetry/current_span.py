"""The span of a trace that is open in this context, by which log lines name it; none where no trace is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class CurrentSpan:
    """The ids of a span, as in W3C Trace Context."""

    trace_id: str
    """32 hexadecimal digits"""
    span_id: str
    """16 hexadecimal digits"""


_current: ContextVar[CurrentSpan | None] = ContextVar("current_span", default=None)


def current_span() -> CurrentSpan | None:
    """The span of the innermost `within_span`, None outside of one."""
    return _current.get()


@contextmanager
def within_span(span: CurrentSpan) -> Iterator[None]:
    """Name a span in all log lines that are written within the context."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)
