"""Numbers for reading."""

from __future__ import annotations

import pytest

from spin.pages.number_format import significant


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1_234_567, "1,230,000"), (99.96, "100"), (12.345, "12.3"), (0.00432109, "0.00432"), (-2, "-2.00")],
)
def test_amounts_have_three_significant_digits(value: float, shown: str) -> None:
    assert significant(value) == shown
