"""Errors that only the pipelines raise. Each class carries the exit status of the `spin` command."""

from __future__ import annotations

from spin.errors import SpinError, UserError

_REASON = 500
"""most characters of the reason why a file is not classified"""


class StalledError(SpinError):
    """No progress for longer than the settings allow."""

    status = 6


class WorkerFaultError(SpinError):
    """A worker is at fault, not a document: its memory, its GPU, or the engine of its backbone."""


class BadFileError(UserError):
    """A file that cannot be read as its name promises, or that lacks a column; a night continues without it."""

    @property
    def reason(self) -> str:
        """The message in one line and in the length that tables and reports hold."""
        text = " ".join(str(self).split())
        return text if len(text) <= _REASON else f"{text[:_REASON]} …"


class KeptTypeError(UserError):
    """A kept column has different types in the input files; a model that takes these files has no night."""


class HeldError(SpinError):
    """Another run holds the output."""

    status = 3


class BadRowsError(SpinError):
    """More documents or files could not be classified than the settings allow."""

    status = 4


class UnavailableError(SpinError):
    """An object store or the registry does not answer, or is full; the same command may succeed later."""

    status = 5


class DriftError(SpinError):
    """The documents of a night differ from those of the training; the night is published all the same."""

    status = 7
