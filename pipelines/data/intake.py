"""The intake of a night: every file is read once and checked, before anything is classified.

`plan_intake` divides the listed files into tasks without reading any. `take_in` does one task: it spools small, CSV
and compressed files, reads the ids of large Parquet and JSONL files, and reports what it read. `plan_night` makes the
shards of the night from the reports. All of this is free of Ray; a step of the nightly job calls it.

A file of the input is good or bad as a whole: where a part of it cannot be read, none of its rows is classified.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

from pipelines.data.files import formats
from pipelines.data.files.formats import MAX_BYTES, compression_codec
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.kept_columns import (
    keep_column,
    merge_types,
    settle_types,
    type_text,
    types_of,
)
from pipelines.data.files.readers import (
    ID_AND_TEXT,
    IDS,
    check_parquet_columns,
    file_errors,
    opener_of,
    parse_lines,
    read_parquet,
    read_piece,
)
from pipelines.data.files.shards import LEAST_DOCUMENTS, Piece, Shard, even_size
from pipelines.data.forgotten_ids import NOTHING_FORGOTTEN, ForgottenIds
from pipelines.data.spool import SPOOL, PartSize, ReadyPiece, Save, SpoolWriter, check_rows, find_dead_rows
from pipelines.service_errors import BadFileError, KeptTypeError
from pipelines.storage.filesystem import PARALLEL_REQUESTS
from pipelines.storage.input_opener import InputOpener
from spin.settings import DataSettings

SMALL = 8_000_000
"""bytes below which a file is read whole and spooled, whatever its format"""
_GROUP_FILES = 500
"""most small files per task"""
_WINDOW = {"jsonl": 4 * MAX_BYTES, "parquet": 8 * MAX_BYTES}
"""bytes of a large file per task"""
_LINES = 1000
"""lines that are parsed at a time"""


@dataclass(frozen=True)
class FileOutcome:
    """What the intake found in an input file, or in the part of it that a task reads."""

    uri: str
    size: int
    """bytes of the whole file"""
    version: str
    """ETag, or modification time on a disk"""
    rows: int
    """number of rows; an estimate for large JSONL files with trusted ids"""
    reason: str | None = None
    """why none of its rows is classified, None if they are"""


@dataclass(frozen=True)
class IntakeReport:
    """What a task of the intake read."""

    files: tuple[FileOutcome, ...]
    """in the order of the task"""
    pieces: tuple[ReadyPiece, ...]
    """to classify, in the order of their rows"""
    types: Mapping[str, str]
    """types of the kept columns by name, see `kept_columns`; no entry for a column that no file has"""
    conflict: str | None = None
    """why the files cannot be part of one night, of a kept column with two types; the report then holds nothing else"""


@dataclass(frozen=True)
class PartKey:
    """The place of a `SpoolPart`."""

    task: int
    """index of its task"""
    part: int
    """its number in the task"""


@dataclass(frozen=True)
class NightPlan:
    """The shards of a night."""

    shards: tuple[Shard, ...]
    parts: tuple[tuple[PartKey, ...], ...]
    """by shard, for each of its pieces the part that holds its ids, in the same order"""
    files: tuple[FileOutcome, ...]
    """every file once, in the order of the tasks"""
    types: Mapping[str, str]
    """the kept columns by name, each with its type as text"""

    def with_tasks(self, tasks: Container[int]) -> NightPlan:
        """The plan of what some tasks of the intake have read: all shards, of which those of other tasks are empty."""
        taken = [any(key.task in tasks for key in keys) for keys in self.parts]
        shards = (shard if own else replace(shard, pieces=()) for shard, own in zip(self.shards, taken, strict=True))
        parts = (keys if own else () for keys, own in zip(self.parts, taken, strict=True))
        return replace(self, shards=tuple(shards), parts=tuple(parts))


def plan_intake(files: Sequence[InputFile], data: DataSettings, *, bad: dict[str, str]) -> list[Shard]:
    """The tasks of the intake: a pure function of the listing and the settings.

    Small files are joined to tasks of about 64 MB, a large CSV or compressed file is a task of its own, and a large
    Parquet or JSONL file is divided by bytes. Empty files are added to `bad` with the reason.
    """
    tasks: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    grouped = 0
    for file in files:
        whole = Piece(file.uri, file.kind, 0, file.size, by_bytes=True, size=file.size, version=file.version)
        if not file.size:
            bad[file.uri] = formats.empty_file(file.uri).reason
        elif file.size < SMALL:
            if group and (len(group) == _GROUP_FILES or grouped + file.size > MAX_BYTES):
                tasks.append(tuple(group))
                group, grouped = [], 0
            group.append(whole)
            grouped += file.size
        else:
            tasks += [(window,) for window in _windows(whole)]
    if group:
        tasks.append(tuple(group))
    return [Shard(n, pieces) for n, pieces in enumerate(tasks)]


def is_spooled(file: InputFile) -> bool:
    """Whether all rows of a file go to the spool, whatever it holds."""
    return file.size < SMALL or file.kind not in _WINDOW or compression_codec(file.uri) is not None


def _windows(file: Piece) -> Iterator[Piece]:
    """A large file in ranges of bytes; each holds the lines or row groups that begin in it."""
    step = _WINDOW.get(file.kind, file.size) if compression_codec(file.uri) is None else file.size
    for start in range(0, file.size, step):
        yield replace(file, start=start, stop=min(start + step, file.size))


def take_in(
    task: Shard, data: DataSettings, size: PartSize, save: Save, forgotten: ForgottenIds = NOTHING_FORGOTTEN
) -> IntakeReport:
    """Read and check the files of a task, and save its parts, each of about a size and at most 64 MB of text.

    With trusted ids those of large files are not read. Memory is bounded whatever the files hold. A part of a file that
    turns out to be bad later may be saved and does not appear in the report. If a kept column has two types in the
    files of the task, the report names that alone: of several models, only those that take these files have no night.
    """
    spool = SpoolWriter(size, save, forgotten)
    outcomes = []
    with _open_all(task.pieces) as opened:
        for piece, open_file in opened:
            try:
                rows = _take_file(piece, open_file, data, size, spool)
            except BadFileError as error:
                spool.reject()
                outcomes.append(FileOutcome(piece.uri, piece.size, piece.version, 0, error.reason))
            else:
                try:
                    spool.accept(piece.uri)
                except KeptTypeError as error:
                    return IntakeReport((), (), {}, conflict=str(error))
                outcomes.append(FileOutcome(piece.uri, piece.size, piece.version, rows))
    spool.finish()
    return IntakeReport(tuple(outcomes), tuple(spool.ready), spool.types)


def plan_night(
    reports: Sequence[IntakeReport],
    data: DataSettings,
    documents: int,
    *,
    known: Mapping[str, str] | None = None,
    groups: Sequence[int] | None = None,
    typed: Container[int] | None = None,
    describe_columns: Callable[[str], str] = lambda uri: "",
) -> NightPlan:
    """The shards of a night from the reports of all tasks, in their order: a pure function.

    Parts of the spool are joined while they are worth at most `documents`, fewer where all are few, and 64 MB; a piece
    of a large file is a shard of its own. A file that is bad in one task is left out of all. `known` are the types of
    kept columns in the table that the night is written to. `groups` holds a number for each task, by default the same
    for all: no shard has parts of tasks with different numbers. `typed` are the tasks whose files settle the types, by
    default all; the shards are the same whatever these are. `describe_columns` lists the columns of a file, by URI, for
    a message. Raises KeptTypeError if a kept column has two types, UserError if it is in no file.
    """
    files: dict[str, FileOutcome] = {}
    types: dict[str, str] = {}
    for task, report in enumerate(reports):
        for file in report.files:
            before = files.get(file.uri, replace(file, rows=0, reason=None))
            files[file.uri] = replace(file, rows=before.rows + file.rows, reason=before.reason or file.reason)
        if typed is None or task in typed:
            if report.conflict is not None:
                raise KeptTypeError(report.conflict)
            types = merge_types(types, report.types, "data.keep")
    files = {uri: replace(file, rows=0) if file.reason else file for uri, file in files.items()}
    bad = {uri for uri, file in files.items() if file.reason}
    shards: list[list[tuple[PartKey, ReadyPiece]]] = []
    documents = even_size(sum(file.rows for file in files.values()), documents)
    for task, report in enumerate(reports):
        for ready in report.pieces:
            if ready.piece.uri in bad or not bad.isdisjoint(_origins(report, ready)):
                continue
            apart = groups is not None and bool(shards) and groups[shards[-1][0][0].task] != groups[task]
            if not shards or apart or not _fits(shards[-1], ready, documents):
                shards.append([])
            shards[-1].append((PartKey(task, ready.part), ready))
    unreadable = [file.reason for file in files.values() if file.reason]
    kept = settle_types(
        data,
        types,
        any_rows=bool(shards),
        known=known,
        unreadable=unreadable,
        describe_columns=lambda: describe_columns(next(uri for uri, file in files.items() if file.rows)),
    )
    return NightPlan(
        tuple(Shard(n, tuple(ready.piece for _, ready in shard)) for n, shard in enumerate(shards)),
        tuple(tuple(key for key, _ in shard) for shard in shards),
        tuple(files.values()),
        {field.name: type_text(field.type) for field in kept},
    )


def _origins(report: IntakeReport, ready: ReadyPiece) -> list[str]:
    """The file of a part of the spool if its task reads a window of one large file, which another task may find bad."""
    return [report.files[0].uri] if ready.piece.kind == SPOOL and len(report.files) == 1 else []


def _fits(shard: Sequence[tuple[PartKey, ReadyPiece]], ready: ReadyPiece, documents: int) -> bool:
    """Whether a part of the spool may join a shard of others."""
    pieces = [other for _, other in shard] + [ready]
    return (
        all(other.piece.kind == SPOOL for other in pieces)
        and sum(other.piece.documents for other in pieces) <= documents
        and sum(other.bytes for other in pieces) <= MAX_BYTES
    )


@contextmanager
def _open_all(pieces: Sequence[Piece]) -> Iterator[Iterator[tuple[Piece, Callable[[], BinaryIO]]]]:
    """The pieces in order, each with a function that opens its file; several small files are requested at a time."""
    opener = InputOpener()
    if len(pieces) == 1:
        yield iter([(pieces[0], opener_of(pieces[0], opener))])
        return
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as readers:
        requests = {
            piece: readers.submit(opener.read, piece.uri, size=piece.size, version=piece.version) for piece in pieces
        }
        try:
            yield ((piece, _opened(requests, piece)) for piece in pieces)
        finally:
            readers.shutdown(cancel_futures=True)


def _opened(requests: dict[Piece, Future[bytes]], piece: Piece) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(requests.pop(piece).result())


def _take_file(
    piece: Piece, open_file: Callable[[], BinaryIO], data: DataSettings, size: PartSize, spool: SpoolWriter
) -> int:
    """Add the rows of a piece to the spool, or its ranges; return their number."""
    if piece.size >= SMALL and compression_codec(piece.uri) is None and piece.kind in _WINDOW:
        with file_errors(piece.uri), open_file() as source:
            if piece.kind == "parquet":
                return _ParquetIntake(source, piece, data, size, spool).run()
            take = _plan_lines if data.ids == "trusted" else _take_lines
            return take(piece, source, data, size, spool)
    rows = 0
    for part in read_piece(piece, data, open_file, keep=True):
        spool.add(check_rows(part, piece.uri, 0, rows))
        rows += len(part)
    return rows


class _ParquetIntake:
    """A window of a large Parquet file, whose row groups become pieces, or which is spooled.

    A file with a row group that is too large for a shard is spooled whole, so that no file is read in both ways: if it
    changes before it is classified, either all of its rows are left out or none.
    """

    def __init__(self, source: BinaryIO, piece: Piece, data: DataSettings, size: PartSize, spool: SpoolWriter) -> None:
        self.source, self.piece, self.data, self.size, self.spool = source, piece, data, size, spool
        self.parquet = formats.open_parquet(source)
        check_parquet_columns(self.parquet, piece.uri, data, ID_AND_TEXT)
        self.types = self._kept_types()
        double = PartSize(2 * size.documents)
        self.spooled = not all(self._fits([group], double) for group in range(self.parquet.num_row_groups))

    def run(self) -> int:
        """Take the row groups that begin in the window; return the number of their rows."""
        starts, metadata = formats.group_starts(self.parquet), self.parquet.metadata
        first = sum(metadata.row_group(n).num_rows for n, start in enumerate(starts) if start < self.piece.start)
        groups = [n for n, start in enumerate(starts) if self.piece.start <= start < self.piece.stop]
        adjacent: list[int] = []
        for group in groups:
            if adjacent and not self._fits([*adjacent, group], self.size):
                first += self._take(adjacent, first)
                adjacent = []
            adjacent.append(group)
        self._take(adjacent, first)
        return self._rows(groups)

    def _kept_types(self) -> dict[str, str]:
        """The types of the kept columns that the file has. Raises BadFileError if the output has no such type."""
        schema, uri = self.parquet.schema_arrow, self.piece.uri
        names = [name for name in self.data.keep if name in schema.names]
        formats.check_columns(schema.names, names, uri)
        empty = schema.empty_table()
        return {name: type_text(keep_column(empty[name], name, self.data.keep[name], uri).type) for name in names}

    def _rows(self, groups: Sequence[int]) -> int:
        return sum(self.parquet.metadata.row_group(group).num_rows for group in groups)

    def _text_bytes(self, groups: Sequence[int]) -> int:
        return formats.uncompressed_bytes(self.parquet, (self.data.text,), groups)

    def _fits(self, groups: Sequence[int], size: PartSize) -> bool:
        return size.fits(self._rows(groups), self._text_bytes(groups))

    def _take(self, groups: Sequence[int], first: int) -> int:
        """Read the ids of row groups, the first of which begins at a row, or stream their rows into the spool."""
        if not (rows := self._rows(groups)):
            return 0
        piece = replace(self.piece, start=first, stop=first + rows, by_bytes=False, documents=rows)
        if not self.spooled:
            ids: list[str | None] = []
            if self.data.ids == "checked":
                for part in read_parquet(self.parquet, piece, self.data, columns=IDS, keep=False):
                    ids += part.ids
            self.spool.add_piece(piece, ids, self._text_bytes(groups), self.types)
            return rows
        row = first
        with formats.open_parquet(self.source, stream=True, metadata=self.parquet.metadata) as parquet:
            for part in read_parquet(parquet, piece, self.data, columns=ID_AND_TEXT, keep=True, stream=True):
                self.spool.add(check_rows(part, piece.uri, 0, row))
                row += len(part)
        return rows


def _take_lines(piece: Piece, source: BinaryIO, data: DataSettings, size: PartSize, spool: SpoolWriter) -> int:
    """Read a window of lines and add ranges of bytes that have at most a size each."""
    rows = 0
    lines = formats.read_lines_between(source, piece.uri, piece.start, piece.stop, formats.BLOCK)
    for group in _group_lines(lines, size):
        start, stop = group[0][0], group[-1][0] + len(group[-1][1])
        ids: list[str | None] = []
        types: dict[str, str] = {}
        for at in range(0, len(group), _LINES):
            chunk = [line for _, line in group[at : at + _LINES]]
            part = parse_lines(chunk, piece.uri, data, columns=ID_AND_TEXT, keep=True)
            dead = find_dead_rows(part)
            ids += [None if row in dead else id for row, id in enumerate(part.ids)]
            if part.kept is not None:
                types = merge_types(types, types_of([part.kept]), piece.uri)
        rows += len(group)
        spool.add_piece(replace(piece, start=start, stop=stop, documents=len(group)), ids, stop - start, types)
    return rows


def _group_lines(lines: Iterator[tuple[int, bytes]], size: PartSize) -> Iterator[list[tuple[int, bytes]]]:
    """Lines with their positions, in lists of bounded length and bytes."""
    group: list[tuple[int, bytes]] = []
    for position, line in lines:
        if group and not size.fits(len(group) + 1, position + len(line) - group[0][0]):
            yield group
            group = []
        group.append((position, line))
    if group:
        yield group


def _plan_lines(piece: Piece, source: BinaryIO, data: DataSettings, size: PartSize, spool: SpoolWriter) -> int:
    """Add ranges of bytes of about a size, by the mean length of lines."""
    length, mean = piece.stop - piece.start, formats.mean_line_bytes(source, piece.start, piece.stop)
    most = min(MAX_BYTES, size.documents * mean, max(size.even_bytes, LEAST_DOCUMENTS * mean))
    parts = max(1, math.ceil(length / max(1, most)))
    types = {name: declared or "string" for name, declared in data.keep.items()}
    edges = [piece.start + length * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(edges):
        estimate = round((stop - start) / mean)
        spool.add_piece(replace(piece, start=start, stop=stop, documents=estimate), (), stop - start, types)
    return round(length / mean)
