"""Manual pages: what of a page becomes its text, and which pages count."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from benchmarks.method.tasks import manual_page
from benchmarks.method.tasks.manual_page import ManualPage, PageSource, clean, read_sources, render, render_page
from benchmarks.method.tasks.manuals import documents_by_section
from spin.errors import UserError

RENDERED = """\

paste(1)                     User Commands                     paste(1)

NAME
       paste - merge lines of files

SYNOPSIS
       paste [OPTION]... [FILE]...

       Calls  read(2), EVP_Digest(3SSL) and fold (1p); main(void) and f(x) stay,
       (3) as well.

__________________________________________________
       ----------
SEE ALSO
       std::vector(3cxx), systemd.unit(5), operator[](3)


coreutils 9.7                  2025-06-04                      paste(1)
"""

PAGE = r"""
.TH PASTE 1 2025-06-04 "coreutils 9.7" "User Commands"
.SH NAME
paste \- merge lines of files
.SH DESCRIPTION
Write lines of \fBeach\fR file, "separated" by
.BR tabs ,
as
.BR cut (1)
does. Ümlaute remain.
.TS
l l.
\-d	delimiters
.TE
"""

MDOC = r"""
.Dd June 4, 2025
.Dt UART 4
.Os
.Sh NAME
.Nm uart
.Nd driver of serial devices
.Sh SEE ALSO
.Xr tty 4
"""


def test_a_text_has_neither_header_nor_footer_nor_sections_of_other_pages() -> None:
    assert clean(RENDERED).splitlines() == [
        "NAME",
        "paste - merge lines of files",
        "SYNOPSIS",
        "paste [OPTION]... [FILE]...",
        "Calls read, EVP_Digest and fold; main(void) and f(x) stay,",
        "(3) as well.",
        "SEE ALSO",
        "std::vector, systemd.unit, operator[]",
    ]
    assert clean("") == clean("header(1)\n\nfooter(1)\n") == ""


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_pages_of_both_languages_are_rendered_as_plain_text() -> None:
    text = render_page(PageSource("1", PAGE.encode())).text
    assert "\x08" not in text
    assert "\x1b" not in text
    assert text.splitlines() == [
        "NAME",
        "paste - merge lines of files",
        "DESCRIPTION",
        'Write lines of each file, "separated" by tabs, as cut does. Ümlaute remain.',
        "-d delimiters",
    ]
    driver = render_page(PageSource("4", MDOC.encode()))
    assert driver.section == "4"
    assert driver.text.splitlines() == ["NAME", "uart — driver of serial devices", "SEE ALSO", "tty"]


def test_without_groff_the_error_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual_page.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="groff-base"):
        render(b"")


def test_links_and_translations_are_no_pages(tmp_path: Path) -> None:
    """Neither is a page that only requests another, nor a file whose name has no section."""
    manual = tmp_path / "usr/share/man"
    for folder in ("man1", "man3", "de/man1"):
        (manual / folder).mkdir(parents=True)
    (manual / "man1/paste.1.gz").write_bytes(gzip.compress(b".TH PASTE 1"))
    (manual / "man1/join.1.gz").symlink_to("paste.1.gz")
    (manual / "man3/POSIX.3perl").write_bytes(b".TH POSIX 3perl")
    (manual / "man3/fputs.3.gz").write_bytes(gzip.compress(b".so man3/puts.3\n"))
    (manual / "man3/README").write_bytes(b"no page")
    (manual / "de/man1/paste.1.gz").write_bytes(gzip.compress(b".TH PASTE 1"))
    expected = [PageSource("1", b".TH PASTE 1", "paste.1"), PageSource("3", b".TH POSIX 3perl", "POSIX.3perl")]
    assert read_sources(tmp_path) == expected
    assert read_sources(tmp_path, "de") == expected[:1]
    assert read_sources(tmp_path / "nothing") == []


def test_small_sections_and_empty_pages_are_left_out() -> None:
    pages = [ManualPage("1", "a"), ManualPage("6", "game"), ManualPage("1", "b"), ManualPage("6", "")]
    documents = documents_by_section(pages, "Debian 1", least=2)
    assert (documents.texts, documents.labels, documents.origin) == (["a", "b"], ["1", "1"], "Debian 1")
