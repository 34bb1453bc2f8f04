"""Divide input files into shards of about equal numbers of documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import BinaryIO

from pipelines.data.files.formats import MAX_BYTES, compression_codec, empty_file, mean_line_bytes
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.readers import count_rows, file_errors, opener_of, row_group_sizes
from pipelines.data.files.shards import Piece, Shard
from pipelines.service_errors import BadFileError
from pipelines.storage.input_opener import InputOpener
from spin.settings import DataSettings

_LINE_END = 1 << 16
"""bytes per request in search of the end of a line"""


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
    return Piece(
        file.uri,
        file.kind,
        start,
        stop,
        by_bytes=lines is not None,
        documents=stop - start if lines is None else lines,
        size=file.size,
        version=file.version,
    )


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
            with file_errors(piece.uri), opener_of(piece, InputOpener())() as source:
                stop = _line_end(source, max(stop, start + 1), piece.stop)
        if start < stop:
            yield replace(piece, start=start, stop=stop, documents=-(-piece.documents // parts))
        start = stop


def _ranges(file: InputFile, documents: int, data: DataSettings) -> Iterator[tuple[int, int, int | None]]:
    """Ranges of rows (start, stop, None), or of bytes with the estimated number of lines (start, stop, lines)."""
    if not file.size:
        raise empty_file(file.uri)
    with file_errors(file.uri), InputOpener().open(file.uri, size=file.size, version=file.version) as source:
        if file.kind == "parquet":
            for start, stop in _row_ranges(row_group_sizes(source, file.uri, data), documents):
                yield start, stop, None
        elif file.kind == "jsonl" and compression_codec(file.uri) is None:
            yield from _line_ranges(source, file.size, documents)
        else:
            rows = count_rows(source, file.uri, file.kind, data)
            for start in range(0, rows, documents):
                yield start, min(start + documents, rows), None


def _row_ranges(row_groups: Sequence[int], documents: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows: adjacent row groups are joined while they fit, a larger one is divided into equal parts."""
    start = stop = 0
    for rows in row_groups:
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


def _line_ranges(source: BinaryIO, size: int, documents: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of bytes that end at line ends, of at most about 64 MB, and the estimated number of lines in each."""
    mean = mean_line_bytes(source, 0, size)
    step = max(1, int(min(MAX_BYTES, documents * mean)))
    start = 0
    while start < size:
        stop = _line_end(source, min(start + step, size), size)
        yield start, stop, math.ceil(round((stop - start) / mean, 6))
        start = stop


def _line_end(source: BinaryIO, near: int, size: int) -> int:
    """The first line end at or after a position."""
    while near < size:
        source.seek(near - 1)
        piece = source.read(min(1 + _LINE_END, size - near + 1))
        at = piece.find(b"\n")
        if at >= 0:
            return near + at
        near = min(near + _LINE_END, size)
    return size
