"""Take a folder in as a night does, and say what became of each file."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.data.files.input_files import list_files
from pipelines.data.intake import plan_intake, take_in
from pipelines.data.spool import PartSize, SpoolPart
from spin.settings import DataSettings
from tests.hostile.parquet_edits import write_parquet

DATA = DataSettings(train="unused", keep={"source": "string"})
GOOD_ROWS = 7
"""rows of each good file"""
_ROWS = [{"id": f"d{n}", "source": "web", "text": f"some text {n}"} for n in range(GOOD_ROWS)]
_GOOD_FILES = {
    "0-good.jsonl": b'{"id": "d", "source": "web", "text": "some text"}\n' * GOOD_ROWS,
    "~good.parquet": write_parquet({name: [row[name] for row in _ROWS] for name in _ROWS[0]}),
}


@dataclass
class Taken:
    """What became of the files of a folder, by their paths in it."""

    reasons: dict[str, str] = field(default_factory=dict)
    """why files are quarantined"""
    rows: dict[str, int] = field(default_factory=dict)
    """rows of good files"""
    dead: dict[str, list[str]] = field(default_factory=dict)
    """reasons of the dead letters of good files"""
    spooled: dict[str, int] = field(default_factory=dict)
    """rows of good files that were saved, dead letters included"""

    def good_files_harmed(self) -> dict[str, object]:
        """The good files that `write_good_files` wrote of which not all rows were taken, each with what was found."""
        found = {name: (self.reasons.get(name), self.rows.get(name), self.spooled.get(name)) for name in _GOOD_FILES}
        return {name: each for name, each in found.items() if each != (None, GOOD_ROWS, GOOD_ROWS)}


def write_good_files(folder: Path) -> None:
    """Write a good file that comes before most names, and one that comes after."""
    for name, content in _GOOD_FILES.items():
        (folder / name).write_bytes(content)


def take_folder(folder: Path, data: DataSettings = DATA) -> Taken:
    """List a folder and take all of its files in."""
    taken = Taken()
    bad: dict[str, str] = {}
    files = list_files(str(folder), bad=bad)
    tasks = plan_intake(files, bad=bad)
    parts: dict[str, pq.ParquetFile] = {}

    def save(task: int, part: SpoolPart) -> str:
        uri = f"{task}-{part.number}"
        parts[uri] = part.parquet
        return uri

    for task in tasks:
        report = take_in(task, data, PartSize.of(sum(file.size for file in files), 1000), partial(save, task.index))
        assert report.conflict is None, report.conflict
        for file in report.files:
            if file.reason is not None:
                bad[file.uri] = file.reason
            taken.rows[_path(file.uri, folder)] = taken.rows.get(_path(file.uri, folder), 0) + file.rows
        for ready in report.pieces:
            _count_rows(parts.pop(ready.piece.uri), taken, folder)
        parts.clear()
    taken.reasons = {_path(uri, folder): reason for uri, reason in bad.items()}
    return taken


def _count_rows(part: bytes, taken: Taken, folder: Path) -> None:
    table = pq.read_table(io.BytesIO(part), columns=["file", "reason"])
    for uri, reason in zip(table["file"].to_pylist(), table["reason"].to_pylist(), strict=True):
        name = _path(uri, folder)
        taken.spooled[name] = taken.spooled.get(name, 0) + 1
        if reason is not None:
            taken.dead.setdefault(name, []).append(reason)


def _path(uri: str, folder: Path) -> str:
    return os.path.relpath(uri, os.path.realpath(folder))
