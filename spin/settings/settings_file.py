"""Read the settings file, and report every mistake in it by its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from spin.errors import UserError
from spin.settings.credentials import holds_password, mask_credentials
from spin.settings.project_settings import Settings
from spin.settings.section import Section
from spin.settings.store_settings import expand_uri

S = TypeVar("S", bound=Section)
_REMOVED = {
    "search.head": "use search.network, auto or off",
    "search.rules": "neurons are ranked by both measures together",
    "search.l1": "a smaller search.max_share or smaller search.etas drop neurons",
}
"""settings that were removed, and what takes their place"""


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Read settings from a YAML file; each override is `a.b=value`, its value read as YAML.

    Raises UserError that names the key, what was found and what was expected.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no settings file at {path}; `spin init {path}` writes one") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise UserError(f"{path} cannot be read as YAML: {_describe_yaml_error(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}, expected a mapping of settings")
    for override in overrides:
        _override(tree, override)
    return parse_settings(tree, str(path))


def parse_settings(tree: dict[str, Any], origin: str = "settings") -> Settings:
    """The settings of a mapping. Raises UserError with every mistake in one line."""
    return parse_section(Settings, tree, origin)


def parse_section(section: type[S], tree: S | Mapping[str, Any], origin: str) -> S:
    """A section of settings with the values of a mapping. Raises UserError with every mistake in one line."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}: " + "; ".join(_describe_mistake(e, section) for e in error.errors())) from None


def _override(tree: dict[str, Any], override: str) -> None:
    shown = "***" if holds_password(override) else mask_credentials(override)
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {shown}: expected a.b=value")
    *parents, last = path.split(".")
    if parents[:1] == ["store"]:
        tree["store"] = expand_uri(tree.get("store"))
    for key in parents:
        if tree.get(key) is None:
            tree[key] = {}
        child = tree[key]
        if not isinstance(child, dict):
            raise UserError(f"--set {shown}: '{key}' is a value, it has no '{last}'")
        tree = child
    try:
        tree[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"--set {shown}: {_mask_password(value)} is not YAML") from None


def _describe_mistake(error: Any, section: type[Section]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden" and key in _REMOVED:
        return f"'{key}' was removed; {_REMOVED[key]}"
    if error["type"] == "extra_forbidden":
        nearest = _find_nearest(key, section)
        return f"unknown setting '{key}'" + (f" (did you mean '{nearest}'?)" if nearest else "")
    if error["type"] == "missing":
        return f"'{key}' is missing"
    return f"'{key}' is {_mask_password(error['input'])}: {error['msg'].removeprefix('Value error, ')}"


def _find_nearest(key: str, within: type[Section]) -> str | None:
    """The setting that an unknown one may stand for: one like it in its section, or of its name in another."""
    section, _, name = key.rpartition(".")
    places = [each.rpartition(".") for each in _list_settings(within)]
    siblings = [own for place, _, own in places if place == section]
    for near in get_close_matches(name, siblings, n=1):
        return f"{section}.{near}".removeprefix(".")
    return next((f"{place}.{own}".removeprefix(".") for place, _, own in places if own == name), None)


def _list_settings(section: type[Section], prefix: str = "") -> Iterator[str]:
    """The names of all settings of a section and of the sections in it, such as `search.etas`."""
    for name, setting in section.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (setting.annotation, *get_args(setting.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from _list_settings(kind, f"{prefix}{name}.")


def _mask_password(value: object) -> str:
    """A value as it was typed, for a message, or asterisks if it holds a password, or for the user in a URI."""
    return "'***'" if holds_password(repr(value)) else mask_credentials(repr(value))


def _describe_yaml_error(error: Exception) -> str:
    """The error in a YAML file with its line number, without the line itself, which may hold a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
