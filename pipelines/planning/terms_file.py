"""A YAML or JSON file with terms of `spin roi`: costs by class, or shares of classes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from spin.errors import UserError

SUFFIXES = (".yaml", ".yml", ".json")
"""of the names of such files"""


def read_terms(path: Path, expected: str) -> dict[str, object]:
    """Read a mapping from names of classes; `expected` says in a message what it holds.

    A file that ends in `.json` is read as JSON, since YAML knows neither its tabs nor its escapes of rare characters;
    any other is read as YAML. Raises UserError for a file that cannot be read, that holds no mapping, or whose keys are
    no names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:  # wrong UTF-8 and wrong JSON are ValueErrors
        raise UserError(f"{path} cannot be read: {error}; expected a YAML or JSON file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {content!r:.40}; expected {expected}")
    for name in content:
        if not isinstance(name, str):
            raise UserError(
                f"{path}: found {name!r:.40}; expected the name of a class; put quotes around names such as "
                "yes, no or 1"
            )
    return content
