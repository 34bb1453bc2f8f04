"""Name the first rows of a night that cannot be classified, with their places and reasons, for its error message."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from pipelines.data.files.formats import name_places
from pipelines.data.files.reader_process import locate_rows
from pipelines.data.files.readers import find_reader
from pipelines.data.files.shards import Piece
from pipelines.data.spool import FORGOTTEN
from pipelines.storage.object_store import Store
from spin.settings import DataSettings

NAMED_ROWS = 10
"""rows that a message names"""
_COLUMNS = ["file", "first", "row", "reason"]


def name_dead_letters(out: Store, keys: Sequence[str], data: DataSettings) -> str:
    """The first `NAMED_ROWS` dead letters by file and reason: `a.jsonl lines 3 and 5 (null_text)`.

    `keys` are those of the files in the output. Forgotten documents are left out. Rows of CSV and JSONL are named by
    their lines in the file, those of Parquet by their numbers, from 0.
    """
    rows: dict[tuple[str, int, str], list[int]] = {}
    for number, row in enumerate(_read_rows(out, keys)):
        if number == NAMED_ROWS:
            break
        rows.setdefault((row["file"], row["first"], row["reason"]), []).append(row["row"])
    return "; ".join(
        f"{uri} {_name_rows(uri, first, numbers, data)} ({reason})" for (uri, first, reason), numbers in rows.items()
    )


def _read_rows(out: Store, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The dead letters of the files in their order, but for forgotten documents."""
    for key in keys:
        content = out.read(key)
        if content is not None:
            table = pq.read_table(io.BytesIO(content), columns=_COLUMNS)
            yield from (row for row in table.to_pylist() if row["reason"] != FORGOTTEN)


def _name_rows(uri: str, first: int, rows: Sequence[int], data: DataSettings) -> str:
    """Rows of a file, counted from the row or the byte at which a part of it begins.

    Lines are counted from the start of a file alone: all that comes before them is read again.
    """
    if first:
        return f"{name_places('row', rows)} (from 0) of the part that begins at {first:,}"
    reader = find_reader(uri)
    lines = locate_rows(Piece(uri, reader.name, 0, 0), rows, data) if reader else None
    return name_places("line", lines) if lines else f"{name_places('row', rows)} (from 0)"
