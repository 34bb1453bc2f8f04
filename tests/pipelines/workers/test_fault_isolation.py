"""Who is blamed for an error or a crash: a document only on evidence, else the worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from pipelines.service_errors import UnavailableError, WorkerFaultError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, AttemptNote, ShardLog
from pipelines.workers.fault_isolation import (
    MAX_CRASHES,
    MAX_DEADLY_CHECKS,
    IsolatedRows,
    check_readable,
    isolate_failing_rows,
)
from pipelines.workers.worker_faults import faults_of_worker, is_fault_of_worker
from spin.errors import NotFiniteError, SpinError


class Killed(BaseException):
    """Stands for the death of a process."""


@pytest.fixture
def shard_log(tmp_path: Path) -> ShardLog:
    return ShardLog(Store(str(tmp_path)))


def raise_error(error: BaseException) -> NoReturn:
    raise error


def crash(shard_log: ShardLog, times: int) -> None:
    """Let processes die before they reach a document."""
    for _ in range(times):
        with pytest.raises(Killed), shard_log.attempt("000000"):
            raise Killed


def isolate(
    shard_log: ShardLog,
    rows: list[int],
    work: Callable[[list[int]], list[int]],
    check: Callable[[], object] | None = None,
) -> IsolatedRows[list[int]]:
    with shard_log.attempt("000000") as attempt:
        return isolate_failing_rows(rows, work, attempt, check)


def compute_all_but_two(rows: list[int]) -> list[int]:
    if 2 in rows:
        raise ValueError("the text itself: hush")
    return rows


def test_a_row_is_blamed_for_an_exception_if_the_known_good_check_passes(shard_log: ShardLog) -> None:
    """The check runs once per failing row, and not at all where nothing fails."""
    checks: list[int] = []
    isolated = isolate(shard_log, list(range(8)), compute_all_but_two, lambda: checks.append(1))
    assert isolated.failing == {2: "computing it raised ValueError"}
    assert [row for rows, _ in isolated.pieces for row in rows] == [0, 1, 3, 4, 5, 6, 7]
    assert len(checks) == 1
    isolate(shard_log, [0, 1], compute_all_but_two, lambda: checks.append(1))
    assert len(checks) == 1


@pytest.mark.parametrize("broken", [ValueError("broken GPU"), NotFiniteError("not finite")], ids=["raises", "NaN"])
def test_a_worker_that_fails_on_what_is_known_to_be_good_is_blamed_itself(
    shard_log: ShardLog, broken: Exception
) -> None:
    """No row becomes a dead letter, and the try does not count as a crash."""

    def fail(_: list[int]) -> NoReturn:
        raise broken

    with pytest.raises(WorkerFaultError, match=r"fails on a text that is known to be good, .*: \w+: ") as error:
        isolate(shard_log, list(range(8)), fail, lambda: raise_error(broken))
    assert error.value.status == 1
    with shard_log.attempt("000000") as attempt:
        assert attempt.crashes == 0


def test_an_outage_during_the_known_good_check_is_no_fault_of_the_worker(shard_log: ShardLog) -> None:
    with pytest.raises(UnavailableError, match="away"):
        isolate(shard_log, [2], compute_all_but_two, lambda: raise_error(UnavailableError("away")))


MACHINE_ERRORS = [
    MemoryError(),
    OSError(28, "No space left on device"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
]


@pytest.mark.parametrize("error", MACHINE_ERRORS, ids=lambda error: type(error).__name__)
def test_memory_files_and_gpus_are_never_the_fault_of_a_document(shard_log: ShardLog, error: Exception) -> None:
    """They are raised as the worker's fault at once, without dividing the rows and without a check."""
    calls: list[list[int]] = []

    def fail(rows: list[int]) -> NoReturn:
        calls.append(rows)
        raise error

    with pytest.raises(WorkerFaultError, match="is at fault, not a document"):
        isolate(shard_log, list(range(8)), fail, lambda: None)
    assert calls == [list(range(8))]


def test_a_wrapped_error_of_the_machine_is_recognized_but_not_one_that_was_handled() -> None:
    wrapped = ValueError("engine failed")
    wrapped.__cause__ = MemoryError()
    handled = ValueError("bad text")
    handled.__context__ = FileNotFoundError("cache")
    assert is_fault_of_worker(wrapped)
    assert not is_fault_of_worker(handled)
    assert not is_fault_of_worker(RuntimeError("shape mismatch"))


def test_a_row_is_blamed_for_a_death_only_after_two_processes_died_on_it_alone(shard_log: ShardLog) -> None:
    """A machine that kills a process just then costs one more try."""
    crash(shard_log, MAX_CRASHES)
    with pytest.raises(Killed):
        isolate(shard_log, [5], lambda _: raise_error(Killed()))
    assert isolate(shard_log, [5], lambda rows: rows) == IsolatedRows([([5], [5])], {})
    for _ in range(2):
        with pytest.raises(Killed):
            isolate(shard_log, [6], lambda _: raise_error(Killed()))
    isolated = isolate(shard_log, [6], lambda rows: rows)
    assert isolated.failing == {6: "every process that computed it was killed"}


