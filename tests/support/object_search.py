"""Search every file below a folder, or every object of a store, also within compressed Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.storage.object_store import Store


def find_in_files(folder: Path, needles: Sequence[str]) -> dict[str, list[str]]:
    """Return the needles that each file below a folder contains, by its path; files without any are left out."""
    return _find(((str(path.relative_to(folder)), path.read_bytes()) for path in _files(folder)), needles)


def find_in_store(store: Store, needles: Sequence[str]) -> dict[str, list[str]]:
    """Return the needles that each object of a store contains, by its key; objects without any are left out."""
    return _find(((item.key, store.read(item.key) or b"") for item in store.list_all()), needles)


def _find(contents: Iterator[tuple[str, bytes]], needles: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for name, data in contents:
        content = _decoded(data)
        hits = [
            each for each in needles if each in name or each.encode() in content or each.lower().encode() in content
        ]
        if hits:
            found[name] = hits
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _decoded(data: bytes) -> bytes:
    if data[:4] == b"PAR1":
        data += repr(pq.read_table(io.BytesIO(data)).to_pydict()).encode("utf-8", "surrogatepass")
    return data
