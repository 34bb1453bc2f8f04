"""Drivers in threads that stop before any of their operations on a store, so that one may overtake another.

Only one driver runs at a time: whoever starts or wakes it waits until it stops or ends. So a history of several drivers
is a sequence of steps that is the same in every run, without a sleep and without a race.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import tenacity

from pipelines.data.files import input_files
from pipelines.data.files.input_files import InputFile
from pipelines.nightly.forget import rewritten_run
from pipelines.nightly.tables.night_tables import NightTables
from pipelines.service_errors import UnavailableError
from pipelines.storage import delta_table
from pipelines.storage.delta_table import TableSnapshot
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from spin.errors import SpinError
from tests.support.reading import read_in_this_process

READING = ("read", "exists", "list", "list_objects", "list_names", "read_many", "open", "download")
WRITING = ("write", "create", "upload", "delete_many")
_TIMEOUT = 120.0
"""seconds after which a driver that neither stops nor ends fails the test"""
_local = threading.local()


class Killed(BaseException):
    """The process of the driver ends here: none of its later operations reaches the store."""


@dataclass(frozen=True)
class Outage:
    """Operations that fail."""

    first: int
    """number of the first operation that fails"""
    length: int
    """how many fail in a row; a driver tries again until its time is up"""
    lost: bool
    """whether the store carries them out, and only its answers are lost"""

    def covers(self, operation: int) -> bool:
        return self.first <= operation < self.first + self.length


class Driver:
    """A command in a thread of its own. It stops before an operation, and goes on when it is told to."""

    def __init__(
        self, name: str, command: Callable[[], object], outage: Outage | None = None, request: object = None
    ) -> None:
        self.name, self.outage, self.request = name, outage, request
        self.operations = 0
        """operations so far, failed ones included"""
        self.trace: list[str] = []
        """names of the operations"""
        self.listed: list[InputFile] | None = None
        """the input files as the driver saw them first"""
        self.commits: list[tuple[str, int]] = []
        """URI and new version of each table that it committed to"""
        self.leases: dict[str, int] = {}
        """when it created its lease on a store, by the URI of the store: a number that grows from lease to lease"""
        self.result: object = None
        self.error: BaseException | None = None
        self.ended = False
        self._command, self._stop, self._dead = command, -1, False
        self._stop_after_lease: int | None = None
        self._go, self._idle = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.error is None:
            return 0
        return self.error.status if isinstance(self.error, SpinError) else 1

    @property
    def outcome(self) -> str:
        """How the command has ended, for statistics."""
        return "killed" if isinstance(self.error, Killed) else f"status {self.status}"

    def run(self, operations: int | None = None) -> None:
        """Start the driver or wake it, and wait until it has stopped after so many operations or has ended."""
        self._stop = -1 if operations is None else self.operations + operations
        self._idle.clear()
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.set()
        if not self._idle.wait(_TIMEOUT):
            raise AssertionError(f"{self.name} neither stops nor ends; last operations: {self.trace[-5:]}")
        if self.ended and not isinstance(self.error, (SpinError, Killed, type(None))):
            raise AssertionError(f"{self.name} ended with a traceback") from self.error

    def run_to_lease(self, operations: int) -> None:
        """Start the driver, and wait until it has stopped so many operations after its first lease or has ended."""
        self._stop_after_lease = operations
        self.run()

    def cut_off(self, operations: int, *, lost: bool) -> None:
        """Wake the driver, let its next operations fail, and wait until it has stopped after so many or has ended."""
        self.outage = Outage(self.operations, operations, lost)
        self.run(operations)

    def kill(self) -> None:
        """End the process of the driver."""
        if not self.ended:
            self._dead = True
            self.run()
            self._thread.join(_TIMEOUT)

    def before(self, operation: str) -> None:
        """Called before each operation: stop, fail or die here."""
        if not self._dead and self.operations == self._stop:
            self._go.clear()
            self._idle.set()
            self._go.wait()
        if self._dead:
            raise Killed
        self.operations += 1
        self.trace.append(operation)

    def took_lease(self) -> None:
        """Called when the driver holds a lease."""
        if self._stop_after_lease is not None:
            self._stop, self._stop_after_lease = self.operations + self._stop_after_lease, None

    def fails(self) -> bool:
        """Whether the operation that was announced last is within the outage."""
        return self.outage is not None and self.outage.covers(self.operations - 1)

    def _run(self) -> None:
        _local.driver = self
        try:
            self.result = self._command()
        except BaseException as error:  # reported by `run`
            self.error = error
        self.ended = True
        self._idle.set()


def current_driver() -> Driver | None:
    """The driver of this thread, None in all other threads."""
    return getattr(_local, "driver", None)


@contextmanager
def gated_stores() -> Iterator[None]:
    """Within the context, drivers stop at their operations, and neither pauses nor leases make anybody wait."""
    patch = pytest.MonkeyPatch()
    try:
        read_in_this_process(patch)
        _note_commits(patch)
        for name in READING:
            _gate(patch, Store, name, lossy=False)
        for name in WRITING:
            _gate(patch, Store, name, lossy=True)
        _gate(patch, TableSnapshot, "_commit", lossy=True)
        _gate(patch, NightTables, "find", lossy=False)
        _gate(patch, delta_table, "open_table", lossy=False)
        _note_listings(patch)
        _note_leases(patch)
        _let_leases_expire(patch)
        # only the thread of a driver stops at gates
        patch.setattr(rewritten_run, "ThreadPoolExecutor", _InThisThread)
        clock = _VirtualTime()
        patch.setattr(tenacity, "time", clock)
        patch.setattr(tenacity.nap, "time", clock)
        yield
    finally:
        patch.undo()


def _gate(patch: pytest.MonkeyPatch, owner: Any, name: str, *, lossy: bool) -> None:
    """Put a gate before an operation. If it is lossy, it may be carried out and fail all the same."""
    original = getattr(owner, name)

    def gated(*args: Any, **options: Any) -> Any:
        driver = current_driver()
        if driver is None:
            return original(*args, **options)
        driver.before(name)
        if driver.fails():
            if lossy and driver.outage is not None and driver.outage.lost:
                original(*args, **options)
            raise UnavailableError("the store does not answer")
        return original(*args, **options)

    patch.setattr(owner, name, gated)


def _note_commits(patch: pytest.MonkeyPatch) -> None:
    original = TableSnapshot._commit

    def commit(snapshot: TableSnapshot, *args: Any, **options: Any) -> None:
        original(snapshot, *args, **options)
        driver = current_driver()
        if driver is not None:
            driver.commits.append((snapshot.store.uri, snapshot.version + 1))

    patch.setattr(TableSnapshot, "_commit", commit)


def _note_listings(patch: pytest.MonkeyPatch) -> None:
    original = input_files.list_files

    def list_files(*args: Any, **options: Any) -> list[InputFile]:
        driver = current_driver()
        if driver is not None:
            driver.before("list_files")
        files = original(*args, **options)
        if driver is not None and driver.listed is None:
            driver.listed = files
        return files

    patch.setattr(input_files, "list_files", list_files)


def _note_leases(patch: pytest.MonkeyPatch) -> None:
    """Note when drivers create their leases, and tell them when they hold them."""
    enter, check, numbers = Lease.__enter__, Lease.check, count(1)

    def __enter__(self: Lease) -> Lease:
        lease = enter(self)
        driver = current_driver()
        if driver is not None:
            driver.took_lease()
        return lease

    def noting_check(self: Lease, **options: Any) -> None:
        driver = current_driver()
        if driver is not None and self.store.uri not in driver.leases:  # the first check follows the creation
            driver.leases[self.store.uri] = next(numbers)
        check(self, **options)

    patch.setattr(Lease, "__enter__", __enter__)
    patch.setattr(Lease, "check", noting_check)


def _let_leases_expire(patch: pytest.MonkeyPatch) -> None:
    """A lease is over as soon as its holder stops; a dead holder does not release it."""
    make, leave = Lease.__init__, Lease.__exit__

    def __init__(self: Lease, store: Store, *, ttl: float = 0.0) -> None:
        make(self, store, ttl=0.0)

    def __exit__(self: Lease, *error: Any) -> None:
        if error[0] is not Killed:
            leave(self, *error)

    patch.setattr(Lease, "__init__", __init__)
    patch.setattr(Lease, "__exit__", __exit__)
    patch.setattr(Lease, "_renew", lambda self: None)


class _InThisThread:
    """An executor without threads."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> _InThisThread:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        return map(function, values)


class _VirtualTime:
    """A clock that pauses advance, so that retries take no time."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
