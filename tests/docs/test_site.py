"""The documentation as `make docs` builds it, opened from its folder: search, pictures and the reference of the API."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spin import SpinClassifier
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def site() -> Path:
    """The folder of the site."""
    folder = ROOT / "build" / "site"
    if not (folder / "index.html").exists():
        message = "no site in build/site: run the tests with `make test`, which builds it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def window(browser: Any) -> Iterator[Any]:
    """A window of the browser; check at the end that nothing came from elsewhere and that nothing failed to load."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if request.url.startswith("http") else None)
    page.on("requestfailed", lambda request: elsewhere.append(request.url))
    yield page
    context.close()
    assert elsewhere == []


def test_the_site_can_be_searched_from_its_folder(site: Path, window: Any) -> None:
    window.goto((site / "index.html").as_uri())
    window.locator(".md-search__input").fill("promote roll back")
    assert window.locator(".md-search-result__link").first.inner_text().startswith("Promote and roll back")


@pytest.mark.parametrize(
    ("page", "member", "words"),
    [
        ("spin", f"{SpinClassifier.__module__}.SpinClassifier", "SpinClassifier( backbone: str | BackboneSettings"),
        ("spin.settings", "spin.settings.project_settings.Settings.store", "store: StoreSettings"),
        ("spin.settings", "spin.settings.training_settings.SearchSettings.max_share", "Largest share"),
    ],
)
def test_the_reference_of_the_api_shows_the_constructor_and_the_settings(
    site: Path, window: Any, page: str, member: str, words: str
) -> None:
    window.goto((site / "reference" / "api" / f"{page}.html").as_uri())
    shown = window.locator(".doc-object", has=window.locator(f'[id="{member}"]')).last.inner_text()
    assert words in " ".join(shown.split())