def test_a_death_is_counted_once_however_often_the_next_processes_die_early(shard_log: ShardLog) -> None:
    """A process that dies while it reads its input has not computed the row that is written down."""
    crash(shard_log, MAX_CRASHES)
    with pytest.raises(Killed):
        isolate(shard_log, [5], lambda _: raise_error(Killed()))
    crash(shard_log, 3)
    assert isolate(shard_log, [5], lambda rows: rows).failing == {}


def test_rows_are_divided_only_by_the_driver_that_saw_the_deaths(shard_log: ShardLog) -> None:
    """The next driver computes them in one piece again, and blames nothing for what it did not see."""
    crash(shard_log, MAX_CRASHES)
    assert len(isolate(shard_log, list(range(32)), lambda rows: rows).pieces) == 16
    next_driver = ShardLog(shard_log.store, claim=1)
    assert len(isolate(next_driver, list(range(32)), lambda rows: rows).pieces) == 1


def test_processes_that_die_on_what_is_known_to_be_good_end_the_run(shard_log: ShardLog) -> None:
    """After crashes the check is written down before it runs; a native death in it is not a row's fault."""
    crash(shard_log, MAX_CRASHES)
    for _ in range(MAX_DEADLY_CHECKS):
        with pytest.raises(Killed):
            isolate(shard_log, [1, 2], lambda rows: rows, lambda: raise_error(Killed()))
    with pytest.raises(SpinError, match="2 worker processes in a row were killed by a text that is known") as error:
        isolate(shard_log, [1, 2], lambda rows: rows, lambda: None)
    assert (error.value.status, "backbone.engine" in str(error.value)) == (1, True)


def test_a_check_that_passes_clears_the_worker(shard_log: ShardLog) -> None:
    """Deaths during the check must follow each other to end the run."""
    crash(shard_log, MAX_CRASHES)
    for _ in range(3):
        with pytest.raises(Killed):
            isolate(shard_log, [1, 2], lambda rows: rows, lambda: raise_error(Killed()))
        isolated = isolate(shard_log, [1, 2], lambda rows: rows, lambda: None)
        assert isolated == IsolatedRows([([1], [1]), ([2], [2])], {})


def test_a_file_is_not_given_up_because_processes_died_before_they_had_read_it(shard_log: ShardLog) -> None:
    """The run ends with status 1 and names it; after a note, the processes had reached the documents."""
    crash(shard_log, MAX_CRASHES + 1)
    with shard_log.attempt("000000") as attempt, pytest.raises(SpinError, match=r"^a\.parquet: 3 worker") as error:
        check_readable("a.parquet", attempt)
    assert error.value.status == 1
    check_readable("a.parquet", Attempt(shard_log.store, "k", crashes=MAX_CRASHES))


def test_a_process_that_dies_in_the_check_after_an_exception_is_no_death_of_the_row(shard_log: ShardLog) -> None:
    """The row has ended with an error by then, so it has not killed the process."""
    crash(shard_log, MAX_CRASHES)
    for _ in range(2):
        passing = [True]

        def check_once(passing: list[bool] = passing) -> None:
            if not passing:
                raise Killed
            passing.pop()

        with pytest.raises(Killed):
            isolate(shard_log, [2], compute_all_but_two, check_once)
    assert isolate(shard_log, [2], lambda rows: rows, lambda: None) == IsolatedRows([([2], [2])], {})


def test_the_note_of_a_piece_is_withdrawn_when_a_run_is_interrupted(shard_log: ShardLog) -> None:
    """Ctrl-C has killed no process, whatever becomes of this one until it has ended."""
    crash(shard_log, MAX_CRASHES)
    with shard_log.attempt("000000") as attempt:
        with pytest.raises(KeyboardInterrupt):
            isolate_failing_rows([5], lambda _: raise_error(KeyboardInterrupt()), attempt)
        assert attempt.note == AttemptNote()


def test_a_log_of_debugging_holds_no_text_of_a_document(shard_log: ShardLog, caplog: pytest.LogCaptureFixture) -> None:
    """The message of an exception may quote it."""
    text = "hush"
    with caplog.at_level("DEBUG", logger="pipelines.workers.fault_isolation"):
        isolate(shard_log, [1, 2], lambda _: raise_error(ValueError(text)))
    assert "ValueError" in caplog.text
    assert "hush" not in caplog.text


def test_a_file_of_which_documents_were_reached_is_read_again(shard_log: ShardLog) -> None:
    """After a note, it is the documents that are suspected."""
    attempt = Attempt(shard_log.store, "k", crashes=MAX_CRASHES + 1)
    attempt.write_note(AttemptNote())
    check_readable("a.parquet", attempt)


def test_the_message_of_a_fault_is_not_wrapped_in_another() -> None:
    error = WorkerFaultError("the worker on host 1 fails on a text that is known to be good")
    with pytest.raises(WorkerFaultError) as raised, faults_of_worker():
        raise error
    assert raised.value is error
