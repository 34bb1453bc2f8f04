"""The shard log of a run: the tries at each shard, and what each committed shard holds.

Three records describe a shard. A step returns a `StepResult`: files and counts. The counts are a record of the stage,
a frozen subclass of `ShardCounts` defined next to the step. The log adds how the files were written and keeps all of it
as a `ShardOutcome`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import GenericAlias
from typing import Any, Generic, TypeVar, cast

from pipelines.storage.object_store import Store
from pipelines.storage.records import from_json, to_bytes, to_json
from pipelines.storage.retrying import retry_unavailable
from spin.errors import SpinError

_log = logging.getLogger(__name__)
OUTCOMES, ATTEMPTS = "parts", "attempts"
"""folders of a log with what commits shards beside their files, and with the tries"""


@dataclass(frozen=True, kw_only=True)
class ShardTally:
    """The addition of a committed shard to the counters that operators look at."""

    documents: int
    """documents read"""
    tokens: int = 0
    """tokens that the backbone read"""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """documents that cannot be classified, by reason"""
    exits: Mapping[str, int] = field(default_factory=dict)
    """classified documents by the block after which they exited, in decimal digits; -1: their words alone decided"""


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """The counts of a stage in one shard. A stage that counts more has a frozen subclass, whose fields are JSON values.

    A field that is None is left out of the shard's `parts/NAME.json`.
    """

    rows: int
    """documents read"""

    @property
    def dead_letters(self) -> int:
        """Documents that ended as dead letters, for the progress bar."""
        return 0

    def tallies(self) -> Mapping[str | None, ShardTally]:
        """The additions of the shard to counters, by the name of a run; under None those for all runs at once."""
        return {None: ShardTally(documents=self.rows)}


C = TypeVar("C", bound=ShardCounts)


@dataclass(frozen=True)
class StepResult(Generic[C]):
    """The result of a step for one shard."""

    files: Mapping[str, bytes]
    """contents by file-name ending, such as `predictions.parquet`; `LogLayout` names the folder of each ending"""
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
    """by key in the store of the log"""
    tries: int
    """how often the shard was tried, the last time included"""
    seconds: float
    """that the last try took"""
    ended: float
    """time of the commit, in seconds since 1970"""

    def file_key(self, ending: str) -> str | None:
        """The key of the file with an ending that `LogLayout.data` does not name, None if the shard has none."""
        return next((key for key in self.files if key.partition(".")[2] == ending), None)

    def to_json(self) -> dict[str, Any]:
        """The content of `parts/NAME.json`."""
        values: dict[str, Any] = to_json(self, _outcome_type(type(self.counts)))
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any], counts_type: type[C]) -> ShardOutcome[C]:
        """The outcome of a shard whose step counts `counts_type`."""
        return from_json(_outcome_type(counts_type), value)


def _outcome_type(counts_type: type[C]) -> type[ShardOutcome[C]]:
    """`ShardOutcome` with the type of its counts, by which pydantic reads and writes it."""
    return cast("type[ShardOutcome[C]]", GenericAlias(ShardOutcome, (counts_type,)))


@dataclass(frozen=True)
class AttemptNote:
    """The notes of one try at a shard for the next one, in case its process is killed."""

    deadly: tuple[tuple[int, int], ...] = ()
    """first and last row of every piece during which a process was killed; once per killed process"""
    trying: tuple[int, int] | None = None
    """first and last row of the piece that is being computed, None between pieces"""
    checking: bool = False
    """whether the known-good check of the worker is running"""
    deadly_checks: int = 0
    """processes in a row that were killed during the known-good check"""

    def after_crash(self) -> AttemptNote:
        """The note for the next try, if the process that wrote this one was killed."""
        deadly = self.deadly if self.trying is None else (*self.deadly, self.trying)
        return AttemptNote(deadly, deadly_checks=self.deadly_checks + self.checking)

    def after_end(self) -> AttemptNote:
        """The note for the next try, if this one was not killed or its node was taken away."""
        return AttemptNote(self.deadly, deadly_checks=self.deadly_checks)


@dataclass(frozen=True)
class _AttemptRecord:
    """The content of `attempts/CLAIM/NAME.json`."""

    id: str
    """of the last try, random: a create whose response was lost finds its own record"""
    begun: int
    """tries so far"""
    open: tuple[str, ...]
    """node of each try that neither raised nor committed: it is running, or its process was killed"""
    note: AttemptNote | None = None
    """the last note"""


class Attempt:
    """One try at a shard, and what earlier tries under the same driver have written down."""

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        record: _AttemptRecord | None = None,
        crashes: int = 0,
        advance: Callable[[float], None] = lambda documents: None,
    ) -> None:
        self._store, self._key = store, key
        self.advance = advance
        """called with the number of further documents of the shard that are computed, for progress alone"""
        self._record = record or _AttemptRecord(uuid.uuid4().hex, 1, ("",))
        self.crashes = crashes
        """earlier tries whose process was killed while its node lived on"""

    @property
    def begun(self) -> int:
        """Tries so far, this one included."""
        return self._record.begun

    @property
    def note(self) -> AttemptNote | None:
        """The last note of an earlier try or of this one, None if there is none."""
        return self._record.note

    def write_note(self, note: AttemptNote) -> None:
        """Store a note that outlives this process."""
        self._record = replace(self._record, note=note)
        retry_unavailable(self._store)(self._write)

    def _write(self) -> None:
        self._store.write_json(self._key, self._record)

    def _end_with_error(self) -> None:
        self._record = replace(self._record, open=self._record.open[:-1])
        try:
            self._write()
        except SpinError:  # the error that ended the try is the one to report
            _log.debug("the end of a try at %s could not be stored", self._key, exc_info=True)


@dataclass(frozen=True)
class LogLayout:
    """The places of a run's shard log and of its shards' files in a store."""

    folder: str = ""
    """folder of the log, such as `_runs/RUN`; by default the store itself"""
    data: Mapping[str, str] = field(default_factory=dict)
    """folder in the store by file-name ending: with `{"predictions.parquet": "predictions/RUN"}` that file of a shard
    is `predictions/RUN/SHARD-CLAIM-ATTEMPT.parquet`; files with other endings are written next to the outcomes"""

    def key(self, *parts: str) -> str:
        """A key in the folder of the log."""
        return "/".join([self.folder, *parts] if self.folder else parts)


class ShardLog:
    """The log of a run's shards: outcomes under `parts/`, tries under `attempts/CLAIM/`.

    A shard is committed by `parts/NAME.json`. It is created only if there is none, so that the first outcome of a
    shard is the only one, whoever else computes the shard. It names the shard's files with their digests. These are
    written before it, under names that no other try uses, created only if absent and never replaced:
    `SHARD-CLAIM-ATTEMPT`. The claim is the number of the driver's claim, of its lease in a training. Tries are kept per
    claim, so a new driver blames nothing for what happened under another one.

    Every request is retried for the `retry_seconds` of the store after its first failure. `node` is the node of this
    process, and `lost_nodes` returns the nodes that no longer exist: a try on one of them did not crash, its node was
    taken away.
    """

    def __init__(
        self,
        store: Store,
        *,
        claim: int = 0,
        layout: LogLayout = LogLayout(),
        node: str = "",
        lost_nodes: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self.store, self.claim, self.layout = store, claim, layout
        self._node, self._lost_nodes = node, lost_nodes

    @contextmanager
    def attempt(self, name: str, advance: Callable[[float], None] = lambda documents: None) -> Iterator[Attempt]:
        """Count a try at a shard before it starts, so that a try whose process is killed has been counted.

        `advance` takes the number of further documents of the shard that are computed.
        """
        attempt = self._next_attempt(name, advance)
        try:
            yield attempt
        except (Exception, KeyboardInterrupt):  # an interrupted run is not a crash of the shard's process
            attempt._end_with_error()
            raise

    def commit(self, name: str, result: StepResult[C], *, tries: int, seconds: float, ended: float) -> ShardOutcome[C]:
        """Write the files of a shard, then its outcome; return the outcome that counts, which may be an earlier one.

        Where the shard has an outcome already, this one and its files are not used: nothing names them.
        """
        files = {}
        for ending, data in result.files.items():
            key = self._create_file(name, ending, data, tries)
            files[key] = CommittedFile(len(data), hashlib.sha256(data).hexdigest())
        outcome = ShardOutcome(result.counts, files, tries, seconds, ended)
        key, data = self.outcome_key(name), to_bytes(outcome.to_json())
        while not self._request(self.store.create, key, data):
            first = self.find_outcome(name, type(result.counts))
            if first is not None:
                # guarded by test_the_first_outcome_of_a_shard_is_the_only_one; broken by:
                #   return outcome
                return first
        return outcome

    def outcomes(self, counts_type: type[C], names: Container[str] | None = None) -> dict[str, ShardOutcome[C]]:
        """The outcomes of the committed shards by name, in order: one listing, then reads in parallel.

        With `names`, those of other shards are left out.
        """
        keys = [self.outcome_key(name) for name in self.committed() if names is None or name in names]
        stored = self._request(self.store.read_many, keys) if keys else {}
        return {_shard_name(key): ShardOutcome.from_json(json.loads(data), counts_type) for key, data in stored.items()}

    def find_outcome(self, name: str, counts_type: type[C]) -> ShardOutcome[C] | None:
        """The outcome of a shard, None if it is not committed."""
        stored = self._request(self.store.read_json, self.outcome_key(name))
        return None if stored is None else ShardOutcome.from_json(stored, counts_type)

    def committed(self) -> list[str]:
        """The names of the committed shards, in order."""
        keys = self._request(self.store.list, self.layout.key(OUTCOMES))
        return [_shard_name(key) for key in keys if key.endswith(".json")]

    def begun(self) -> list[str]:
        """The names of the shards that were tried under this claim, committed or not, in order."""
        return [_shard_name(key) for key in self._request(self.store.list, self._attempts)]

    def unfinished(self) -> set[str]:
        """The names of the shards that were tried under any claim and are not committed."""
        tried = self._request(self.store.list, self.layout.key(ATTEMPTS))
        return {_shard_name(key) for key in tried}.difference(self.committed())

    def outcome_key(self, name: str) -> str:
        """The key of a shard's outcome."""
        return self.layout.key(OUTCOMES, f"{name}.json")

    def attempt_key(self, name: str) -> str:
        """The key of the tries at a shard."""
        return f"{self._attempts}/{name}.json"

    @property
    def _attempts(self) -> str:
        # guarded by test_a_new_driver_starts_with_a_clean_slate; broken by:
        #   return self.layout.key(ATTEMPTS)
        return self.layout.key(ATTEMPTS, f"{self.claim:06d}")

    def _request(self, operation: Callable[..., Any], *args: Any) -> Any:
        return retry_unavailable(self.store)(operation, *args)

    def _next_attempt(self, name: str, advance: Callable[[float], None]) -> Attempt:
        """Begin the try that follows those in the store, with one request if it is the first."""
        key, id = self.attempt_key(name), uuid.uuid4().hex
        record, crashes = _AttemptRecord(id, 1, (self._node,)), 0
        while not self._request(self.store.create, key, to_bytes(record)):
            stored = self._request(self.store.read_json, key)
            if stored is None:
                continue
            earlier = from_json(_AttemptRecord, stored)
            if earlier.id == id:
                break
            lost = self._lost_nodes() if earlier.open else ()
            crashed = [node not in lost for node in earlier.open]
            note, crashes = earlier.note, sum(crashed)
            if note is not None:
                note = note.after_crash() if crashed and crashed[-1] else note.after_end()
            record = _AttemptRecord(id, earlier.begun + 1, (*earlier.open, self._node), note)
            self._request(self.store.write_json, key, record)
            break
        return Attempt(self.store, key, record=record, crashes=crashes, advance=advance)

    def _create_file(self, name: str, ending: str, data: bytes, number: int) -> str:
        """Write a file under a name of its own and return its key; the first number that is free is in the name."""
        while True:
            key = self._file_key(name, ending, number)
            if self._request(self.store.create, key, data) or self._request(self.store.read, key) == data:
                return key  # the same data: this is the object of a request whose response was lost
            number += 1

    def _file_key(self, name: str, ending: str, number: int) -> str:
        stem, folder = f"{name}-{self.claim:06d}-{number}", self.layout.data.get(ending)
        if folder is None:
            return self.layout.key(OUTCOMES, f"{stem}.{ending}")
        return f"{folder}/{stem}.{ending.rpartition('.')[2]}"


def _shard_name(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
