"""What the log of a worker takes over from its driver: the runs at work, the format of lines and the level."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.telemetry.current_runs import CurrentRun, current_runs, working_on
from pipelines.telemetry.json_lines import JsonFormatter, is_logging_json

_PACKAGES = ("spin", "pipelines")


@dataclass(frozen=True)
class WorkerLog:
    """The log of the workers of a stage. It is pickled and sent to them with their work."""

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
            _write_json_lines(self.level)
        with working_on(self.runs):
            yield


class _WorkerHandler(logging.StreamHandler):
    """Distinguishes the handler of workers from those of other libraries."""


def _write_json_lines(level: int) -> None:
    """Write the records of SPIN's loggers to standard error as JSON; a second call changes only the level."""
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        if not any(isinstance(handler, _WorkerHandler) for handler in logger.handlers):
            handler = _WorkerHandler(sys.stderr)
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)
            logger.propagate = False  # Ray's own handler would write each record again
