"""The root spans of the processes that have worked on a run, by which a later process links its trace to theirs.

Each process creates an object `traceparent-NUMBER` beside the other records of the run, in the form of W3C Trace
Context. None is ever replaced, and the largest number is the latest process: one that was suspended and overtaken can
create its own object late, but never hide that of its successor.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from pipelines.telemetry.run_events import RecordStore
from spin.errors import SpinError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"traceparent-(\d{6,})")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True)
class RootSpan:
    """The root span of a process for a run."""

    trace_id: str
    """32 hexadecimal digits"""
    span_id: str
    """16 hexadecimal digits"""
    sampled: bool
    """whether it was sent to a collector"""

    def to_text(self) -> str:
        """The `traceparent` of the span."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @classmethod
    def parse(cls, text: str) -> RootSpan | None:
        """The span of a `traceparent`, None for another text."""
        match = _TRACEPARENT.fullmatch(text.strip())
        return None if match is None else cls(match[1], match[2], bool(int(match[3], 16) & 1))


def find_earlier(records: RecordStore, number: int) -> RootSpan | None:
    """The span of the latest process with a smaller number; None if there is none or it cannot be read."""
    try:
        numbers = [int(match[1]) for name in records.list_names() if (match := _NAME.fullmatch(name))]
        earlier = [each for each in numbers if each < number]
        data = records.read(_key(max(earlier))) if earlier else None
    except SpinError as error:
        _log.warning("traces: the earlier traces of %s cannot be read, so none is linked: %s", records.uri, error)
        return None
    return None if data is None else RootSpan.parse(data.decode("ascii", "replace"))


def store_span(records: RecordStore, number: int, span: RootSpan) -> None:
    """Store the span of this process for the next one; nothing else depends on it."""
    try:
        records.create(_key(number), f"{span.to_text()}\n".encode())
    except SpinError as error:
        _log.warning("traces: %s/%s cannot be written, so no trace will link it: %s", records.uri, _key(number), error)


def _key(number: int) -> str:
    return f"traceparent-{number:06d}"
