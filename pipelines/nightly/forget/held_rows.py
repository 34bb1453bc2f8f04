"""The rows of an output's tables that hold one of some ids, by run, table and file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from pipelines.data.forgotten_ids import ForgottenIds
from pipelines.nightly.tables.night_tables import DEAD_LETTERS, DISAGREEMENTS, PREDICTIONS, NightTables
from pipelines.storage.delta_table import DataFile
from pipelines.storage.object_store import Store

WITH_IDS = (PREDICTIONS, DEAD_LETTERS, DISAGREEMENTS)
"""tables whose rows are documents"""
FILES_AT_ONCE = 8
"""files of a table that are read at a time"""
RunFiles = Mapping[str, Sequence[DataFile]]
"""the files of a run by table"""
HeldRows = Mapping[tuple[str, str], int]
"""number of rows of a run whose ids are forgotten, by table and path of the file; files without any are left out"""


def find_held(tables: NightTables, files: RunFiles, forgotten: ForgottenIds) -> HeldRows:
    """The rows of a run whose ids are forgotten. Raises UserError if a file of the run is missing."""
    listed = [(table, file.path) for table in WITH_IDS for file in files.get(table, ())]
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        counts = threads.map(lambda each: _count_held(tables.store(each[0]), each[1], forgotten), listed)
        return {each: count for each, count in zip(listed, counts, strict=True) if count}


def _count_held(store: Store, path: str, forgotten: ForgottenIds) -> int:
    with store.open(path) as source:
        batches = pq.ParquetFile(source).iter_batches(columns=["id"])
        return sum(len(forgotten.find(batch["id"].to_pylist())) for batch in batches)
