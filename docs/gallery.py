"""Takes the pictures of the gallery: pages that SPIN writes about the quickstart's model, in headless Chromium.

`make gallery` runs it after the quickstart.
"""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import markdown
from PIL import Image

from spin.pages.stylesheet import report_css
from tests.support.browser import launch_chromium

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
SCHEMES = ("light", "dark")
WINDOWS = {"": (1100, 1150), "-narrow": (390, 1150)}
"""width and height of a picture, by the end of its name"""
_COLOURS = 128
"""of a picture, which is then a third as large"""
_TEXT = "thanks for losing my luggage"


def main(project: Path) -> None:
    """Write the pictures of all pages about a project of the quickstart into `docs/pictures`."""
    with contextmanager(launch_chromium)() as browser:
        for page in write_pages(project):
            for suffix, (width, height) in WINDOWS.items():
                for scheme in SCHEMES:
                    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                    window = context.new_page()
                    window.goto(page.resolve().as_uri())
                    write_picture(window.screenshot(), PICTURES / f"{page.stem}{suffix}-{scheme}.png")
                    context.close()


def write_pages(project: Path) -> list[Path]:
    """Write the HTML page of every picture into the folder `gallery` of the project; returns their paths."""
    settings, folder = str(project / "settings.yaml"), project / "gallery"
    folder.mkdir(exist_ok=True)
    names = ("explanation", "night", "model-card", "robustness", "privacy", "roi")
    pages = {name: folder / f"{name}.html" for name in names}
    run_spin("explain", settings, "--text", _TEXT, "--deep", "--html", str(pages["explanation"]))
    run_spin("audit", "robustness", settings, "--documents", "500", "--html", str(pages["robustness"]))
    run_spin("audit", "privacy", settings, "--documents", "1000", "--html", str(pages["privacy"]))
    prices = ["--volume", "5e6", "--cost-error", "0.40", "--cost-review", "0.25"]
    run_spin("roi", settings, *prices, "--documents", "1000", "--html", str(pages["roi"]))
    [report] = (project / "nights").glob("_runs/*/report.html")
    pages["night"].write_bytes(report.read_bytes())
    card = (project / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    pages["model-card"].write_text(card_page(card), encoding="utf-8")
    return list(pages.values())


def card_page(card: str) -> str:
    """Return a model card as a page that looks like the others."""
    html = markdown.markdown(card.split("\n---\n", 1)[1], extensions=["tables"])
    html = html.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    style = f"{report_css()} p {{ overflow-wrap: anywhere }}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"<!doctype html>{head}<style>{style}</style><section><section>{html}</section></section>"


def run_spin(*arguments: str) -> None:
    """Run a command."""
    subprocess.run([Path(sys.executable).with_name("spin"), *arguments], check=True)


def write_picture(png: bytes, path: Path) -> None:
    """Write a screenshot with few colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
