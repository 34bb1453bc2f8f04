"""Figures in the lines and tables of several commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spin.pages.number_format import counted

if TYPE_CHECKING:
    from spin.monitor.quality import Estimate


def format_estimate(estimate: Estimate | None) -> str:
    """Return a share and its interval in per cent; a dash where there is none."""
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}–{100 * estimate.high:.1f}]"


def format_minute(time: str | None) -> str:
    """Return an ISO time to the minute, and nothing for none."""
    return (time or "")[:16].replace("T", " ")


def format_rows(rows: Mapping[str, int]) -> str:
    """Return numbers of rows by table, each named by what a row of the table is."""
    return ", ".join(counted(count, table.replace("_", " ").removesuffix("s")) for table, count in rows.items())
