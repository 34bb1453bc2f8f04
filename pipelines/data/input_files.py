"""List the input files, each with what shows whether it has changed."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pipelines.data.readers import COMPRESSIONS
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import open_input, store_errors
from spin.errors import UserError

_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


@dataclass(frozen=True)
class InputFile:
    """An input file and the values by which a change is detected."""

    uri: str
    """without `file://` on a disk"""
    kind: str
    """parquet, jsonl or csv"""
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""


def list_files(uri: str, *, bad: dict[str, str] | None = None) -> list[InputFile]:
    """The files of a path, a folder or a glob, in order of name.

    Folders and files whose names begin with `_` or `.` are left out, unless the URI itself contains that name.
    Raises UserError if there are no files, and BadFileError for a file that is not Parquet, JSONL or CSV; if `bad` is
    given, such files are left out and their URIs are added to it, each with the reason.
    """
    fs, path = open_input(uri)
    with store_errors(uri):
        if fs.isdir(path):
            paths = _visible(fs.find(path), path)
        elif fs.exists(path):
            paths = [path]
        else:
            paths = _glob(fs, path)
        infos = [fs.info(p) for p in sorted(paths)]
    files = []
    for info in (info for info in infos if info["type"] == "file"):
        uri_of = fs.unstrip_protocol(info["name"]).removeprefix("file://")
        try:
            files.append(_file(uri_of, info))
        except BadFileError as error:
            if bad is None:
                raise
            bad[uri_of] = str(error)
    if not files:
        raise UserError(f"no data at {uri}; expected a file, a folder or a glob of Parquet, JSONL or CSV")
    return files


def _glob(fs: Any, pattern: str) -> list[str]:
    fixed = takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    try:
        return _visible(fs.glob(pattern), "/".join(fixed))
    except ValueError as error:
        raise UserError(f"{pattern} is no glob: {error}") from None


def _visible(paths: Sequence[str], base: str) -> list[str]:
    """The paths without a hidden name below the base."""
    return [p for p in paths if not any(part.startswith(("_", ".")) for part in p[len(base) :].split("/"))]


def _file(uri: str, info: dict[str, Any]) -> InputFile:
    stem = uri.lower()
    for ending in COMPRESSIONS:
        stem = stem.removesuffix(ending)
    kind = next((kind for ending, kind in _KINDS.items() if stem.endswith(ending)), None)
    if kind is None or (kind == "parquet" and stem != uri.lower()):
        raise BadFileError(f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    version = str(info.get("ETag") or info.get("mtime") or "").strip('"')
    return InputFile(uri, kind, int(info["size"]), version)
