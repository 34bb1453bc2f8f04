"""Log records and progress as JSON, one object per line, which name the runs and the span at work.

The command line and the workers write the same lines, so this module needs nothing but the standard library and `spin`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.telemetry.current_runs import CurrentRun, current_runs, current_span, working_on
from spin.control_characters import escape_controls
from spin.settings import mask_credentials

_PACKAGES = ("spin", "pipelines")
"""packages whose records workers write"""


def to_line(entries: Mapping[str, object]) -> str:
    """A JSON object in one line, with the names of the runs at work, joined by commas, and the ids of the span."""
    named, runs = dict(entries), current_runs()
    if runs:
        named["run"] = ",".join(run.name for run in runs)
    named |= current_span()
    return escape_controls(json.dumps(named, ensure_ascii=False))


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


def is_logging_json() -> bool:
    """Whether SPIN's records are written as JSON in this process: progress is then too, and workers do the same."""
    handlers = [*logging.getLogger().handlers, *logging.getLogger("pipelines").handlers]
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


@dataclass(frozen=True)
class WorkerLog:
    """The log of the workers of a stage, as their driver logs. It is pickled and sent to them with their work."""

    runs: tuple[CurrentRun, ...]
    """the runs that the driver works on"""
    level: int | None = None
    """least level of SPIN's records that the workers write as JSON lines; None where the driver logs no JSON"""

    @classmethod
    def of_driver(cls) -> WorkerLog:
        """The log as this process, the driver, would have it in its workers."""
        level = logging.getLogger("pipelines").getEffectiveLevel() if is_logging_json() else None
        return cls(current_runs(), level)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Name the runs in what this worker logs within the context, and write it as the driver does.

        Standard error of a worker is a file of Ray (`worker-*.err`). The driver itself, in which the shards of a small
        stage are computed, is configured already.
        """
        if self.level is not None and not is_logging_json():
            for logger in map(logging.getLogger, _PACKAGES):
                handler = logging.StreamHandler(sys.stderr)
                handler.setFormatter(JsonFormatter())
                logger.addHandler(handler)
                logger.setLevel(self.level)
                logger.propagate = False  # Ray's own handler would write each record again
        with working_on(self.runs):
            yield
