"""Logging: records go to standard error, one line each, or one JSON object each under `--log json`.

What may be a credential in a URI is masked, also in tracebacks, and control characters are visible characters.
"""

from __future__ import annotations

import logging
import os
import sys

from pipelines.telemetry.json_lines import JsonFormatter
from spin.control_characters import show_controls_within_lines
from spin.errors import UserError
from spin.settings import mask_credentials
from spin_neurons import PACKAGES

NOTICES = "spin.engine"
"""logger of what a command says at every level, of the engine that runs"""
LEVELS = ("warning", "info", "debug")
"""values of the environment variable SPIN_LOG; debug also shows tracebacks"""


def configure_logging(*, as_json: bool = False) -> None:
    """Send log records to stderr: of SPIN from the level in SPIN_LOG on, of all libraries from warnings on.

    With `as_json`, progress and the log of workers are JSON lines too.

    Call it once per process; a second call replaces the first. Raises UserError for an unknown level.
    """
    level = os.environ.get("SPIN_LOG", "warning").lower()
    if level not in LEVELS:
        raise UserError(f"SPIN_LOG is '{level}'; expected one of {', '.join(LEVELS)}")
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter(tracebacks=level == "debug"))
    root = logging.getLogger()
    for previous in [other for other in root.handlers if isinstance(other, _StderrHandler)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    for package in PACKAGES:  # each has a logger of its name, the parent of those of its modules
        logging.getLogger(package).setLevel(level.upper())
    logging.getLogger(NOTICES).setLevel(logging.INFO)
    # it warns of every request that it retries, while SPIN's error after the last one reports it in one line
    logging.getLogger("urllib3").setLevel(logging.ERROR)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, `warning: message`, a notice without the level.

    Its traceback follows only if `tracebacks` is set.
    """

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__()
        self.tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        lead = "" if record.name == NOTICES else f"{record.levelname.lower()}: "
        line = f"{lead}{' '.join(record.getMessage().split())}"
        if self.tracebacks and record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return show_controls_within_lines(mask_credentials(line))


class _StderrHandler(logging.Handler):
    """Writes to standard error as it is at that moment: a progress bar puts its own stream in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as every handler of the standard library: a failing log line never ends a program
            self.handleError(record)
