"""The pictures of the documentation are small, shown, and there for light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import typer

from jobs.cli import app
from tests.support.repository import ROOT

PICTURES = ROOT / "docs" / "pictures"
NAMES = {path.name for path in PICTURES.glob("*.png")}


def find_pictures(page: Path) -> set[str]:
    """Return the names of the pictures that a page shows."""
    return set(re.findall(r"pictures/([\w-]+\.\w+)", page.read_text(encoding="utf-8")))


def test_every_picture_is_small() -> None:
    assert {path.name for path in PICTURES.iterdir() if path.stat().st_size > 150_000} == set()


def test_the_gallery_shows_every_page_wide_and_narrow_light_and_dark() -> None:
    assert find_pictures(ROOT / "docs" / "gallery.md") == NAMES
    pages = {name.removesuffix("-dark.png") for name in NAMES if name.endswith("-dark.png")}
    assert {f"{page}-light.png" for page in pages} | {f"{page}-dark.png" for page in pages} == NAMES
    assert {f"{page}-narrow" for page in pages if not page.endswith("-narrow")} == {
        page for page in pages if page.endswith("-narrow")
    }


def test_the_readme_shows_an_explanation_a_night_and_the_way_of_the_data() -> None:
    shown = {f"{page}-{scheme}.png" for page in ("explanation", "night") for scheme in ("light", "dark")}
    assert find_pictures(ROOT / "README.md") == {*shown, "data-flow.svg"}


def test_the_diagram_is_described_and_names_commands_that_exist() -> None:
    svg = ElementTree.parse(PICTURES / "data-flow.svg").getroot()
    names = {element.tag.split("}")[1] for element in svg}
    assert {"title", "desc"} <= names
    commands = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text") if text.get("class") == "command"]
    assert len(commands) == 5
    assert {f"spin {name}" for name in typer.main.get_command(app).commands} >= set(commands)
