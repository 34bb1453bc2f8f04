"""The section `store`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from spin.settings.credentials import Uri, without_password
from spin.settings.section import Section


class StoreSettings(Section):
    """The place of features, probes, the trained model and its report. A URI alone is short for `uri`."""

    uri: Uri = Field(description="A folder or s3://BUCKET/PREFIX.")
    retention: int | None = Field(
        None,
        ge=1,
        le=36_500,
        description="Age in days from which `spin purge` deletes what reveals the documents of a training: features, "
        "probes, heads of the search and suspects that have not changed for so long. Trained models stay. Default: "
        "none; `spin purge` then needs --older-than.",
    )

    @model_validator(mode="before")
    @classmethod
    def _uri_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            without_password(value)  # refused here, the error names `store`, as the file does, and not `store.uri`
        return expand_uri(value)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """In the JSON Schema too, a URI may stand in place of the section."""
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        handler.resolve_ref_schema(schema)["type"] = ["object", "string"]
        return schema


def expand_uri(value: Any) -> Any:
    """The section that a URI alone is short for; any other value as it is."""
    return {"uri": value} if isinstance(value, str) else value
