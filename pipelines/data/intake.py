"""The intake: every input file is read once, checked and spooled, before anything is classified or learned.

`plan_intake` divides the listed files into tasks without reading any. `take_in` does one task of a night: it spools
the rows and reports what it read. `plan_night` makes the shards of the night from the reports. All of this is free of
Ray; a step of the nightly job calls it. `LabelledCorpus` takes the corpus of a training in.

A file of a night is good or bad as a whole: where a part of it cannot be read, none of its rows is classified.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from pipelines.data.files import formats
from pipelines.data.files.formats import MAX_BYTES
from pipelines.data.files.input_files import InputFile
from pipelines.data.files.kept_columns import merge_types, settle_types, type_text, without_kept
from pipelines.data.files.reader import Documents, Role
from pipelines.data.files.reader_process import read_pieces
from pipelines.data.files.readers import reader_of
from pipelines.data.files.shards import Piece, Shard, even_size
from pipelines.data.forgotten_ids import NOTHING_FORGOTTEN, ForgottenIds
from pipelines.data.spool import PartSize, ReadyPiece, Save, SpoolWriter, check_rows, find_dead_rows
from pipelines.service_errors import BadFileError, KeptTypeError
from spin.settings import DataSettings

SMALL = 8_000_000
"""bytes below which a file is read whole, whatever its format"""
_GROUP_FILES = 500
"""most small files per task"""


@dataclass(frozen=True)
class FileOutcome:
    """The findings of the intake in an input file, or in the part of it that a task reads."""

    uri: str
    size: int
    """bytes of the whole file"""
    version: str
    """ETag, or modification time on a disk"""
    rows: int
    """number of rows"""
    reason: str | None = None
    """why none of its rows is classified, None if they are"""


@dataclass(frozen=True)
class IntakeReport:
    """The report of an intake task on what it read."""

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
    """by shard, the place of each of its pieces, in the same order"""
    files: tuple[FileOutcome, ...]
    """every file once, in the order of the tasks"""
    types: Mapping[str, str]
    """the kept columns by name, each with its type as text"""

    def with_tasks(self, tasks: Container[int]) -> NightPlan:
        """The plan with the shards of some tasks of the intake alone, which keep their indices."""
        taken = [any(key.task in tasks for key in keys) for keys in self.parts]
        return replace(self, shards=tuple(compress(self.shards, taken)), parts=tuple(compress(self.parts, taken)))


def plan_intake(files: Sequence[InputFile], *, bad: dict[str, str] | None = None) -> list[Shard]:
    """The tasks of the intake: a pure function of the listing.

    Small files are joined to tasks of about 64 MB, and a large file is divided as its format allows. Raises
    BadFileError for an empty file; if `bad` is given, such files are added to it, each with the reason.
    """
    tasks: list[tuple[Piece, ...]] = []
    group: list[Piece] = []
    grouped = 0
    for file in files:
        whole = file.whole
        if not file.size:
            if bad is None:
                raise formats.empty_file(file.uri)
            bad[file.uri] = formats.empty_file(file.uri).reason
        elif file.size < SMALL:
            if group and (len(group) == _GROUP_FILES or grouped + file.size > MAX_BYTES):
                tasks.append(tuple(group))
                group, grouped = [], 0
            group.append(whole)
            grouped += file.size
        else:
            ranges = reader_of(whole).divide(file.uri, file.size)
            tasks += [(replace(whole, start=start, stop=stop),) for start, stop in ranges]
    if group:
        tasks.append(tuple(group))
    return [Shard(n, pieces) for n, pieces in enumerate(tasks)]


def take_in(
    task: Shard, data: DataSettings, size: PartSize, save: Save, forgotten: ForgottenIds = NOTHING_FORGOTTEN
) -> IntakeReport:
    """Read and check the files of a task, and save its parts, each of about a size and at most 64 MB of text.

    Memory is bounded whatever the files hold. A part of a file that turns out to be bad later may be saved and does not
    appear in the report. If a kept column has two types in the files of the task, the report names that alone: of
    several models, only those that take these files have no night.
    """
    spool = SpoolWriter(size, save, forgotten)
    outcomes = []
    for piece, parts in read_pieces(task.pieces, data):
        rows = 0
        try:
            for documents in parts:
                spool.add(check_rows(documents, piece.uri))
                rows += len(documents)
        except BadFileError as error:
            # guarded by test_none_of_the_rows_of_a_bad_file_is_taken; broken by:
            #   spool.accept(piece.uri)
            spool.reject()
            outcomes.append(FileOutcome(piece.uri, piece.size, piece.version, 0, error.reason))
        else:
            try:
                spool.accept(piece.uri)
            except KeptTypeError as error:
                return IntakeReport((), (), {}, conflict=str(error))
            outcomes.append(FileOutcome(piece.uri, piece.size, piece.version, rows))
    spool.flush()
    return IntakeReport(tuple(outcomes), tuple(spool.ready), spool.types)


def plan_night(
    reports: Sequence[IntakeReport],
    data: DataSettings,
    documents: int,
    *,
    known: Mapping[str, str] | None = None,
    groups: Sequence[object] | None = None,
    typed: Container[int] | None = None,
    describe_columns: Callable[[str], str] = lambda uri: "",
) -> NightPlan:
    """The shards of a night from the reports of all tasks, in their order: a pure function.

    Parts of the spool are joined to shards, see `join_parts`. A file that is bad in one task is left out of all.
    `known` are the types of kept columns in the table that the night is written to. `typed` are the tasks whose files
    settle the types, by default all; the shards are the same whatever these are. `describe_columns` lists the columns
    of a file, by URI, for a message. Raises KeptTypeError if a kept column has two types, UserError if it is in no
    file.
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
    sound = [
        (PartKey(task, ready.part), ready)
        for task, report in enumerate(reports)
        # guarded by test_a_file_that_is_bad_in_one_window_is_left_out_of_all; broken by:
        #   if True
        if not (len(report.files) == 1 and report.files[0].uri in bad)  # it may have read a part of a large file
        for ready in report.pieces
    ]
    shards = join_parts(sound, even_size(sum(file.rows for file in files.values()), documents), groups)
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


