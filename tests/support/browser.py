"""A real browser in which tests open the pages that SPIN writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def chromium() -> Iterator[Any]:
    """Debian's Chromium, until the generator is closed."""
    found = shutil.which("chromium")
    if not found:
        message = "no chromium: run the tests with `make test`, which installs it (infra/browser.sh)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, html: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page in a window; at the end it must have asked for nothing, said nothing and run nothing."""
    path = path / "page.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    window, asked, said = context.new_page(), [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    window.goto(path.as_uri())
    yield window
    assert asked == [path.as_uri()]
    assert said == []
    assert window.evaluate("window.hit") is None
    context.close()
