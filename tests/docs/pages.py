"""The Markdown pages of the documentation and the code blocks in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support.repository import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_code_blocks(page: Path, language: str) -> list[str]:
    """Return the code of a page in one language, top to bottom."""
    return [code for kind, code in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def read_spin_commands(page: Path) -> list[str]:
    """Return the command lines of a page that run `spin`, in fenced and in indented code blocks."""
    lines = [line for code in read_code_blocks(page, "sh") for line in code.splitlines()]
    lines += [line.strip() for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("    spin ")]
    return [line for line in lines if re.match(r"spin [a-z]+ ", line) or line == "spin jobs"]


def split_command(line: str) -> list[str]:
    """Return the words of a command line, without a comment."""
    return shlex.split(line, comments=True)


def page_name(page: Path) -> str:
    """Return the path of a page relative to the repository."""
    return str(page.relative_to(ROOT))
