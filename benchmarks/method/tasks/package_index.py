"""The packages in Debian's indices: their sections, tags and English descriptions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.method.tasks.apt import PrivateApt


@dataclass(frozen=True)
class Package:
    """A package of the archive."""

    name: str
    source: str
    """the source package that it is built from"""
    section: str
    """without the area of the archive: `games` also for `contrib/games`"""
    tags: tuple[str, ...]
    """of debtags, such as `role::program`, sorted; empty for a package that nobody tagged"""
    description: str
    """the short description in the first line, then one paragraph per line"""


def read_packages(folder: Path) -> tuple[list[Package], str]:
    """All packages in the indices, which are downloaded into a folder once, and the version of the archive."""
    apt = PrivateApt(folder / "apt")
    apt.update()
    translations = [stanza for file in apt.indices("Translations") for stanza in _stanzas_of(file)]
    return parse_packages(
        (s for file in apt.indices("Packages") for s in _stanzas_of(file)), translations
    ), apt.release()


def parse_packages(stanzas: Iterable[Mapping[str, str]], translations: Iterable[Mapping[str, str]]) -> list[Package]:
    """The packages of the stanzas of `Packages`, with the descriptions in those of `Translation-en`.

    A stanza finds its translation by `Description-md5`; without one, its own description counts. Of several versions
    of a package the first counts. Packages without a section or a description are left out.
    """
    english = {stanza["Description-md5"]: stanza["Description-en"] for stanza in translations}
    packages: dict[str, Package] = {}
    for stanza in stanzas:
        text = english.get(stanza.get("Description-md5", "")) or stanza.get("Description", "")
        section = stanza.get("Section", "").rpartition("/")[2]
        if text and section and stanza["Package"] not in packages:
            tags = sorted(tag.strip() for tag in stanza.get("Tag", "").split(",") if tag.strip())
            name = stanza["Package"]
            source = stanza.get("Source", name).split()[0]  # a version in brackets may follow
            packages[name] = Package(name, source, section, tuple(tags), join_paragraphs(text))
    return list(packages.values())


def parse_stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The fields of each stanza of a control file, whose stanzas have empty lines between them.

    A line that begins with a space continues the field before it. It stays a line of its own in the field's value,
    without that space.
    """
    stanza: dict[str, str] = {}
    field = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if stanza:
                yield stanza
            stanza = {}
        elif line[0] in " \t":
            stanza[field] += f"\n{line[1:]}"
        else:
            field, _, value = line.partition(":")
            stanza[field] = value.strip()
    if stanza:
        yield stanza


def join_paragraphs(description: str) -> str:
    """A description with one paragraph per line.

    Its first line is the short description. In the long one, a line with a full stop alone ends a paragraph, and lines
    that begin with another space are not to be joined: lists and examples.
    """
    short, *rest = description.splitlines()
    paragraphs = [short]
    joined = False
    for line in rest:
        text = " ".join(line.split())
        if text == ".":
            joined = False
        elif joined and not line.startswith(" "):
            paragraphs[-1] += f" {text}"
        else:
            paragraphs.append(text)
            joined = not line.startswith(" ")
    return "\n".join(paragraphs)


def _stanzas_of(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        yield from parse_stanzas(lines)
