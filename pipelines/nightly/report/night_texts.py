"""The texts and groups of some documents of a night, read from its input again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

from pipelines.data.files.kept_columns import without_kept
from pipelines.data.files.reader import ID_AND_TEXT, Documents
from pipelines.data.files.reader_process import read_pieces
from pipelines.data.files.shards import Piece
from pipelines.data.intake import find_documents, plan_intake
from pipelines.nightly.tables.listing import read_listing
from pipelines.nightly.tables.night_records import RUNS
from pipelines.service_errors import BadFileError
from pipelines.storage.object_store import Store
from spin.settings import DataSettings

_log = logging.getLogger(__name__)


def read_texts(data: DataSettings, out: Store, run: str, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """The ids and texts of some documents of a run, as far as its input is still there.

    The first sound row with an id is the one that was predicted.
    """
    ungrouped = data.model_copy(update={"group": None})
    return ((id, text) for id, text, _ in read_documents(ungrouped, out, run, ids))


def read_documents(
    data: DataSettings, out: Store, run: str, ids: Collection[str]
) -> Iterator[tuple[str, str, str | None]]:
    """As `read_texts`, with the group of each document: None where it has none, or its file has no such column."""
    return find_documents(_read_input(without_kept(data), out / f"{RUNS}/{run}"), ids)


def _read_input(data: DataSettings, run: Store) -> Iterator[Documents]:
    """The documents of the input of a run, as far as its files can be read."""
    for task in plan_intake(read_listing(run).files, data, bad={}):
        yield from _read_files(task.pieces, data)


def _read_files(pieces: Sequence[Piece], data: DataSettings) -> Iterator[Documents]:
    """The documents of files, as far as these can be read."""
    for piece, parts in read_pieces(pieces, data, (*ID_AND_TEXT, "group")):
        try:
            yield from parts
        except BadFileError:
            _log.debug("%s cannot be read; it is left out", piece.uri, exc_info=True)
            if data.group is not None:  # a column that nights do not need
                yield from _read_files([piece], data.model_copy(update={"group": None}))
