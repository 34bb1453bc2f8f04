"""A manual page as plain text, without what gives its section away."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.tasks.apt import PrivateApt, unpack
from spin.errors import UserError

_GROFF = (
    "groff", "-Tutf8", "-Kutf8", "-mandoc", "-t",
    "-rLL=1000n", "-rHY=0", "-dAD=l",  # a line per paragraph, without hyphens and without spaces that fill it
    "-P-cbou",  # plain characters instead of bold and underlined ones
)  # fmt: skip
_FILE = re.compile(r".+\.(?P<section>\d)\w*(?:\.gz)?")
_REFERENCE = re.compile(r"(?<=[\w.+\]]) ?\(\d[A-Za-z]{0,8}\)")
"""the section after the name of another page: ` (1)` of `ls (1)`, `(3ssl)` of `SSL_new(3ssl)`"""


@dataclass(frozen=True)
class PageSource:
    """A page as its package holds it."""

    section: str
    """the digit: `3` also for `3perl`"""
    roff: bytes
    """in the language man or mdoc"""
    name: str = ""
    """that of its file, such as `ls.1`, which its translations have too"""


@dataclass(frozen=True)
class ManualPage:
    """A page that was rendered."""

    section: str
    text: str


def read_sources(folder: Path, language: str = "") -> list[PageSource]:
    """The pages of an unpacked package by the names of their files: English ones, or those of a language such as `de`.

    Names that lead to the page of another name are left out: links, and pages that consist of a request to read
    another one. Hard links and copies are the caller's to leave out.
    """
    sources = []
    for file in sorted((folder / "usr/share/man" / language).glob("man*/*")):
        match = _FILE.fullmatch(file.name)
        if match and file.is_file() and not file.is_symlink():
            roff = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            if not roff.lstrip().startswith(b".so "):
                sources.append(PageSource(match["section"], roff, file.name.removesuffix(".gz")))
    return sources


def download_sources(apt: PrivateApt, folder: Path, packages: Sequence[str], language: str = "") -> list[PageSource]:
    """The pages of packages in English or a language such as `de`, each once, downloaded into a folder.

    FreeBSD's manual has a copy of a page for each of its names.
    """
    distinct: dict[bytes, PageSource] = {}
    for name, package in zip(packages, apt.download(packages), strict=True):
        unpacked = folder / "apt/unpacked" / name
        unpack(package, unpacked)
        for source in read_sources(unpacked, language):
            distinct.setdefault(source.roff, source)
    return list(distinct.values())


def render_page(source: PageSource) -> ManualPage:
    """Render a page and clean its text. Raises UserError if groff is missing or fails."""
    return ManualPage(source.section, clean(render(source.roff)))


def render(roff: bytes) -> str:
    """The text of a page in the languages man or mdoc, with a line per paragraph and indented as on a terminal."""
    if shutil.which("groff") is None:
        raise UserError("found no groff, which renders the manual pages; install Debian's package groff-base")
    result = subprocess.run(_GROFF, input=roff, capture_output=True, check=False)
    if result.returncode:
        raise UserError(f"groff failed: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout.decode("utf-8", errors="replace")


def clean(rendered: str) -> str:
    """The text of a rendered page without what gives the section away: header, footer, and sections in references.

    The first and the last line name the page with its section. Elsewhere a section in brackets after a name is taken
    out, since pages refer to pages of their own section most. White space at the ends of lines and empty lines go too,
    and rules, which only the functions of Tcl have.
    """
    lines = [" ".join(line.split()) for line in rendered.splitlines()]
    lines = [line for line in lines if line.strip("_- ")][1:-1]
    return "\n".join(_REFERENCE.sub("", line) for line in lines)
