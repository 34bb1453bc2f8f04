"""What a run's store says of its shards, and how documents that raise or kill are told from the others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import (
    Attempt,
    AttemptNote,
    CommittedFile,
    ShardCounts,
    ShardLog,
    ShardOutcome,
    StepResult,
)
from pipelines.workers.fault_isolation import MAX_CRASHES, IsolatedRows, isolate_failing_rows


class Killed(BaseException):
    """The end of a process, as far as its store can tell."""


@pytest.fixture
def shard_log(store_uri: str) -> ShardLog:
    return ShardLog(Store(store_uri))


@dataclass(frozen=True, kw_only=True)
class Counts(ShardCounts):
    words: int
    bad: str | None = None


def commit(shard_log: ShardLog, files: dict[str, bytes]) -> ShardOutcome[Counts]:
    return shard_log.commit("000003", StepResult(files, Counts(rows=2, words=7)), tries=3, seconds=1.5, ended=1e9)


# Commits


def test_a_shard_is_committed_by_its_outcome(shard_log: ShardLog) -> None:
    """Files lie under the shard's keys with their digests; without the outcome they are not committed."""
    outcome = commit(shard_log, {"a.txt": b"one", "b.txt": b""})
    digest = hashlib.sha256(b"one").hexdigest()
    assert outcome.files["parts/000003.a.txt"] == CommittedFile(3, digest)
    assert shard_log.committed() == ["000003"]
    assert shard_log.outcomes(Counts) == {"000003": outcome}
    shard_log.store.delete("parts/000003.json")
    assert shard_log.committed() == []
    assert shard_log.outcomes(Counts) == {}
    assert shard_log.store.read("parts/000003.a.txt") == b"one"


def test_an_outcome_is_one_flat_object(shard_log: ShardLog) -> None:
    """The keys of a shard's file are an interface: counts, then what the log adds; a count that is None is absent."""
    commit(shard_log, {"a.txt": b"one"})
    digest = hashlib.sha256(b"one").hexdigest()
    assert shard_log.store.read_json("parts/000003.json") == {
        "rows": 2,
        "words": 7,
        "tries": 3,
        "seconds": 1.5,
        "ended": 1e9,
        "files": {"parts/000003.a.txt": {"bytes": 3, "sha256": digest}},
    }


def test_a_file_that_is_not_written_commits_nothing(shard_log: ShardLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome comes after all files."""

    def full(_store: Store, key: str, _data: bytes) -> None:
        if key.endswith("b.txt"):
            raise UnavailableError("full")

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(UnavailableError):
        commit(shard_log, {"a.txt": b"one", "b.txt": b"two"})
    monkeypatch.undo()
    assert shard_log.committed() == []


# Attempts


NOTE = AttemptNote(deadly=((0, 9),), trying=(0, 0))


def test_attempts_tell_crashes_from_errors(shard_log: ShardLog) -> None:
    """A try that raises or is interrupted has ended; one whose process is killed has not; notes outlive both."""

    def trial(error: BaseException, crashes: int) -> None:
        with shard_log.attempt("000001") as attempt:
            assert attempt.crashes == crashes
            attempt.write_note(NOTE)
            raise error

    with pytest.raises(UnavailableError):
        trial(UnavailableError("away"), 0)
    with pytest.raises(KeyboardInterrupt):
        trial(KeyboardInterrupt(), 0)
    with pytest.raises(Killed):
        trial(Killed(), 0)
    with shard_log.attempt("000001") as fourth:
        assert (fourth.begun, fourth.crashes, fourth.note) == (4, 1, NOTE)
    with shard_log.attempt("000000"):
        pass
    assert shard_log.begun() == ["000000", "000001"]


# Poison


def run_until_done(
    shard_log: ShardLog, rows: list[int], raising: set[int], deadly: set[int]
) -> tuple[IsolatedRows[list[int]], int]:
    """Tries at one shard until one ends, as a pool that starts killed actors again makes them."""

    def work(part: list[int]) -> list[int]:
        if deadly & set(part):
            raise Killed
        if raising & set(part):
            raise ValueError("the text itself: hush")
        return [row * 10 for row in part]

    for tries in range(1, 100):
        try:
            with shard_log.attempt("000000") as attempt:
                return isolate_failing_rows(rows, work, attempt), tries
        except Killed:
            continue
    raise AssertionError("it loops")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200), st.sets(st.integers(0, 199), max_size=4), st.sets(st.integers(0, 199), max_size=2), st.data()
)
def test_every_row_is_done_or_dead(
    tmp_path_factory: pytest.TempPathFactory, count: int, raising: set[int], deadly: set[int], data: st.DataObject
) -> None:
    """Whatever rows raise and kill, just these are dead, the others done in order, after a bounded number of tries."""
    rows = data.draw(st.sets(st.integers(0, 199), max_size=count)) if count else set()
    shard_log = ShardLog(Store(str(tmp_path_factory.mktemp("run"))))
    isolated, tries = run_until_done(shard_log, sorted(rows), raising, deadly)
    done, dead = isolated.pieces, isolated.failing
    assert set(dead) == rows & (raising | deadly)
    assert [row for part, _ in done for row in part] == sorted(rows - raising - deadly)
    assert [value for _, values in done for value in values] == [row * 10 for row in sorted(rows - raising - deadly)]
    assert {dead[row] for row in rows & deadly} <= {"every process that computed it was killed"}
    assert {dead[row] for row in rows & raising - deadly} <= {"computing it raised ValueError"}
    assert tries <= MAX_CRASHES + 1 + 3 * len(rows & deadly)


def test_sound_rows_are_done_at_once(tmp_path: Path) -> None:
    """One piece and no notes, and after two deaths that were the machine's, sixteen."""
    shard_log = ShardLog(Store(str(tmp_path)))
    rows = list(range(320))
    isolated, tries = run_until_done(shard_log, rows, set(), set())
    assert (len(isolated.pieces), isolated.failing, tries) == (1, {}, 1)
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed), shard_log.attempt("000000"):
            raise Killed
    with shard_log.attempt("000000") as attempt:
        after_crashes = isolate_failing_rows(rows, lambda part: part, attempt)
    assert [len(part) for part, _ in after_crashes.pieces] == [20] * 16
    assert after_crashes.failing == {}
    assert attempt.note is not None
    assert attempt.note.trying is None


def test_a_store_that_is_away_is_no_poison(tmp_path: Path) -> None:
    """A SpinError passes as it is, and what was tried when it came is not suspected afterwards."""

    def away(_: list[int]) -> NoReturn:
        raise UnavailableError("away")

    shard_log = ShardLog(Store(str(tmp_path)))
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed), shard_log.attempt("000000"):
            raise Killed
    for _ in range(3):
        with pytest.raises(UnavailableError), shard_log.attempt("000000") as attempt:
            isolate_failing_rows([1, 2], away, attempt)
    with shard_log.attempt("000000") as attempt:
        isolated = isolate_failing_rows([1, 2], lambda part: part, attempt)
    assert isolated == IsolatedRows([([1], [1]), ([2], [2])], {})


def test_an_attempt_is_counted_before_it_starts(tmp_path: Path) -> None:
    """Or a death in its first step would not be known of."""
    store = Store(str(tmp_path))
    with ShardLog(store).attempt("000000") as attempt:
        assert store.read_json("attempts/000000.json") == {"begun": 1, "ended": 0, "note": {}}
    assert isinstance(attempt, Attempt)
