"""End a command with its exit status: every error is one line on standard error."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from jobs import terminal
from jobs.signals import StopOnSignals, Stopped
from spin.errors import SpinError, describe_error
from spin_neurons import PACKAGES, ROOT

_log = logging.getLogger(__name__)
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
"""the base of all errors of the command line; Typer exports only classes that are derived from it"""


class CommandGroup(TyperGroup):
    """The group of all commands, which ends at Ctrl-C as at the signal; Typer would make it a status without a line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT) from None


def run_command(app: typer.Typer) -> NoReturn:
    """Run the command of the command line and end the process with its exit status.

    An error is one line, also where the command line is wrong or the program has a defect; SPIN_LOG=debug adds the
    traceback. A command that raises `typer.Exit` with a status has printed its line.
    """
    try:
        # without standalone mode Typer raises its errors, and returns the status of `typer.Exit`
        with StopOnSignals():
            status = app(prog_name="spin", standalone_mode=False) or 0
    except (SpinError, Stopped) as error:
        _end(error, str(error), error.status)
    except _CommandLineError as error:
        _end(error, _describe_usage(error), 2)
    except typer.Abort as error:
        _end(error, "stopped at a question", 1)
    except SystemExit as error:
        # Typer's completion of command lines, and its end where the reader of a pipe, such as `head`, has left
        if not error.code or isinstance(error.__context__, BrokenPipeError):
            raise
        _end(error, *_describe_exit(error.code))
    except Exception as error:
        _end(error, _describe_defect(error), 1)
    sys.exit(status)


def _end(error: BaseException, line: str, status: int) -> NoReturn:
    _log.debug("%s ended the command", type(error).__name__, exc_info=error)
    terminal.failure(line)
    sys.exit(status)


def _describe_exit(code: object) -> tuple[str, int]:
    """The line and the status for the end of a process that a library asks for; no command of SPIN does."""
    if code == signal.SIGTERM:  # Ray's handler of the signal
        return "ended by SIGTERM; run it again to resume", 128 + signal.SIGTERM
    reason = f"with status {code}" if isinstance(code, int) else f"with: {code}"
    return f"a library ended the command {reason}; run it again to resume", 1


def _describe_usage(error: Any) -> str:
    """The mistake in the command line, and where to read more."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
        return "expected a command; `spin --help` lists them"
    context = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{hint}"


def _describe_defect(error: Exception) -> str:
    """An error that no user caused: its type and message, and the last line of this program that it went through."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES:
            place = f" in {file.relative_to(ROOT)}:{frame.lineno}"
    return f"{describe_error(error)}{place}; this is a defect, SPIN_LOG=debug shows more"
