"""What can go wrong in words a person can act on; each error carries the exit status of the `spin` command."""


class SpinError(Exception):
    """Says what was found, what was expected and what to do. Never shown with a traceback."""

    status = 1


class StalledError(SpinError):
    """Nothing has happened for longer than the settings allow."""

    status = 6


class UserError(SpinError):
    """A mistake in the settings, the data or the command line."""

    status = 2


class BadFileError(UserError):
    """A file that cannot be read as what its name says, or lacks a column; a night goes on without it."""


class NotFiniteError(UserError):
    """Activations that are not finite numbers."""


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


def error_types() -> dict[str, type[SpinError]]:
    """All error classes that are loaded, by name: what a worker reports by name can be raised again in the driver."""
    found: dict[str, type[SpinError]] = {}
    waiting = [SpinError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found
