"""Ids, labels and splits as text: the same value is the same text in Parquet, JSONL and CSV.

A text stays as it is; CSV holds nothing but texts. A whole number is written by its digits alone, so that 1, 1.0 and
the decimal 1.00 are all "1"; any other number by the fewest digits that give it back; true and false in lower case; a
UUID in its usual form with hyphens; other binary values of fixed size in hexadecimal digits, and those of varying size
as UTF-8 or, where they are not UTF-8, as 0x and hexadecimal digits; dates and times as Arrow writes them. Null, NaN,
infinite and empty values are no text.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """Whether a string is free of lone surrogates, which cannot be encoded as UTF-8."""
    return text.isascii() or not _SURROGATE.search(text)


def to_unicode(text: object) -> str | None:
    """A text with lone surrogates replaced, since an Arrow string cannot hold them; None if it is no text."""
    if not isinstance(text, str):
        return None
    return text if is_unicode(text) else text.encode(errors="replace").decode()


def to_text(value: Any) -> str | None:
    """A value of JSON or of a Parquet column as text; None for null, NaN, infinite and empty values, and for nests."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, Decimal):
        whole, _, fraction = format(value, "f").partition(".")  # `normalize` rounds to 28 digits
        fraction = fraction.rstrip("0")
        text = f"{whole}.{fraction}" if fraction else whole
        return text if value else "0"
    if isinstance(value, bytes):
        return _binary_text(value)
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value)


def column_to_text(column: pa.ChunkedArray) -> list[str | None]:
    """A Parquet column as texts. Raises pyarrow.ArrowNotImplementedError for lists, structs and maps."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column_to_text(pc.cast(column, kind.value_type))
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        return column_to_text(pc.cast(column, kind.storage_type))
    if pa.types.is_fixed_size_binary(kind):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        return [None if value is None else to_text(kind.to_pandas_dtype()(value)) for value in column.to_pylist()]
    if isinstance(kind, pa.UuidType) or pa.types.is_decimal(kind) or _is_binary(kind):
        return [to_text(value) for value in column.to_pylist()]
    return [value or None for value in pc.cast(column, pa.string()).to_pylist()]


def _binary_text(value: bytes) -> str | None:
    try:
        return value.decode() or None
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
