"""Divide input files into shards of about equal numbers of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pipelines.data.input_files import InputFile
from pipelines.data.readers import Shard, compression_codec, count_rows, parquet_groups, reading
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import open_filesystem, store_errors
from spin.settings import DataSettings

_SAMPLE = 1 << 20
"""bytes from which the length of a line is told"""


def plan_shards(
    files: Sequence[InputFile], documents: int, data: DataSettings, *, bad: dict[str, str] | None = None
) -> list[Shard]:
    """Divide files into shards of about `documents` rows: a pure function of the files and the settings.

    Parquet divides at row groups where they are small enough, plain JSONL at line ends by bytes, CSV and compressed
    JSONL by rows, for which they are read once here. Raises BadFileError for a file that cannot be read or lacks a
    column; where `bad` is given, such files are left out and it takes in their URIs, with the reason.
    """
    ranges: list[tuple[InputFile, int, int, int | None]] = []
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


def split_shard(shard: Shard, documents: int) -> Iterator[Shard]:
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


def _ranges(file: InputFile, documents: int, data: DataSettings) -> Iterator[tuple[int, int, int | None]]:
    """Rows from and to; or bytes from and to and about how many lines they hold."""
    with reading(file.uri):
        if file.kind == "parquet":
            for start, stop in _parquet_ranges(file, documents, data):
                yield start, stop, None
        elif file.kind == "jsonl" and compression_codec(file.uri) is None:
            yield from _line_ranges(file, documents)
        else:
            rows = count_rows(file.uri, file.kind, data)
            for start in range(0, rows, documents):
                yield start, min(start + documents, rows), None


def _parquet_ranges(file: InputFile, documents: int, data: DataSettings) -> Iterator[tuple[int, int]]:
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


def _line_ranges(file: InputFile, documents: int) -> Iterator[tuple[int, int, int]]:
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
