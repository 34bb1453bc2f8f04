"""Logging is restored after every test of this folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from jobs.log_setup import PACKAGES


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Restore the handlers and levels that a test changes."""
    handlers, levels = logging.getLogger().handlers[:], [logging.getLogger(name).level for name in PACKAGES]
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in zip(PACKAGES, levels, strict=True):
        logging.getLogger(name).setLevel(level)
