"""The shard log: outcomes, files and tries; and how documents that raise or kill their process are isolated."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store, StoredObject
from pipelines.storage.shard_log import (
    Attempt,
    AttemptNote,
    CommittedFile,
    LogLayout,
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
    return ShardLog(Store(store_uri, retry_seconds=0))


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
    assert outcome.files["parts/000003-000000-3.a.txt"] == CommittedFile(3, digest)
    assert shard_log.committed() == ["000003"]
    assert shard_log.outcomes(Counts) == {"000003": outcome}
    shard_log.store.delete_many(["parts/000003.json"])
    assert shard_log.committed() == []
    assert shard_log.outcomes(Counts) == {}
    assert shard_log.store.read("parts/000003-000000-3.a.txt") == b"one"


def test_an_outcome_is_stored_as_json(shard_log: ShardLog) -> None:
    """It holds the counts and the fields of the log; a count that is None is left out."""
    commit_shard(shard_log, {"a.txt": b"one"})
    digest = hashlib.sha256(b"one").hexdigest()
    assert shard_log.store.read_json("parts/000003.json") == {
        "counts": {"rows": 2, "words": 7},
        "tries": 3,
        "seconds": 1.5,
        "ended": 1e9,
        "files": {"parts/000003-000000-3.a.txt": {"bytes": 3, "sha256": digest}},
    }


def test_a_shard_with_a_failed_write_is_not_committed(shard_log: ShardLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is written after all files."""

    def fail_on_second_file(_store: Store, key: str, _data: bytes) -> bool:
        if key.endswith("b.txt"):
            raise UnavailableError("full")
        return True

    monkeypatch.setattr(Store, "create", fail_on_second_file)
    with pytest.raises(UnavailableError):
        commit_shard(shard_log, {"a.txt": b"one", "b.txt": b"two"})
    monkeypatch.undo()
    assert shard_log.committed() == []


def test_the_first_outcome_of_a_shard_is_the_only_one(shard_log: ShardLog) -> None:
    """A second driver that commits the shard gets the first outcome; its own files and counts are not used."""
    first = commit_shard(shard_log, {"a.txt": b"one"})
    second, result = ShardLog(shard_log.store, claim=7), StepResult({"a.txt": b"two"}, Counts(rows=9, words=9))
    assert second.commit("000003", result, tries=1, seconds=1.0, ended=2.0) == first
    assert second.outcomes(Counts) == {"000003": first}
    assert shard_log.store.read("parts/000003-000000-3.a.txt") == b"one"


