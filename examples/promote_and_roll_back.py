"""Promote the challenger, return to the version before, and read the history.

    python examples/promote_and_roll_back.py [SETTINGS]

SETTINGS is the file of a project that has been trained, such as that of `make quickstart`. `spin promote`,
`spin rollback` and `spin history` do the same from the command line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.registry.promotion import promote
from pipelines.registry.versions import CHALLENGER, Registry
from spin import SpinError, load_settings


def main(settings: str = "runs/quickstart/settings.yaml") -> None:
    registry = Registry(load_settings(Path(settings)))
    before = registry.champion()
    challenger = registry.resolve(f"models:/{registry.name}@{CHALLENGER}")
    print(f"champion: {before}, challenger: {challenger}")
    if challenger != before:
        try:
            promote.promote(registry, challenger, "an example")
        except SpinError as error:  # the version does not pass the gate
            print(f"not promoted: {error}")
    try:
        promote.rollback(registry, "an example", None)
    except SpinError as error:  # no version was champion before
        print(f"not rolled back: {error}")
    print(f"champion: {registry.champion()}")
    for event in promote.history(registry):
        print(event)


if __name__ == "__main__":
    main(*sys.argv[1:])
