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


def launch_chromium() -> Iterator[Any]:
    """Yield Debian's Chromium; close it with the generator."""
    executable = shutil.which("chromium")
    if executable is None:
        message = "no chromium: run the tests with `make test`, which installs it (infra/browser.sh)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Any, folder: Path, html: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """Open the page in a window; check at the end that it loaded and logged nothing and ran no injected script."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    window = context.new_page()
    requested: list[str] = []
    messages: list[str] = []

    def dismiss(dialog: Any) -> None:
        messages.append(dialog.message)
        dialog.dismiss()

    window.on("request", lambda request: requested.append(request.url))
    window.on("console", lambda message: messages.append(message.text))
    window.on("pageerror", lambda error: messages.append(str(error)))
    window.on("dialog", dismiss)
    window.goto(file.as_uri())
    yield window
    assert requested == [file.as_uri()]
    assert messages == []
    assert window.evaluate("window.hit") is None
    context.close()
