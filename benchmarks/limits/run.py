"""`make bench-limits`: small fits, probes against other solvers, Ray's cost, memory, many and large files.

It writes limits.md; `--only` measures a part alone and replaces its section of that page.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.limits import (
    input_reads,
    intake,
    large_backbone,
    many_files,
    many_nights,
    overhead,
    recipe,
    scale,
    small_fits,
    solvers,
    training,
    versions,
)
from benchmarks.section_page import Part, write_page

_FOLDER = Path("runs/bench/limits")
_REPORT = Path("benchmarks/limits.md")


class Measurement(Protocol):
    """The module of a part."""

    def measure(self, folder: Path, *, quick: bool) -> Any:
        """Measure, in a folder that does not exist yet and is removed afterwards; quickly only to see that it runs."""

    def section(self, result: Any, /) -> Part:
        """The section of the page on what was measured, and its verdicts."""


_PARTS: Mapping[str, tuple[str, Measurement]] = {
    "small": ("Small fits", small_fits),
    "probes": ("Probes against the paper's recipe", recipe),
    "solvers": ("Solvers at the same certificate", solvers),
    "ray": ("The cost of Ray", overhead),
    "memory": ("Memory and speed by number of documents", scale),
    "training": ("Training by number of documents", training),
    "reads": ("How often a training reads its corpus", input_reads),
    "intake": ("Files in child processes, and files that were made to harm", intake),
    "large": ("Activations of eight billion parameters", large_backbone),
    "files": ("Many files and large files", many_files),
    "nights": ("Outputs of many nights", many_nights),
}
"""title and module of every part of the page that needs nothing else, in order; each has a folder of its name"""
_VERSIONS = "A million documents in ten files"
"""title of the part for which `--other` is given"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few documents, one round: shows only that it runs")
    parser.add_argument("--only", choices=_PARTS, help="measure one part alone")
    parser.add_argument("--other", help="compare only the nights of another version, installed for this Python")
    options = parser.parse_args()
    quick = options.quick
    folder = _FOLDER / "quick" if quick else _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder = folder.resolve()  # workers run in folders of their own
    if options.other:
        rounds = versions.measure(folder / "versions", quick=quick, other=options.other)
        parts = {_VERSIONS: versions.section(rounds)}
    else:
        parts = {
            title: part.section(part.measure(folder / name, quick=quick))
            for name, (title, part) in _PARTS.items()
            if options.only in (None, name)
        }
    path = folder / "limits.md" if quick else _REPORT
    write_page(path, "Limits", "make bench-limits", parts)
    for name in (*_PARTS, "versions"):
        shutil.rmtree(folder / name, ignore_errors=True)
    broken = [promise for _, verdicts in parts.values() for holds, promise in verdicts if not holds]
    print(f"written to {path}")
    if broken and not quick:
        raise SystemExit("does not hold: " + "; ".join(broken))
