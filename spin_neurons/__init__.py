"""The installation of SPIN: the start of its command, packages of the same names, and how an extra is added to it.

The command starts here since no other distribution has a package of this name, as others may have of `spin`,
`pipelines` and `jobs`. Only the standard library is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import metadata

DISTRIBUTION = "spin-neurons"
PACKAGES = ("spin", "pipelines", "jobs")
"""the packages of SPIN, whose names are common"""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""the folder that they are in"""


def main() -> None:
    """Run the command `spin`; with status 2 and one line if a package of another origin has a name of ours."""
    if conflict := find_conflict(sys.path):
        shown = "".join(char if char.isprintable() else "\ufffd" for char in conflict)  # it names a folder
        print(f"error: {shown}", file=sys.stderr)
        sys.exit(2)
    from jobs.cli import main

    main()


def find_conflict(folders: Iterable[str], names: Iterable[str] = PACKAGES) -> str | None:
    """A line about the first file in folders of modules that has the name of a package of SPIN; None without one.

    Python finds one of the two, and which one depends on the order of folders. A folder that holds all of SPIN, such
    as a checkout, is no conflict. In the folder of SPIN itself the other package may have been written over ours.
    """
    for folder in map(os.path.abspath, folders):
        if folder != ROOT and all(os.path.isfile(_package_file(folder, name)) for name in PACKAGES):
            continue
        for name in names:
            if folder == ROOT:
                theirs = _find_distribution(name)
            else:
                files = (_package_file(folder, name), os.path.join(folder, f"{name}.py"))
                theirs = next(filter(os.path.isfile, files), None)
            if theirs:
                return (
                    f"{theirs} and {_package_file(ROOT, name)} of SPIN are both `{name}`, so that Python finds only "
                    "one of them; rename the first, work in another folder, or install SPIN into a virtual environment "
                    "of its own"
                )
    return None


def install_command(extra: str) -> str:
    """The command that adds an extra: from the checkout or wheel that SPIN was installed from, else by its name."""
    try:
        source = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        source = None
    return _install_from(source, extra)


def _install_from(source: str | None, extra: str) -> str:
    """The command for a `direct_url.json` (PEP 610), which pip writes where it did not install from an index."""
    import json
    from urllib.parse import unquote, urlsplit

    given = json.loads(source) if source else {}
    url = urlsplit(given.get("url", ""))
    path = unquote(url.path)
    if url.scheme != "file" or not os.path.exists(path):
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    editable = "--editable " if given.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}'{path}[{extra}]'"


def _package_file(folder: str, name: str) -> str:
    return os.path.join(folder, name, "__init__.py")


def _find_distribution(name: str) -> str | None:
    """The metadata of a distribution named as a package of ours, beside SPIN, whose files are in that package."""
    for entry in os.listdir(ROOT):
        if entry.endswith(".dist-info") and entry.lower().startswith(f"{name}-"):
            record = os.path.join(ROOT, entry, "RECORD")
            if os.path.isfile(record):
                with open(record, encoding="utf-8") as file:
                    if any(line.startswith(f"{name}/") for line in file):
                        return record
    return None
