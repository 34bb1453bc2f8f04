"""Search every file below a folder, also within compressed Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq


def find_in_files(folder: Path, needles: Sequence[str]) -> dict[str, list[str]]:
    """Return the needles that each file below a folder contains, by its path; files without any are left out."""
    found = {}
    for path, content in _contents(folder):
        hits = [needle for needle in needles if needle.encode() in content or needle.lower().encode() in content]
        if hits:
            found[str(path.relative_to(folder))] = hits
    return found


def _contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, _decoded(path)


def _decoded(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        data += repr(pq.read_table(path).to_pydict()).encode("utf-8", "surrogatepass")
    return data
