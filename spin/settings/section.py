"""The base of all sections of the settings file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

Share = Annotated[float, Field(gt=0, lt=1)]
"""a number above 0 and below 1"""


class Section(BaseModel):
    """A section of the settings file: it cannot be changed, and an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        """A section that holds comments alone is null in YAML: all of its settings have their defaults."""
        return {} if value is None else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """In the JSON Schema too, a section without required settings may be null."""
        schema = handler(core_schema)
        section = handler.resolve_ref_schema(schema)
        if "required" not in section:
            section["type"] = ["object", "null"]
        return schema


def known_name(name: str, names: Sequence[str]) -> str:
    """The name. Raises ValueError, which lists the names, if it is none of them."""
    if name not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    return name


def not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a list. Raises ValueError for a list without any."""
    if not values:
        raise ValueError("expected at least one")
    return values
