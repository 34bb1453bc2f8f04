"""The report on privacy as one self-contained HTML page."""

from __future__ import annotations

from spin.audit.privacy import PrivacyReport
from spin.audit.word_recovery import BANDS
from spin.pages.rendering import render_report


def privacy_page(report: PrivacyReport, title: str) -> str:
    """The HTML of a report: recovered words, attributes and membership."""
    return render_report(
        "spin.audit/privacy.html.j2",
        title,
        report=report,
        bands=list(BANDS),
        headings=["numbers per text", "all words", *(f"{n}, {_documents(*span)}" for n, span in BANDS.items())],
        frequency=report.figures[0],
        worst=max(report.figures[1:], key=lambda figure: figure.recovery.every),
    )


def _documents(low: int, high: int | None) -> str:
    """A range of numbers of documents."""
    return f"{low} or more" if high is None else f"{low} to {high}"
