"""The shard log: commits and attempts of shards, and how documents that raise or kill their process are isolated."""

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
    """Stands for the death of a process: the shard log does not count the attempt as ended."""


@pytest.fixture
def shard_log(store_uri: str) -> ShardLog:
    return ShardLog(Store(store_uri))


@dataclass(frozen=True, kw_only=True)
class Counts(ShardCounts):
    words: int
    bad: str | None = None


def commit_shard(shard_log: ShardLog, files: dict[str, bytes]) -> ShardOutcome[Counts]:
    return shard_log.commit("000003", StepResult(files, Counts(rows=2, words=7)), tries=3, seconds=1.5, ended=1e9)


# Commits


def test_a_shard_is_committed_once_its_outcome_is_written(shard_log: ShardLog) -> None:
    """The outcome lists the files with their digests; files without an outcome are not committed."""
    outcome = commit_shard(shard_log, {"a.txt": b"one", "b.txt": b""})
    digest = hashlib.sha256(b"one").hexdigest()
    assert outcome.files["parts/000003.a.txt"] == CommittedFile(3, digest)
    assert shard_log.committed() == ["000003"]
    assert shard_log.outcomes(Counts) == {"000003": outcome}
    shard_log.store.delete("parts/000003.json")
    assert shard_log.committed() == []
    assert shard_log.outcomes(Counts) == {}
    assert shard_log.store.read("parts/000003.a.txt") == b"one"


def test_an_outcome_is_stored_as_one_flat_json_object(shard_log: ShardLog) -> None:
    """It holds the counts and the fields of the log; a count that is None is left out."""
    commit_shard(shard_log, {"a.txt": b"one"})
    digest = hashlib.sha256(b"one").hexdigest()
    assert shard_log.store.read_json("parts/000003.json") == {
        "rows": 2,
        "words": 7,
        "tries": 3,
        "seconds": 1.5,
        "ended": 1e9,
        "files": {"parts/000003.a.txt": {"bytes": 3, "sha256": digest}},
    }


def test_a_shard_with_a_failed_write_is_not_committed(shard_log: ShardLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is written after all files."""

    def fail_on_second_file(_store: Store, key: str, _data: bytes) -> None:
        if key.endswith("b.txt"):
            raise UnavailableError("full")

    monkeypatch.setattr(Store, "write", fail_on_second_file)
    with pytest.raises(UnavailableError):
        commit_shard(shard_log, {"a.txt": b"one", "b.txt": b"two"})
    monkeypatch.undo()
    assert shard_log.committed() == []


# Attempts


NOTE = AttemptNote(deadly=((0, 9),), trying=(0, 0))


def test_only_killed_attempts_count_as_crashes(shard_log: ShardLog) -> None:
    """An attempt that raises or is interrupted has ended, one whose process is killed has not; notes outlive both."""

    def fail(error: BaseException, crashes: int) -> None:
        with shard_log.attempt("000001") as attempt:
            assert attempt.crashes == crashes
            attempt.write_note(NOTE)
            raise error

    with pytest.raises(UnavailableError):
        fail(UnavailableError("away"), 0)
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt(), 0)
    with pytest.raises(Killed):
        fail(Killed(), 0)
    with shard_log.attempt("000001") as fourth:
        assert (fourth.begun, fourth.crashes, fourth.note) == (4, 1, NOTE)
    with shard_log.attempt("000000"):
        pass
    assert shard_log.begun() == ["000000", "000001"]


# Isolation of failing rows


def run_until_done(
    shard_log: ShardLog, rows: list[int], raising: set[int], deadly: set[int]
) -> tuple[IsolatedRows[list[int]], int]:
    """Try a shard until an attempt ends, as a pool that restarts killed actors does; return the number of tries too."""

    def compute(piece: list[int]) -> list[int]:
        if deadly & set(piece):
            raise Killed
        if raising & set(piece):
            raise ValueError("the text itself: hush")
        return [row * 10 for row in piece]

    for tries in range(1, 100):
        try:
            with shard_log.attempt("000000") as attempt:
                return isolate_failing_rows(rows, compute, attempt), tries
        except Killed:
            continue
    raise AssertionError("no attempt ended")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200), st.sets(st.integers(0, 199), max_size=4), st.sets(st.integers(0, 199), max_size=2), st.data()
)
def test_exactly_the_failing_rows_become_dead_letters(
    tmp_path_factory: pytest.TempPathFactory, count: int, raising: set[int], deadly: set[int], data: st.DataObject
) -> None:
    """Whichever rows raise or kill, all others are computed in order, and the number of tries is bounded."""
    rows = data.draw(st.sets(st.integers(0, 199), max_size=count)) if count else set()
    shard_log = ShardLog(Store(str(tmp_path_factory.mktemp("run"))))
    isolated, tries = run_until_done(shard_log, sorted(rows), raising, deadly)
    pieces, dead = isolated.pieces, isolated.failing
    assert set(dead) == rows & (raising | deadly)
    assert [row for piece, _ in pieces for row in piece] == sorted(rows - raising - deadly)
    assert [value for _, values in pieces for value in values] == [row * 10 for row in sorted(rows - raising - deadly)]
    assert {dead[row] for row in rows & deadly} <= {"every process that computed it was killed"}
    assert {dead[row] for row in rows & raising - deadly} <= {"computing it raised ValueError"}
    assert tries <= MAX_CRASHES + 1 + 3 * len(rows & deadly)


def test_rows_that_do_not_fail_are_computed_in_one_piece(tmp_path: Path) -> None:
    """After MAX_CRASHES crashes caused by the machine, they are computed in 16 pieces and none is blamed."""
    shard_log = ShardLog(Store(str(tmp_path)))
    rows = list(range(320))
    isolated, tries = run_until_done(shard_log, rows, set(), set())
    assert (len(isolated.pieces), isolated.failing, tries) == (1, {}, 1)
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed), shard_log.attempt("000000"):
            raise Killed
    with shard_log.attempt("000000") as attempt:
        after_crashes = isolate_failing_rows(rows, lambda piece: piece, attempt)
    assert [len(piece) for piece, _ in after_crashes.pieces] == [20] * 16
    assert after_crashes.failing == {}
    assert attempt.note is not None
    assert attempt.note.trying is None


def test_rows_are_not_blamed_for_an_unavailable_store(tmp_path: Path) -> None:
    """A SpinError is raised unchanged, and the piece computed at that moment is not suspected afterwards."""

    def fail(_: list[int]) -> NoReturn:
        raise UnavailableError("away")

    shard_log = ShardLog(Store(str(tmp_path)))
    for _ in range(MAX_CRASHES):
        with pytest.raises(Killed), shard_log.attempt("000000"):
            raise Killed
    for _ in range(3):
        with pytest.raises(UnavailableError), shard_log.attempt("000000") as attempt:
            isolate_failing_rows([1, 2], fail, attempt)
    with shard_log.attempt("000000") as attempt:
        isolated = isolate_failing_rows([1, 2], lambda piece: piece, attempt)
    assert isolated == IsolatedRows([([1], [1]), ([2], [2])], {})


def test_an_attempt_is_recorded_before_its_work_starts(tmp_path: Path) -> None:
    """Otherwise a crash at the very start would go unnoticed."""
    store = Store(str(tmp_path))
    with ShardLog(store).attempt("000000") as attempt:
        assert store.read_json("attempts/000000.json") == {"begun": 1, "ended": 0, "note": {}}
    assert isinstance(attempt, Attempt)
