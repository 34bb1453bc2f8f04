"""The texts of some documents of a night, read from its input again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from pipelines.data.files.readers import opener_of, read_piece
from pipelines.data.files.shards import Piece
from pipelines.data.intake import plan_intake
from pipelines.nightly.tables.listing import read_listing
from pipelines.nightly.tables.night_records import RUNS
from pipelines.service_errors import BadFileError
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.object_store import Store
from spin.settings import DataSettings

_log = logging.getLogger(__name__)


def read_texts(data: DataSettings, out: Store, run: str, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """The ids and texts of some documents of a run, as far as its input is still there.

    The first sound row with an id is the one that was predicted. Ends when all are found.
    """
    waiting = set(ids)
    files = read_listing(out / f"{RUNS}/{run}").files
    for task in plan_intake(files, data, bad={}):
        for piece in task.pieces:
            for id, text in _read_piece(piece, data):
                if id in waiting and text.strip():
                    waiting.discard(id)
                    yield id, text
                if not waiting:
                    return


def _read_piece(piece: Piece, data: DataSettings) -> Iterator[tuple[str, str]]:
    """The ids and texts of a part of a file, as far as it can be read."""
    try:
        for documents in read_piece(piece, data, opener_of(piece, InputOpener())):
            for id, text in zip(documents.ids, documents.texts, strict=True):
                if isinstance(id, str) and isinstance(text, str):
                    yield id, text
    except BadFileError:
        _log.debug("%s cannot be read; it is left out", piece.uri, exc_info=True)
