"""Numbers as text: signed contributions, percentages, counts and amounts of money."""

from __future__ import annotations

import math


def signed(value: float, digits: int = 2) -> str:
    """`+0.25`, or `−0.25` with a true minus sign, or `0.00` for a value that rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else text[1:]


def percent(share: float, digits: int = 1) -> str:
    """A share of one as a percentage, with a narrow no-break space before the sign."""
    return f"{100 * share:.{digits}f}\u202f%"


def grouped(value: float, digits: int = 0) -> str:
    """A number with commas between groups of three digits."""
    return f"{value:,.{digits}f}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, as `1 document` or `12,345 documents`; `plural` is by default the noun and s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def significant(value: float, digits: int = 3) -> str:
    """A number rounded to so many significant digits, with commas: `1,230,000`, `12.3`, `0.0432`."""
    if not value:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}"
