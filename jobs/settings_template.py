"""The settings file that `spin init` writes: every setting with its default and what it means."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spin.settings import Settings

_EXAMPLES = {
    "backbone.model": "sentence-transformers/all-MiniLM-L6-v2",
    "data.train": "data/labelled.parquet",
    "store": "runs/first",
}
"""for the settings that have no default"""


def settings_template() -> str:
    """A YAML file that is valid as it stands; a setting at its default is commented out."""
    head = "# Settings of SPIN. Lines that begin with '# ' and a key show defaults. One value can be overridden\n"
    return head + "# on the command line with --set backbone.max_tokens=128\n" + _section(Settings, "")


def _section(model: type[BaseModel], path: str) -> str:
    """The lines of a settings model; sections stand apart from one another and from what follows them."""
    lines: list[str] = []
    apart = not path
    for name, info in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        kind: Any = info.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        if apart or nested:
            lines.append("\n")
        apart = nested
        lines.append(_nested(kind, name, key) if nested else _line(info, name, key))
    return "".join(lines)


def _nested(kind: type[BaseModel], name: str, key: str) -> str:
    """A section; its own line is a comment if all of its settings are."""
    body = _section(kind, key)
    mark = "# " if all(line.startswith("#") for line in body.splitlines() if line) else ""
    return f"{mark}{'  ' * key.count('.')}{name}:  # {(kind.__doc__ or '').splitlines()[0]}\n{body}"


def _line(info: FieldInfo, name: str, key: str) -> str:
    depth = "  " * key.count(".")
    if key in _EXAMPLES:
        return f"{depth}{name}: {_EXAMPLES[key]}  # {info.description}\n"
    return f"# {depth}{name}: {_value(info)}  # {info.description}\n"


def _value(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    plain = list(default) if isinstance(default, tuple) else default
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()
