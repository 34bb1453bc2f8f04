"""The libraries that the peers need, which are the extra `peers`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec

from spin.errors import UserError

MODULES = ("fasttext", "model2vec", "skeletoken", "setfit")


def require_peers(modules: Sequence[str] = MODULES) -> None:
    """Raise UserError if a library is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(
            f"the benchmark of the method compares SPIN with other libraries, of which {', '.join(missing)} cannot be "
            "imported; make setup installs them, and so does pip install -e '.[peers]'"
        )


@contextmanager
def silence() -> Iterator[None]:
    """Drop what a library prints; most draw bars of progress."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
