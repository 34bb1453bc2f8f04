"""`make bench-trust`: privacy, robustness, conflict among layers, predicted costs, and quality without labels.

All are of the quickstart's champion. It writes trust.md; `--only` measures a part alone and replaces its section of
that page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.section_page import write_page
from benchmarks.trust import conflict, costs, privacy, quality, robustness
from benchmarks.trust.champion import open_champion

_FOLDER = Path("runs/bench/trust")
_REPORT = Path("benchmarks/trust.md")

_PARTS: Mapping[str, tuple[str, Any]] = {
    "privacy": ("What can be read back", privacy),
    "robustness": ("Perturbed texts", robustness),
    "conflict": ("Conflict among layers", conflict),
    "costs": ("Predicted costs", costs),
    "quality": ("Quality without labels", quality),
}
"""title of every part of the page, and the module with its `measure` and `section`"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few documents: shows only that it runs")
    parser.add_argument("--only", choices=_PARTS, help="measure one part alone")
    options = parser.parse_args()
    champion = open_champion(_FOLDER / "quickstart")
    measured = {
        title: part.section(part.measure(champion, quick=options.quick))
        for name, (title, part) in _PARTS.items()
        if options.only in (None, name)
    }
    path = _FOLDER / "trust.md" if options.quick else _REPORT
    write_page(path, "Trust", "make bench-trust", measured)
    print(f"written to {path}")
    broken = [promise for _, verdicts in measured.values() for holds, promise in verdicts if not holds]
    if broken and not options.quick:
        print("does not hold: " + "; ".join(broken))
