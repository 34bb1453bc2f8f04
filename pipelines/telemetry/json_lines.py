"""Log records and progress as JSON, one object per line, which name the runs and the span at work.

The command line and the workers write the same lines, so this module needs nothing but the standard library and `spin`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from pipelines.telemetry.current_runs import current_runs
from pipelines.telemetry.current_span import current_span
from spin.settings import mask_credentials

_mode = {"json": False}


def log_as_json(on: bool = True) -> None:
    """Let progress be written as JSON lines even on a terminal, and workers log as JSON."""
    _mode["json"] = on


def is_logging_json() -> bool:
    """Whether `log_as_json` was called in this process."""
    return _mode["json"]


def name_work() -> dict[str, str]:
    """The entries of a line that name the runs at work, joined by commas, and the span; none outside of a run."""
    runs, span = current_runs(), current_span()
    entries = {"run": ",".join(run.name for run in runs)} if runs else {}
    return entries if span is None else {**entries, "trace_id": span.trace_id, "span_id": span.span_id}


def to_line(entries: Mapping[str, object]) -> str:
    """A JSON object in one line, with the names of the runs and the span at work."""
    return json.dumps({**entries, **name_work()}, ensure_ascii=False)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time in UTC, level, logger, message, and a traceback if it has one.

    Its attribute `fields`, a mapping, adds entries. `run` names the runs at work, `trace_id` and `span_id` the span.
    What may be a credential in a URI is masked.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask_credentials(record.getMessage()),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = mask_credentials(self.formatException(record.exc_info))
        return to_line(entry)
