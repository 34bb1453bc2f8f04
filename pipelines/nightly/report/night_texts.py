"""The texts and groups of some documents of a night, read from its input again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pipelines.data.files.reader import ID_AND_TEXT, Documents
from pipelines.data.files.reader_process import read_pieces
from pipelines.data.files.shards import Piece
from pipelines.data.intake import find_documents, plan_intake
from pipelines.nightly.tables.listing import Listing, read_run_plan
from pipelines.nightly.tables.night_records import RUNS
from pipelines.nightly.tables.night_tables import INPUTS, TAKEN, NightTables, read_rows
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from spin.settings import DataSettings

_log = logging.getLogger(__name__)


def read_texts(data: DataSettings, out: Store, run: str, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """The ids and texts of some documents of a run, as far as its input is still there.

    The input is read as the run has read it, whatever `data` says of columns, kept columns and formats, without the
    files that the run has quarantined. So the first sound row with an id is the one that was predicted.
    """
    return ((id, text) for id, text, _ in read_documents(data.model_copy(update={"group": None}), out, run, ids))


def read_documents(
    data: DataSettings, out: Store, run: str, ids: Collection[str]
) -> Iterator[tuple[str, str, str | None]]:
    """As `read_texts`, with the group of each document: None where it has none, or its file has no such column."""
    of_run, listing, taken = _find_input(out, run)
    return find_documents(_read_input(data.model_copy(update={**of_run, "group": data.group}), listing, taken), ids)


def _find_input(out: Store, run: str) -> tuple[dict[str, Any], Listing, set[str]]:
    """The data settings by which a run has read its input, the files that it found, and the URIs of those it took."""
    plan, inputs = read_run_plan(out / f"{RUNS}/{run}"), read_rows(NightTables(out).open(INPUTS), {"run": run})
    of_run = {name: value for name, value in plan.metadata["data"].items() if name in DataSettings.model_fields}
    taken = {row["uri"] for row in inputs.to_pylist() if row["status"] == TAKEN}
    return of_run, Listing.from_rows(plan.derived.read(out / f"{RUNS}/{run}")), taken


def _read_input(data: DataSettings, listing: Listing, taken: Collection[str]) -> Iterator[Documents]:
    """The documents of the files that were taken, in the order of the intake, as far as they can be read."""
    for task in plan_intake(listing.files, bad={}):
        yield from _read_files([piece for piece in task.pieces if piece.uri in taken], data)


def _read_files(pieces: Sequence[Piece], data: DataSettings) -> Iterator[Documents]:
    """The documents of files, as far as these can be read."""
    for piece, parts in read_pieces(pieces, data, (*ID_AND_TEXT, "group")):
        try:
            yield from parts
        except BadFileError:
            _log.debug("%s cannot be read; it is left out", piece.uri, exc_info=True)
            if data.group is not None:  # a column that nights do not need
                yield from _read_files([piece], data.model_copy(update={"group": None}))
