"""The file of an HTML page that a command writes beside what it prints."""

from __future__ import annotations

import os
from pathlib import Path

from jobs import terminal
from spin.errors import UserError


def check_writable(path: Path | None) -> Path | None:
    """Return the path of a page. Raises UserError, before any work is done, where none could be written."""
    if path is None:
        return None
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it, such as {path / 'page.html'}")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written: permission denied; name another file")
    return path


def write_page(path: Path, page: str) -> None:
    """Write a page and print where it is. Raises UserError where the file cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    terminal.say(f"wrote {path}")
