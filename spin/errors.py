"""Errors that a user can act on; each carries the exit status of the `spin` command."""

from __future__ import annotations


class SpinError(Exception):
    """Says what was found, what was expected and what to do. Never shown with a traceback."""

    status = 1


class UserError(SpinError):
    """A mistake in the settings, the data or the command line."""

    status = 2


class NotFiniteError(UserError):
    """Activations that are not finite numbers."""


def error_types() -> dict[str, type[SpinError]]:
    """All error classes that are loaded, by name: what a worker reports by name can be raised again in the driver."""
    found: dict[str, type[SpinError]] = {}
    waiting = [SpinError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
