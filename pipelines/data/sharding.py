"""Divide input files into shards of about equal numbers of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from pipelines.data.input_files import InputFile
from pipelines.data.readers import compression_codec, count_rows, file_errors, row_group_sizes
from pipelines.data.shards import Piece, Shard
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import open_input, store_errors
from spin.settings import DataSettings

_SAMPLE = 1 << 20
"""bytes at the beginning of a file that the mean length of a line is taken from"""


def plan_shards(
    files: Sequence[InputFile], documents: int, data: DataSettings, *, bad: dict[str, str] | None = None
) -> list[Shard]:
    """Divide files into shards of about `documents` rows: a pure function of the files and the settings.

    Parquet is divided at row groups where they are small enough, plain JSONL at line ends by bytes, CSV and compressed
    JSONL by rows, which requires to read them once. Raises BadFileError for a file that cannot be read or lacks a
    column; if `bad` is given, such files are left out and their URIs are added to it, each with the reason.
    """
    pieces: list[Piece] = []
    for file in files:
        try:
            pieces += [_piece(file, *bounds) for bounds in _ranges(file, documents, data)]
        except BadFileError as error:
            if bad is None:
                raise
            bad[file.uri] = str(error)
    return [Shard(n, (piece,)) for n, piece in enumerate(pieces)]


def _piece(file: InputFile, start: int, stop: int, lines: int | None) -> Piece:
    """A range of rows, or of bytes with the estimated number of lines."""
    return Piece(file.uri, file.kind, start, stop, lines is not None, stop - start if lines is None else lines)


def split_shard(shard: Shard, documents: int) -> Iterator[Shard]:
    """The shard in equal parts of about `documents` documents at most; each has the index of the shard."""
    for piece in shard.pieces:
        for part in _split_piece(piece, documents):
            yield Shard(shard.index, (part,))


def _split_piece(piece: Piece, documents: int) -> Iterator[Piece]:
    parts = max(1, -(-piece.documents // documents))
    start = piece.start
    for part in range(1, parts + 1):
        stop = piece.start + (piece.stop - piece.start) * part // parts
        if piece.by_bytes and stop < piece.stop:
            fs, path = open_input(piece.uri)
            with store_errors(piece.uri):
                stop = _line_end(fs, path, max(stop, start + 1), piece.stop)
        if start < stop:
            yield replace(piece, start=start, stop=stop, documents=-(-piece.documents // parts))
        start = stop


def _ranges(file: InputFile, documents: int, data: DataSettings) -> Iterator[tuple[int, int, int | None]]:
    """Ranges of rows (start, stop, None), or of bytes with the estimated number of lines (start, stop, lines)."""
    with file_errors(file.uri):
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
    """Ranges of rows: adjacent row groups are joined while they fit, a larger one is divided into equal parts."""
    start = stop = 0
    for rows in row_group_sizes(file.uri, data):
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
    """Ranges of bytes that end at line ends, and the number of lines in each, estimated from the first lines."""
    if file.size == 0:
        return
    fs, path = open_input(file.uri)
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