def test_drivers_that_commit_a_shard_at_once_agree_on_its_files(store_uri: str) -> None:
    """Of eight, one wins; all return its outcome, whose file holds what the winner wrote."""
    start = threading.Barrier(8)

    def commit(claim: int) -> ShardOutcome[Counts]:
        result = StepResult({"a.txt": f"{claim}".encode()}, Counts(rows=2, words=claim))
        start.wait()
        return ShardLog(Store(store_uri), claim=claim).commit("000000", result, tries=1, seconds=1.0, ended=2.0)

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(commit, range(1, 9)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    [key] = outcomes[0].files
    assert Store(store_uri).read(key) == f"{outcomes[0].counts.words}".encode()


def test_files_lie_in_the_folder_of_their_ending_and_carry_shard_claim_and_attempt(shard_log: ShardLog) -> None:
    """Files whose ending has no folder lie next to the outcomes, in the folder of the log."""
    layout = LogLayout("_runs/R", {"predictions.parquet": "predictions/R", "dead.parquet": "dead_letters/R"})
    log = ShardLog(shard_log.store, claim=17, layout=layout)
    files = {"predictions.parquet": b"p", "dead.parquet": b"d", "profile.safetensors": b"s"}
    with log.attempt("000003"):
        outcome = log.commit("000003", StepResult(files, Counts(rows=2, words=7)), tries=2, seconds=1.5, ended=1e9)
    keys = {
        "predictions/R/000003-000017-2.parquet": b"p",
        "dead_letters/R/000003-000017-2.parquet": b"d",
        "_runs/R/parts/000003-000017-2.profile.safetensors": b"s",
    }
    assert {key: log.store.read(key) for key in outcome.files} == keys
    assert outcome.file_key("profile.safetensors") == "_runs/R/parts/000003-000017-2.profile.safetensors"
    assert log.store.list() == sorted([*keys, "_runs/R/attempts/000017/000003.json", "_runs/R/parts/000003.json"])
    assert log.committed() == log.begun() == ["000003"]


def test_a_file_is_never_replaced(shard_log: ShardLog) -> None:
    """A name that is taken by other data is left alone; by the same data, it is the object of a lost response."""
    shard_log.store.write("parts/000003-000000-3.a.txt", b"other")
    shard_log.store.write("parts/000003-000000-3.b.txt", b"same")
    outcome = commit_shard(shard_log, {"a.txt": b"mine", "b.txt": b"same"})
    assert list(outcome.files) == ["parts/000003-000000-4.a.txt", "parts/000003-000000-3.b.txt"]
    assert shard_log.store.read("parts/000003-000000-3.a.txt") == b"other"
    assert shard_log.store.read("parts/000003-000000-4.a.txt") == b"mine"


class CountedStore(Store):
    """Counts the calls of each method that sends a request."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.calls: Counter[str] = Counter()
        self.together: threading.Barrier | None = None

    def _call(self, operation: str, *args: Any, **options: Any) -> Any:
        self.calls[operation] += 1
        return super()._call(operation, *args, **options)

    def _find(self, prefix: str) -> Sequence[StoredObject]:
        self.calls["find"] += 1
        return super()._find(prefix)

    def create(self, key: str, data: bytes) -> bool:
        self.calls["create"] += 1
        return super().create(key, data)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        if self.together is not None:
            self.together.wait(timeout=30)
        return super().read(key, start, stop)


def test_a_shard_takes_two_requests_besides_its_files(tmp_path: Path) -> None:
    """One counts the try, one writes the outcome, and one writes each file; nothing is read."""
    store = CountedStore(str(tmp_path))
    log, result = ShardLog(store, claim=1), StepResult({"a": b"1", "b": b"2"}, Counts(rows=1, words=1))
    for name in ("000000", "000001"):
        with log.attempt(name) as attempt:
            log.commit(name, result, tries=attempt.begun, seconds=1.0, ended=2.0)
    assert store.calls == {"create": 8}


def test_outcomes_are_read_by_one_listing_and_in_parallel(tmp_path: Path) -> None:
    """Eight reads wait for each other, so reads one after the other would never end; a new run only lists."""
    store = CountedStore(str(tmp_path))
    log = ShardLog(store)
    assert log.outcomes(Counts) == {}
    assert store.calls == {"find": 1}
    for n in range(16):
        log.commit(f"{n:06d}", StepResult({}, Counts(rows=n, words=1)), tries=1, seconds=1.0, ended=2.0)
    store.calls.clear()
    store.together = threading.Barrier(8)
    assert [outcome.counts.rows for outcome in log.outcomes(Counts).values()] == list(range(16))
    assert store.calls == {"find": 1, "cat_file": 16}


# Attempts


NOTE = AttemptNote(deadly=((0, 9),), trying=(0, 0))
DIED = AttemptNote(deadly=((0, 9), (0, 0)))
"""that note, once the process that wrote it was killed"""


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
        assert (fourth.begun, fourth.crashes, fourth.note) == (4, 1, DIED)
    with shard_log.attempt("000000"):
        pass
    assert shard_log.begun() == ["000000", "000001"]


def die(log: ShardLog) -> tuple[int, AttemptNote | None]:
    """Let a process write a note and be killed; returns the crashes and the note that it found."""
    try:
        with log.attempt("000001") as attempt:
            found = attempt.crashes, attempt.note
            attempt.write_note(NOTE)
            raise Killed
    except Killed:
        return found


def test_a_new_driver_starts_with_a_clean_slate(shard_log: ShardLog) -> None:
    """What happened under one claim says nothing under another; the driver's own tries go on counting."""
    found = [die(ShardLog(shard_log.store, claim=claim)) for claim in (1, 1, 2, 1)]
    assert found == [(0, None), (1, DIED), (0, None), (2, DIED)]


def test_the_loss_of_a_node_is_no_crash(shard_log: ShardLog) -> None:
    """A try whose node is gone was taken away, and its piece did not kill it; a death on a living node counts."""
    die(ShardLog(shard_log.store, node="a"))
    assert die(ShardLog(shard_log.store, node="b")) == (1, DIED)
    without_b = ShardLog(shard_log.store, node="c", lost_nodes=lambda: {"b"})
    assert die(without_b) == (1, AttemptNote(deadly=((0, 9),)))
    with ShardLog(shard_log.store, lost_nodes=lambda: {"a", "b", "c"}).attempt("000001") as attempt:
        assert (attempt.begun, attempt.crashes) == (4, 0)


def test_a_lost_response_to_the_first_request_is_no_crash(shard_log: ShardLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The S3 client then retries and finds the object of its own first request."""
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda self, key, data: create(self, key, data) and False)
    with shard_log.attempt("000001") as attempt:
        assert (attempt.begun, attempt.crashes) == (1, 0)


def test_an_end_that_cannot_be_stored_does_not_hide_the_error(
    shard_log: ShardLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise UnavailableError("the log is away")

    def compute() -> NoReturn:
        with shard_log.attempt("000001"):
            monkeypatch.setattr(Store, "write", fail)
            raise UnavailableError("the input is away")

    with pytest.raises(UnavailableError, match="the input is away"):
        compute()


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
    assert tries <= MAX_CRASHES + 1 + 4 * len(rows & deadly)


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
        stored = store.read_json("attempts/000000/000000.json")
    assert (stored["begun"], stored["open"]) == (1, [""])
    assert isinstance(attempt, Attempt)