def join_parts(
    parts: Sequence[tuple[PartKey, ReadyPiece]], documents: int, groups: Sequence[object] | None = None
) -> list[list[tuple[PartKey, ReadyPiece]]]:
    """Parts that follow one another, by shard: as many as have at most so many documents and 64 MB together.

    `groups` holds a value for each task: no shard has parts of tasks with different values.
    """
    shards: list[list[tuple[PartKey, ReadyPiece]]] = []
    for key, ready in parts:
        apart = groups is not None and bool(shards) and groups[shards[-1][0][0].task] != groups[key.task]
        # guarded by test_incremental_is_asked_per_model; broken by:
        #   if not shards or not _fits([other for _, other in shards[-1]], ready, documents):
        if not shards or apart or not _fits([other for _, other in shards[-1]], ready, documents):
            shards.append([])
        shards[-1].append((key, ready))
    return shards


def _fits(shard: Sequence[ReadyPiece], ready: ReadyPiece, documents: int) -> bool:
    """Whether a part of the spool may join a shard of others."""
    parts = [*shard, ready]
    return sum(part.piece.documents for part in parts) <= documents and sum(part.bytes for part in parts) <= MAX_BYTES


def read_files(files: Sequence[InputFile], data: DataSettings, columns: Collection[Role]) -> Iterator[Documents]:
    """Some columns of input files in order, some rows at a time. Raises BadFileError for a file that cannot be read."""
    data = without_kept(data)
    for task in plan_intake(files):
        for _, parts in read_pieces(task.pieces, data, columns):
            yield from parts


def find_documents(documents: Iterable[Documents], ids: Collection[str]) -> Iterator[tuple[str, str, str | None]]:
    """The ids, texts and groups of the first row with each of some ids that is no dead letter.

    Ends when all are found.
    """
    waiting = set(ids)
    for part in documents if waiting else ():
        dead = find_dead_rows(part)
        for row, (id, text, group) in enumerate(zip(part.ids, part.texts, part.groups, strict=True)):
            if id is not None and id in waiting and row not in dead:
                waiting.discard(id)
                yield id, text, group
        if not waiting:
            return
