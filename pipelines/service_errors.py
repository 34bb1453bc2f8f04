"""Errors that only the service can meet; each carries the exit status of the `spin` command."""

from __future__ import annotations

from spin.errors import SpinError, UserError


class StalledError(SpinError):
    """Nothing has happened for longer than the settings allow."""

    status = 6


class BadFileError(UserError):
    """A file that cannot be read as what its name says, or lacks a column; a night goes on without it."""


class HeldError(SpinError):
    """Another run holds the output."""

    status = 3


class BadRowsError(SpinError):
    """More rows or files could not be classified than the settings allow."""

    status = 4


class UnavailableError(SpinError):
    """The store or the registry does not answer, or is full; the same command may succeed later."""

    status = 5


class DriftError(SpinError):
    """A night is published whole, but its documents are not like those that the model was judged on."""

    status = 7
