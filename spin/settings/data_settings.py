"""The section `data`."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from spin.settings.credentials import Uri
from spin.settings.section import Section

_LARGEST_ROW = 1 << 26
"""bytes of a row, which one shard must hold"""
_SCALAR = r"(string|bool|int(8|16|32|64)|float(32|64)|date|timestamp|decimal\(([1-9]|[12]\d|3[0-8]), ?\d{1,2}\))"
_TYPE = rf"^({_SCALAR}|list<{_SCALAR}>)$"


def _with_types(columns: Any) -> Any:
    """A list of names as a mapping from names to no type."""
    if isinstance(columns, dict):
        return columns
    if not isinstance(columns, (list, tuple)):
        raise ValueError("expected a list of names, or names with types")
    if len(set(map(str, columns))) < len(columns):
        raise ValueError("expected every name once")
    return dict.fromkeys(columns)


def _type_of_output(name: str) -> str:
    if not re.match(_TYPE, name):
        raise ValueError(
            "expected string, bool, int8, int16, int32, int64, float32, float64, decimal(P,S), date, timestamp or "
            "list<TYPE>"
        )
    return name


_KEPT_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "object", "additionalProperties": {"type": ["string", "null"], "pattern": _TYPE}},
    ]
}
KeptColumns = Annotated[
    dict[str, Annotated[str, AfterValidator(_type_of_output)] | None],
    BeforeValidator(_with_types),
    WithJsonSchema(_KEPT_SCHEMA),
]
"""names of columns, each with a type or None; in the file also a list of names"""


def _encoding_of_lines(name: str) -> str:
    """The plain name of an encoding in which line ends, quotes and delimiters are single bytes, as in ASCII."""
    try:
        if '\n",'.encode(name).endswith(b'\n",'):
            return codecs.lookup(name).name
    except (LookupError, ValueError):
        pass
    raise ValueError("expected an encoding that contains ASCII, such as utf-8, cp1252 or latin-1; save others as UTF-8")


class DataSettings(Section):
    """The labelled text to learn from, in Parquet, JSONL or CSV files."""

    train: Uri = Field(description="Where it is: a file, a folder, a pattern such as data/*.parquet, or s3://…")
    id: str = Field("id", description="Column with an id that is unique per document.")
    text: str = Field("text", description="Column with the text.")
    label: str = Field(
        "label",
        description="Column with the class. A list of classes per document makes the task multi-label.",
    )
    split: str | None = Field(
        None,
        description="Column that says how a document is used: train (to learn), valid (to choose between candidates) "
        "or test (for the final figures). Default: a hash of the text decides, so that near-identical texts are used "
        "in the same way.",
    )
    group: str | None = Field(
        None,
        description="Column with what documents have in common, such as an author or a thread. Documents with the same "
        "value are used in the same way: its hash decides, or that of the text where it is null. Default: none.",
    )
    valid_fraction: float = Field(
        0.15, gt=0, lt=0.5, description="Without a split column: share of documents used to choose between candidates."
    )
    test_fraction: float = Field(
        0.15, ge=0, lt=0.5, description="Without a split column: share of documents used for the final figures."
    )
    ids: Literal["checked", "trusted"] = Field(
        "checked",
        description="checked: a night looks for duplicate ids before it classifies. trusted: it does not, which "
        "saves one pass over the ids.",
    )
    delimiter: str = Field(
        "auto",
        pattern=r'^(auto|[^"\r\n])$',
        description="Character between the values of a CSV file. auto: a comma, a semicolon or a tab, by which the "
        "header of the file has the columns.",
    )
    encoding: Annotated[str, AfterValidator(_encoding_of_lines)] = Field(
        "utf-8", description="Encoding of CSV and JSONL files, such as cp1252 or latin-1."
    )
    keep: KeptColumns = Field(
        {},
        description="Further columns that a night carries into predictions and dead letters: a list of names, such as "
        "[lang, source], or names with types, such as {priority: int64}. Types: string, bool, int8 to int64, float32, "
        "float64, decimal(P,S), date, timestamp (UTC) and list<TYPE>. Default of a type: the one in a Parquet file, "
        "string from JSONL and CSV.",
    )

    max_text_bytes: int = Field(
        10_000_000,
        ge=1,
        le=_LARGEST_ROW,
        description="Longest text in bytes of UTF-8. In a night, a longer one is a dead letter.",
    )
    max_row_bytes: int = Field(
        _LARGEST_ROW,
        ge=1,
        le=_LARGEST_ROW,
        description="Longest line or row in bytes, of CSV in characters. A file that has a longer one is bad.",
    )
    max_columns: int = Field(
        10_000,
        ge=1,
        description="Most columns of a file, and of a line of JSONL. A file with more is bad, a line malformed.",
    )
    max_decoded_bytes: int = Field(
        256_000_000_000, ge=1, description="Most bytes that a compressed or Parquet file holds once it is decoded."
    )
    max_decoded_ratio: int = Field(
        1000,
        ge=1,
        description="Most bytes that such a file holds per byte of its size, beyond the first 64 MB. A file that holds "
        "more is bad: it was made to exhaust the machine.",
    )

    def file_format(self) -> dict[str, Any]:
        """The settings that decide how files are read, beside the names of columns, as plans hold them."""
        limits = {name for name in type(self).model_fields if name.startswith("max_")}
        return self.model_dump(include={"delimiter", "encoding", *limits})
