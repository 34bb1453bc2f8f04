"""Pages of measurements: a section per part that is measured, each with the machine and the date of its measurement."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.machine import flags, processor

_LIBRARIES = ("numpy", "scikit-learn", "skglm", "torch", "ray", "pyarrow", "deltalake")
_RULE = "## "
"""what a section begins with"""
Verdict = tuple[bool, str]
"""whether a promise holds, and the promise with its figures"""
Part = tuple[str, list[Verdict]]
"""a section of the page as Markdown, and its verdicts"""


def write_page(path: Path, title: str, command: str, parts: Mapping[str, Part]) -> None:
    """Write the sections of some parts by title; other sections that the page has stay as they are, in their order.

    `command` is the command line that writes the page.
    """
    head = f"# {title}\n\nWritten by `{command}`; a part that is measured alone replaces its section.\n"
    _, sections = split_sections(path.read_text(encoding="utf-8") if path.exists() else "")
    sections |= {title: _section(title, part) for title, part in parts.items()}
    path.write_text("\n".join([head, *sections.values()]), encoding="utf-8")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are numbers."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows)) + "\n"


def word_of(holds: bool) -> str:
    """Whether a promise or claim holds, as the pages say it."""
    return "holds" if holds else "**does not hold**"


def split_sections(page: str) -> tuple[str, dict[str, str]]:
    """What stands before the sections of a page, and these by title."""
    first, *sections = page.split(f"\n{_RULE}")
    by_title = {text.partition("\n")[0]: f"{_RULE}{text.rstrip()}\n" for text in sections}
    return f"{first.rstrip()}\n", by_title


def _section(title: str, part: Part) -> str:
    text, verdicts = part
    lines = [f"- {word_of(holds)}: {promise}." for holds, promise in verdicts]
    return "\n".join([f"{_RULE}{title}\n", f"{_machine()}\n", text, *lines]).rstrip() + "\n"


def _machine() -> str:
    versions = [version for name in _LIBRARIES if (version := _version(name))]
    sets, python = ", ".join(flags()), platform.python_version()
    return (
        f"{datetime.date.today()}; {processor()} ({sets}), {os.cpu_count()} cores; Python {python}, "
        f"{', '.join(versions)}."
    )


def _version(name: str) -> str | None:
    """Name and version of a library, None if it is not installed: one part alone needs skglm."""
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return None
