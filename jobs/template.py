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
    return head + "# on the command line with --set backbone.max_tokens=128\n\n" + _section(Settings, "")


def _section(model: type[BaseModel], path: str) -> str:
    depth = "  " * (path.count(".") + 1 if path else 0)
    lines = []
    for name, info in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        kind: Any = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            body = _section(kind, key)
            opened = (
                f"{name}:" if any(not line.lstrip().startswith("#") for line in body.splitlines()) else f"# {name}:"
            )
            lines.append(f"\n{opened}  # {(kind.__doc__ or '').strip().splitlines()[0]}\n{body}")
        elif key in _EXAMPLES:
            lines.append(f"{depth}{name}: {_EXAMPLES[key]}  # {info.description}\n")
        else:
            lines.append(f"# {depth}{name}: {_value(info)}  # {info.description}\n")
    return "".join(lines)


def _value(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    plain = list(default) if isinstance(default, tuple) else default
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()
