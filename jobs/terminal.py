"""Print lines, tables and JSON on standard output, and errors on standard error.

Whatever is printed passes one filter: names and ids come from outside, and may hold escape sequences or newlines.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from spin.control_characters import escape_controls, show_controls, show_controls_within_lines
from spin.settings import mask_credentials

_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""texts are printed as they are, also where they look like markup or the code of an emoji"""
_ANY_WIDTH = 1_000_000


class _FilteredConsole(Console):
    """A console on which control characters in texts, also those of cells, are visible characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        # guarded by test_names_cannot_act_on_a_terminal; broken by:
        #   return super().render_str(text, **options)
        return super().render_str(show_controls(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_without_controls, objects), **options)


def _without_controls(value: Any) -> Any:
    """A styled text with its control characters as visible ones, of which each is as long; else the value."""
    if isinstance(value, Text):
        value = value.copy()
        value.plain = show_controls(value.plain)
    return value


out = _FilteredConsole(**_PLAIN)
_err = _FilteredConsole(stderr=True, **_PLAIN)


def say(text: str) -> None:
    """Print a line unwrapped, so that it can be copied from a terminal as one line."""
    out.print(mask_credentials(text), soft_wrap=True)


def say_about(name: str, lines: Iterable[str]) -> None:
    """Print lines, the first one after a name and the others below it."""
    for number, line in enumerate(lines):
        say(f"{'' if number else name:<9} {line}")


def next_command(*words: str) -> None:
    """Print the command to go on with, as it can be typed here."""
    say(f"next: {program()} {shlex.join(words)}")


def program() -> str:
    """Return the name or path under which this command can be started again."""
    started, found = Path(sys.argv[0]), shutil.which("spin")
    if started.name != "spin" or not started.exists() or (found is not None and started.samefile(found)):
        return "spin"
    return str(started)


def new_table(names: Sequence[str], figures: Sequence[str], *, title: str | None = None) -> Table:
    """Return an empty table with columns of names and of figures, in which no cell is wrapped."""
    left = (Column(name, no_wrap=True) for name in names)
    right = (Column(name, no_wrap=True, justify="right") for name in figures)
    return Table(*left, *right, title=title)


def show(table: Table) -> None:
    """Print a table: on a terminal with lines, elsewhere as columns that spaces align, of any width.

    In a terminal that is too narrow, the first cell of each row is a line of its own and the others follow below it. So
    the name in it is whole, and can be copied to the next command.
    """
    if not out.is_terminal:
        _show_plain(table)
    elif _least_width(table) <= out.width:
        out.print(table)
    else:
        _show_rows(table)


def _least_width(table: Table) -> int:
    """The width in which no cell is cut, and none is wrapped that must not be; the rest of a text may be left out."""

    def width(column: Column) -> int:
        if column.ratio:
            return cell_len(str(column.header))
        sizes = [Measurement.get(out, out.options, cell) for cell in (column.header, *column.cells)]
        return max(size.maximum if column.no_wrap else size.minimum for size in sizes)

    return sum(width(column) + 3 for column in table.columns) + 1


def _show_plain(table: Table) -> None:
    """Print a table without lines, for a pipe or a file."""
    if table.title is not None:  # of any length: rich would wrap it to the width of the table
        raw(f"{show_controls(str(table.title))}\n")
    table.title, table.box, table.padding, table.pad_edge, table.expand = None, None, (0, 2, 0, 0), False, False
    for column in table.columns:
        column.max_width = None
    wide = _FilteredConsole(file=io.StringIO(), width=_ANY_WIDTH, color_system=None, **_PLAIN)
    wide.print(table)
    raw("".join(f"{line.rstrip()}\n" for line in wide.file.getvalue().splitlines()))  # type: ignore[attr-defined]


def _show_rows(table: Table) -> None:
    """Print each row of a table as its first cell, whole, and the others with their names below it."""
    if table.title is not None:
        out.print(table.title)
    headers = [column.header for column in table.columns]
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        out.print(first, soft_wrap=True)
        named = (f"{header} {cell}".strip() for header, cell in zip(headers[1:], others, strict=True) if cell)
        out.print(Padding(", ".join(named), (0, 0, 0, 2), expand=False))


def failure(text: str) -> None:
    """Print an error in one line on standard error, without what may be a credential in a URI."""
    line = mask_credentials(" ".join(text.split()))
    _err.print(Text.assemble(("error:", "red"), f" {line}"), soft_wrap=True)


def raw(text: str) -> None:
    """Print text with its lines as they are, such as the output of another process."""
    _write(show_controls_within_lines(text))


def show_result(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a record, or a list of records, as JSON for a program, or else as a function prints it."""
    if as_json:
        plain([asdict(each) for each in result] if isinstance(result, list) else asdict(result))
    else:
        show(result)


def plain(value: Any) -> None:
    """Print JSON for a program."""
    _write(f"{escape_controls(json.dumps(value, indent=2, ensure_ascii=False))}\n")


def _write(text: str) -> None:
    out.file.write(text)
    out.file.flush()
