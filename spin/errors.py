"""Errors that a user can act on. Each class carries the exit status of the `spin` command."""

from __future__ import annotations

INTERRUPTED = 130
"""exit status after Ctrl-C: 128 and the number of the signal"""
_LONGEST = 300
"""most characters of a message of a library in a message of ours"""


class SpinError(Exception):
    """An error whose message says what was found, what was expected and what to do; shown without a traceback."""

    status = 1


class UserError(SpinError):
    """A mistake in the settings, the data or the command line."""

    status = 2


class NotFiniteError(UserError):
    """Activations that are not finite numbers."""


def exit_status(error: BaseException) -> int:
    """The exit status of a command that an error ends: its own, 130 after Ctrl-C, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return int(getattr(error, "status", SpinError.status))


def describe_error(error: BaseException) -> str:
    """The type of an error and its shortened message in one line; only the type where it has no message."""
    message = shorten_message(str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def shorten_message(message: str, *, keep_end: bool = False) -> str:
    """A message of a library in one line of at most 300 characters: its beginning, or its end.

    Mask credentials before: the cut may leave a part of one that is not recognized any more.
    """
    line = " ".join(message.split())
    return line[-_LONGEST:] if keep_end else line[:_LONGEST]
