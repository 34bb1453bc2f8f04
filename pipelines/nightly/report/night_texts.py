"""The texts of some documents of a night, read from its input again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from pipelines.data.files.kept_columns import without_kept
from pipelines.data.files.reader import Documents
from pipelines.data.files.reader_process import read_pieces
from pipelines.data.intake import find_texts, plan_intake
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
    return find_texts(_read_input(without_kept(data), out / f"{RUNS}/{run}"), ids)


def _read_input(data: DataSettings, run: Store) -> Iterator[Documents]:
    """The documents of the input of a run, as far as its files can be read."""
    for task in plan_intake(read_listing(run).files, data, bad={}):
        for piece, parts in read_pieces(task.pieces, data):
            try:
                yield from parts
            except BadFileError:
                _log.debug("%s cannot be read; it is left out", piece.uri, exc_info=True)
