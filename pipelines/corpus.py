"""The corpus: which files there are, how they divide into shards, whether it can be trained on."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, takewhile
from typing import Any

from pipelines.documents import PACKED, Shard, codec_of, count_rows, is_unicode, parquet_groups, read_shard, reading
from pipelines.store import open_filesystem, store_errors
from spin.errors import BadFileError, UserError
from spin.settings import DataSettings
from spin.split import SPLITS
from spin.task import Label

_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}

_SAMPLE = 1 << 20
"""bytes from which the length of a line is told"""


@dataclass(frozen=True)
class File:
    """One input and what tells whether it has changed."""

    uri: str
    kind: str
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""


@dataclass(frozen=True)
class Labelled:
    """What training needs to know of every document, in plan order; the texts stay in their files."""

    ids: list[str]
    labels: list[Label]
    splits: list[str | None]
    shard_rows: list[int]


def list_files(uri: str, *, bad: dict[str, str] | None = None) -> list[File]:
    """The files of a path, a folder or a glob, in order of name.

    Names that begin with `_` or `.` are left out, of folders and files alike, unless the URI itself spells them.
    Raises UserError when there are none, and BadFileError for one that is not Parquet, JSONL or CSV; where `bad` is
    given, such files are left out and it takes in their URIs, with the reason.
    """
    fs, path = open_filesystem(uri)
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


def plan_shards(
    files: Sequence[File], documents: int, data: DataSettings, *, bad: dict[str, str] | None = None
) -> list[Shard]:
    """Divide files into shards of about `documents` rows: a pure function of the files and the settings.

    Parquet divides at row groups where they are small enough, plain JSONL at line ends by bytes, CSV and compressed
    JSONL by rows, for which they are read once here. Raises BadFileError for a file that cannot be read or lacks a
    column; where `bad` is given, such files are left out and it takes in their URIs, with the reason.
    """
    ranges: list[tuple[File, int, int, int | None]] = []
    for file in files:
        try:
            ranges += [(file, *bounds) for bounds in _ranges(file, documents, data)]
        except BadFileError as error:
            if bad is None:
                raise
            bad[file.uri] = str(error)
    return [
        Shard(n, file.uri, file.kind, start, stop, lines is not None, stop - start if lines is None else lines)
        for n, (file, start, stop, lines) in enumerate(ranges)
    ]


def parts_of(shard: Shard, documents: int) -> Iterator[Shard]:
    """A shard in equal parts of at most about so many documents, numbered as the shard is."""
    parts = max(1, -(-shard.documents // documents))
    start = shard.start
    for part in range(1, parts + 1):
        stop = shard.start + (shard.stop - shard.start) * part // parts
        if shard.by_bytes and stop < shard.stop:
            fs, path = open_filesystem(shard.uri)
            with store_errors(shard.uri):
                stop = _line_end(fs, path, max(stop, start + 1), shard.stop)
        if start < stop:
            yield replace(shard, start=start, stop=stop, documents=-(-shard.documents // parts))
        start = stop


def read_labelled(shards: Sequence[Shard], data: DataSettings) -> Labelled:
    """Read every label once, before any work is spent on a corpus that cannot be trained on.

    An empty list is a label: a document of no class. Raises UserError, naming file and row, for the first id or label
    that is null, list of labels with what is no name, text that is not text or empty, lone surrogates in any of them,
    an id seen before or a split that is none.
    """
    found = Labelled([], [], [], [])
    seen: set[str] = set()
    for shard in shards:
        documents = read_shard(shard, data, labelled=True)
        for row, (id, text, label, split) in enumerate(
            zip(documents.ids, documents.texts, documents.labels, documents.splits, strict=True)
        ):
            wrong = documents.malformed.get(row) or _mistake(id, text, label, split, data, seen)
            if wrong:
                first = 0 if shard.by_bytes else shard.start
                after = f" after byte {shard.start}" if shard.by_bytes and shard.start else ""
                raise UserError(f"{shard.uri} row {first + row}{after}: {wrong}")
            assert id is not None
            assert label is not None
            seen.add(id)
            found.ids.append(id)
            found.labels.append(label)
            found.splits.append(split)
        found.shard_rows.append(len(documents))
    return found


def describe(files: Sequence[File]) -> list[dict[str, Any]]:
    """The inputs as a plan and a manifest keep them."""
    return [asdict(file) for file in files]


def _mistake(
    id: str | None, text: Any, label: Label | None, split: str | None, data: DataSettings, seen: set[str]
) -> str | None:
    if not id:
        return f"the id ({data.id}) is null; expected a unique one"
    labels = label if isinstance(label, list) else [label]
    for name, value in ((data.id, id), (data.text, text), *((data.label, label) for label in labels)):
        if isinstance(value, str) and not is_unicode(value):
            return f"'{name}' holds lone surrogates, expected Unicode"
    if id in seen:
        return f"the id '{id}' was seen before; expected unique ids in '{data.id}'"
    if not isinstance(text, str) or not text.strip():
        return f"the text ({data.text}) is {'empty' if isinstance(text, str) else 'not text'}; leave the row out"
    if label is None:
        return f"the label ({data.label}) is null; label the row or leave it out"
    if data.split and split not in SPLITS:
        return f"the split ({data.split}) is {split!r}; expected train, valid or test"
    return None


def _glob(fs: Any, pattern: str) -> list[str]:
    spelt = takewhile(lambda part: not glob.has_magic(part), pattern.split("/"))
    try:
        return _visible(fs.glob(pattern), "/".join(spelt))
    except ValueError as error:
        raise UserError(f"{pattern} is no glob: {error}") from None


def _visible(paths: Sequence[str], base: str) -> list[str]:
    """The paths with no hidden name beyond what the user spelt."""
    return [p for p in paths if not any(part.startswith(("_", ".")) for part in p[len(base) :].split("/"))]


def _file(uri: str, info: dict[str, Any]) -> File:
    stem = uri.lower()
    for packed in PACKED:
        stem = stem.removesuffix(packed)
    kind = next((kind for ending, kind in _KINDS.items() if stem.endswith(ending)), None)
    if kind is None or (kind == "parquet" and stem != uri.lower()):
        raise BadFileError(f"{uri} is not Parquet, JSONL or CSV by its name; expected .parquet, .jsonl or .csv")
    version = str(info.get("ETag") or info.get("mtime") or "").strip('"')
    return File(uri, kind, int(info["size"]), version)


def _ranges(file: File, documents: int, data: DataSettings) -> Iterator[tuple[int, int, int | None]]:
    """Rows from and to; or bytes from and to and about how many lines they hold."""
    with reading(file.uri):
        if file.kind == "parquet":
            for start, stop in _parquet_ranges(file, documents, data):
                yield start, stop, None
        elif file.kind == "jsonl" and codec_of(file.uri) is None:
            yield from _line_ranges(file, documents)
        else:
            rows = count_rows(file.uri, file.kind, data)
            for start in range(0, rows, documents):
                yield start, min(start + documents, rows), None


def _parquet_ranges(file: File, documents: int, data: DataSettings) -> Iterator[tuple[int, int]]:
    """Neighbouring row groups together while they fit; a larger one in equal parts."""
    start = stop = 0
    for rows in parquet_groups(file.uri, data):
        if stop > start and stop - start + rows > documents:
            yield start, stop
            start = stop
        stop += rows
        parts = -(-(stop - start) // documents)
        if parts > 1:
            edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
            yield from pairwise(edges)
            start = stop
    if stop > start:
        yield start, stop


def _line_ranges(file: File, documents: int) -> Iterator[tuple[int, int, int]]:
    """Byte ranges of about so many lines by the length of the first ones, each ending at a line end, and how many."""
    if file.size == 0:
        return
    fs, path = open_filesystem(file.uri)
    sample = fs.cat_file(path, start=0, end=min(_SAMPLE, file.size))
    lines = max(1, sample.count(b"\n"))
    step = max(1, documents * len(sample) // lines)
    start = 0
    while start < file.size:
        stop = _line_end(fs, path, min(start + step, file.size), file.size)
        yield start, stop, -(-(stop - start) * lines // len(sample))
        start = stop


def _line_end(fs: Any, path: str, near: int, size: int) -> int:
    """The first line end at or after a position."""
    while near < size:
        piece = fs.cat_file(path, start=near - 1, end=min(near + (1 << 16), size))
        at = piece.find(b"\n")
        if at >= 0:
            return int(near + at)
        near = min(near + (1 << 16), size)
    return size
