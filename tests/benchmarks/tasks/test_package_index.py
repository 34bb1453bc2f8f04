"""Debian's indices: stanzas, descriptions, and the labels of the tasks that are made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from benchmarks.method.tasks.debian import documents_by_section
from benchmarks.method.tasks.debtags import documents_by_tag
from benchmarks.method.tasks.package_index import Package, join_paragraphs, parse_packages, parse_stanzas

PACKAGES = """\
Package: atlas
Version: 2.0
Section: games
Tag: role::program, use::gameplaying,
 interface::x11
Description: map of the world
Description-md5: 11

Package: atlas
Version: 1.0
Section: misc
Description: an older map
Description-md5: 12


Package: atlas-data
Source: atlas (2.0)
Section: contrib/games
Description: maps: the data
Homepage: https://example.org/maps: all

Package: nowhere
Description: a package without a section
"""

TRANSLATIONS = """\
Package: atlas
Description-md5: 11
Description-en: map of the world
 Shows the whole world
 on one screen.
 .
 It has:
  * rivers, and
  * borders.
 And more.
"""


def packages() -> list[Package]:
    """The packages of the fixtures."""
    return parse_packages(parse_stanzas(PACKAGES.splitlines(True)), parse_stanzas(TRANSLATIONS.splitlines(True)))


def test_stanzas_end_at_empty_lines_and_continue_after_a_space() -> None:
    stanzas = list(parse_stanzas(PACKAGES.splitlines()))
    assert [stanza["Package"] for stanza in stanzas] == ["atlas", "atlas", "atlas-data", "nowhere"]
    assert stanzas[0]["Tag"] == "role::program, use::gameplaying,\ninterface::x11"
    assert stanzas[2]["Homepage"] == "https://example.org/maps: all"
    assert list(parse_stanzas([])) == []


def test_a_package_has_its_english_description_its_section_without_the_area_and_its_tags() -> None:
    """Of two versions the first counts; a package without a translation keeps its own description."""
    atlas, data = packages()
    assert atlas.description.splitlines() == [
        "map of the world",
        "Shows the whole world on one screen.",
        "It has:",
        "* rivers, and",
        "* borders.",
        "And more.",
    ]
    assert (atlas.source, data.source) == ("atlas", "atlas")
    assert (atlas.section, atlas.tags) == ("games", ("interface::x11", "role::program", "use::gameplaying"))
    assert data == Package("atlas-data", "atlas", "games", (), "maps: the data")


def test_paragraphs_are_joined_and_lists_are_not() -> None:
    assert join_paragraphs("short") == "short"
    assert join_paragraphs("short\none\ntwo\n.\n.\nthree") == "short\none two\nthree"
    assert join_paragraphs("short\n  indented\n  twice\nplain") == "short\nindented\ntwice\nplain"


def made(name: str, section: str = "net", tags: tuple[str, ...] = ()) -> Package:
    """A package whose description is its name."""
    return Package(name, f"source of {name}", section, tags, name)


def test_small_sections_are_left_out() -> None:
    all_packages = [
        made(f"{section}{i}", section) for section, count in (("a", 3), ("b", 2), ("c", 1)) for i in range(count)
    ]
    documents = documents_by_section(all_packages, "Debian 1", 2, 2)
    assert documents.texts == ["a0", "a1", "a2", "b0", "b1"]
    assert documents.labels == ["a", "a", "a", "b", "b"]
    assert documents.origin == "Debian 1"
    of_one_source = [replace(package, source="a") if package.section == "b" else package for package in all_packages]
    assert documents_by_section(of_one_source, "Debian 1", 2, 2).texts == ["a0", "a1", "a2"]
    assert documents.groups == [f"source of {text}" for text in documents.texts]
    assert not documents.multilabel


def test_rare_tags_and_placeholders_are_no_classes_and_packages_without_tags_no_documents() -> None:
    """A package whose tags are all too rare is a document without classes."""
    tags = [("x::a", "x::b"), ("x::a", "y::TODO"), ("x::b", "y::TODO"), (), ("y::TODO", "z::c")]
    documents = documents_by_tag([made(str(i), tags=own) for i, own in enumerate(tags)], least=2)
    assert documents.texts == ["0", "1", "2", "4"]
    assert documents.labels == [["x::a", "x::b"], ["x::a"], ["x::b"], []]
    assert documents.groups == [f"source of {text}" for text in documents.texts]
    assert documents.multilabel


def test_only_the_largest_classes_remain() -> None:
    """Documents of other classes go; in a multi-label task they only lose these classes."""
    sections = [
        made(f"{section}{i}", section) for section, count in (("a", 3), ("b", 1), ("c", 2)) for i in range(count)
    ]
    documents = documents_by_section(sections, least=1, least_sources=1).of_largest_classes(2)
    assert Counter(documents.labels) == {"a": 3, "c": 2}
    assert documents.texts == ["a0", "a1", "a2", "c0", "c1"]
    assert documents.groups == [f"source of {text}" for text in documents.texts]
    tags = [("x::a", "x::b"), ("x::a",), ("x::b",)]
    documents = documents_by_tag([made(str(i), tags=own) for i, own in enumerate(tags)], least=1).of_largest_classes(1)
    assert documents.texts == ["0", "1", "2"]
    assert documents.labels == [["x::a"], ["x::a"], []]
