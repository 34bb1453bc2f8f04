"""What can go wrong in words a person can act on; each error carries the exit status of the `spin` command."""


class SpinError(Exception):
    """Says what was found, what was expected and what to do. Never shown with a traceback."""

    status = 1


class UserError(SpinError):
    """A mistake in the settings, the data or the command line."""

    status = 2


class HeldError(SpinError):
    """Another run holds the output."""

    status = 3


class BadRowsError(SpinError):
    """More rows could not be classified than the settings allow."""

    status = 4


class UnavailableError(SpinError):
    """The store or the registry does not answer; the same command may succeed later."""

    status = 5
