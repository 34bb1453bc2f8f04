"""Errors of libraries in one short line."""

from __future__ import annotations

import pytest

from spin.errors import describe_error, shorten_message


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (ValueError("no\n  such\tvalue "), "ValueError: no such value"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("x" * 999), "RuntimeError: " + "x" * 300),
    ],
)
def test_an_error_is_described_in_one_short_line(error: Exception, described: str) -> None:
    assert describe_error(error) == described


def test_the_end_of_a_message_can_be_kept() -> None:
    message = "Traceback:\n" + "at\n" * 200 + "no such value\n"
    assert shorten_message(message).startswith("Traceback: at at")
    shortened = shorten_message(message, keep_end=True)
    assert (len(shortened), shortened.endswith("at at no such value")) == (300, True)
