"""pip's configuration on this machine, as one file and the list of files and folders that it refers to.

`python pip_config.py FILE` writes the configuration to FILE and prints those paths, one per line. A build of an image
mounts both, so that pip installs there from where it installs here, and no layer contains them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_PATHS = ("cert", "client-cert", "constraint", "find-links")
"""options whose values may be paths"""
_HERE_ONLY = ("cache-dir", "log", "prefix", "python", "require-virtualenv", "root", "target", "user")
"""options that speak of this machine, not of where packages come from"""


def parse_options(lines: Iterable[str]) -> dict[str, str]:
    """Return each option with its value from the output of `pip config list`; the environment overrides files."""
    options: dict[str, str] = {}
    from_environment: dict[str, str] = {}
    for line in lines:
        key, _, value = line.strip().partition("=")
        section, _, name = key.rpartition(".")
        if name and name not in _HERE_ONLY:
            (from_environment if section == ":env:" else options)[name] = str(ast.literal_eval(value))
    return options | from_environment


def list_paths(options: dict[str, str]) -> list[Path]:
    """Return the files and folders of this machine that the options name."""
    words = [word.removeprefix("file://") for name in _PATHS for word in options.get(name, "").split()]
    return sorted({Path(word) for word in words if word.startswith("/") and Path(word).exists()})


def format_options(options: dict[str, str]) -> str:
    """Return the options as a configuration file of pip."""
    values = {name: "\n    ".join(value.split("\n")) for name, value in options.items()}
    return "\n".join(["[global]", *(f"{name} = {value}" for name, value in values.items()), ""])


def main(file: Path) -> None:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    options = parse_options(listed.stdout.splitlines())
    file.write_text(format_options(options), encoding="utf-8")
    print("\n".join(map(str, list_paths(options))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
