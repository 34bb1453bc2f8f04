"""The shard log of a run: how often each shard was tried, and what each committed shard holds.

Three records describe a shard. A step returns a `StepResult`: files and counts. The counts are a record of the stage,
a frozen subclass of `ShardCounts` defined next to the step. The log adds how the files were written and keeps all of it
as a `ShardOutcome`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """The counts of a stage in one shard. Each stage has a frozen subclass with its own fields, all JSON values.

    The fields stand at the top level of the shard's `parts/NAME.json`, so their names may not be `tries`, `seconds`,
    `ended` or `files`. A field that is None is left out there.
    """

    rows: int
    """documents read"""

    @property
    def dead_letters(self) -> int:
        """Documents that ended as dead letters, for the progress bar."""
        return 0


C = TypeVar("C", bound=ShardCounts)


@dataclass(frozen=True)
class StepResult(Generic[C]):
    """The result of a step for one shard. The same shard always gives the same bytes."""

    files: Mapping[str, bytes]
    """contents by file-name ending: `parquet` is written to `parts/NAME.parquet`"""
    counts: C


@dataclass(frozen=True)
class CommittedFile:
    """A file of a committed shard."""

    bytes: int
    """its size"""
    sha256: str
    """of its content, in hexadecimal digits"""


@dataclass(frozen=True)
class ShardOutcome(Generic[C]):
    """A committed shard: the step's counts, its files, and when and how they were computed."""

    counts: C
    files: Mapping[str, CommittedFile]
    """by key in the run's store"""
    tries: int
    """how often the shard was tried, the last time included"""
    seconds: float
    """that the last try took"""
    ended: float
    """time of the commit, in seconds since 1970"""

    def to_json(self) -> dict[str, Any]:
        """The content of `parts/NAME.json`."""
        log = {"tries": self.tries, "seconds": self.seconds, "ended": self.ended}
        return {**to_json(self.counts), **log, "files": {key: to_json(file) for key, file in self.files.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], counts_type: type[C]) -> ShardOutcome[C]:
        """The outcome of a shard whose step counts `counts_type`."""
        return cls(
            counts=from_json(counts_type, value),
            files={key: from_json(CommittedFile, file) for key, file in value["files"].items()},
            tries=value["tries"],
            seconds=value["seconds"],
            ended=value["ended"],
        )


class _OutcomeJson:
    """Makes pydantic read and write an outcome by `from_json` and `to_json`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        [counts_type] = get_args(source)
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, ShardOutcome) else ShardOutcome.from_json(value, counts_type),
            serialization=core_schema.plain_serializer_function_ser_schema(ShardOutcome.to_json),
        )


StoredOutcome = Annotated[ShardOutcome[C], _OutcomeJson()]
"""the type of an outcome in another record, such as a manifest"""


@dataclass(frozen=True)
class AttemptNote:
    """The notes of one try at a shard for the next one, in case its process is killed."""

    deadly: tuple[tuple[int, int], ...] = ()
    """first and last row of every piece during which a process was killed"""
    trying: tuple[int, int] | None = None
    """first and last row of the piece that is being computed, None between pieces"""


class Attempt:
    """One try at a shard, and what earlier tries have written down."""

    def __init__(self, store: Store, name: str, *, begun: int = 1, ended: int = 0, note: AttemptNote | None = None):
        self._store, self._name = store, name
        self.begun = begun
        """tries so far, this one included"""
        self.ended = ended
        """how many of them raised an error; a try that neither raised nor committed was killed"""
        self.note = note
        """the last note of an earlier try or of this one, None if there is none"""

    @property
    def crashes(self) -> int:
        """Earlier tries whose process was killed."""
        return self.begun - 1 - self.ended

    def write_note(self, note: AttemptNote) -> None:
        """Store a note that outlives this process."""
        self.note = note
        self._write()

    def _write(self) -> None:
        note = {} if self.note is None else to_json(self.note)
        self._store.write_json(_attempt_key(self._name), {"begun": self.begun, "ended": self.ended, "note": note})

    def _end_with_error(self) -> None:
        self.ended += 1
        self._write()

    @classmethod
    def _next(cls, store: Store, name: str) -> Attempt:
        """The try that follows those in the store."""
        stored = store.read_json(_attempt_key(name)) or {"begun": 0, "ended": 0, "note": {}}
        note = from_json(AttemptNote, stored["note"]) if stored["note"] else None
        return cls(store, name, begun=stored["begun"] + 1, ended=stored["ended"], note=note)


class ShardLog:
    """The log of a run's shards in its store: files and outcomes under `parts/`, tries under `attempts/`.

    A shard is committed by `parts/NAME.json`, which is written after the shard's files and names them with their
    digests. A shard without it is computed again and writes the same keys.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @contextmanager
    def attempt(self, name: str) -> Iterator[Attempt]:
        """Count a try at a shard before it starts, so that a try whose process is killed has been counted."""
        attempt = Attempt._next(self.store, name)
        attempt._write()
        try:
            yield attempt
        except (Exception, KeyboardInterrupt):  # an interrupted run is not a crash of the shard's process
            attempt._end_with_error()
            raise

    def commit(self, name: str, result: StepResult[C], *, tries: int, seconds: float, ended: float) -> ShardOutcome[C]:
        """Write the files of a shard to `parts/NAME.ENDING`, then its outcome, which states that they are complete."""
        files = {}
        for ending, data in result.files.items():
            key = f"parts/{name}.{ending}"
            self.store.write(key, data)
            files[key] = CommittedFile(len(data), hashlib.sha256(data).hexdigest())
        outcome = ShardOutcome(result.counts, files, tries, seconds, ended)
        self.store.write_json(f"parts/{name}.json", outcome.to_json())
        return outcome

    def outcomes(self, counts_type: type[C]) -> dict[str, ShardOutcome[C]]:
        """The outcomes of the committed shards by name."""
        return {
            name: ShardOutcome.from_json(self.store.read_json(f"parts/{name}.json"), counts_type)
            for name in self.committed()
        }

    def committed(self) -> list[str]:
        """The names of the committed shards, in order."""
        return [_shard_name(key) for key in self.store.list("parts") if key.endswith(".json")]

    def begun(self) -> list[str]:
        """The names of the shards that were tried, committed or not, in order."""
        return [_shard_name(key) for key in self.store.list("attempts")]


def _attempt_key(name: str) -> str:
    return f"attempts/{name}.json"


def _shard_name(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
