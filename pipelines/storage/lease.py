"""The lease: only one run at a time works in a store."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from pipelines.storage.records import NullsWritten, from_json, to_bytes
from spin.errors import SpinError

_log = logging.getLogger(__name__)
LEASE_CHECK_SECONDS = 10.0
"""age up to which an answer of the lease is good enough between two shards; the heartbeat renews it every 5 s"""
_KEY = re.compile(r"_lease/(\d{6,})")
"""an object under `_lease/` whose name is no number is no lease, such as the marker of a folder"""
_INTERRUPTED_SECONDS = 10.0
"""for which an interrupted run waits until its lease is released; a store that does not answer must not keep it"""


@dataclass(frozen=True)
class LeaseRecord(NullsWritten):
    """The content of an object `_lease/NNNNNN`."""

    holder: str
    """user, host and process, for messages"""
    kernel: str | None
    """boot and process namespace that `pid` belongs to, None where the system does not name them"""
    pid: int
    """process of the holder"""
    started: str | None
    """when that process started, in clock ticks since boot: a pid may belong to another process by now"""
    holder_id: str
    """random, one per run"""
    beat: str
    """random, new in every write: a lease whose beat changes has a living holder"""
    ttl: float
    """seconds without a new beat after which another run may take the store"""
    ended: bool
    """whether the holder has released the store"""

    def is_dead(self) -> bool:
        """Whether the process of the holder belongs to this kernel and no longer exists."""
        return self.kernel is not None and self.kernel == _kernel() and _start_time(self.pid) != self.started


class Lease:
    """Holds a store for one run: a context that another run cannot enter while the holder is alive.

    A lease is an object `_lease/NNNNNN`, created only if there is none, so a race has one winner, and the highest
    number holds the store. The holder rewrites its object while it works and marks it when it ends; an object that
    does not change for `ttl` seconds belongs to a dead run. In both cases the next number may be taken. The highest
    number is never deleted, so numbers only grow and an overtaken holder stays overtaken. Clocks of different machines
    are not compared: a waiting run watches whether the object changes.
    """

    def __init__(self, store: Store, *, ttl: float = 30.0) -> None:
        self.store, self.ttl = store, ttl
        self.holder = f"{user_name()}@{socket.gethostname()} process {os.getpid()}"
        self._record = LeaseRecord(
            holder=self.holder,
            kernel=_kernel(),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            holder_id=uuid.uuid4().hex,
            beat="",
            ttl=ttl,
            ended=False,
        )
        self.number = 0
        """of the lease, once it is held; higher than that of every earlier holder"""
        self._confirmed = -math.inf
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Lease:
        numbers = self._numbers()
        if numbers:
            self._outlive(numbers[-1])
        self.number = max(numbers, default=0) + 1
        try:
            self.store.create(_lease_key(self.number), self._content())
            self.check()  # another run may have been first, or gone past this number while we watched
            self.store.delete_many([_lease_key(number) for number in numbers])
        except HeldError:
            raise
        except BaseException:  # `__exit__` is not called: a run that is interrupted here must not keep others waiting
            self._release()
            raise
        self._keeper = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        release = threading.Thread(target=self._release, daemon=True, name="release")
        release.start()
        interrupted = kind is not None and not issubclass(kind, Exception)
        release.join(_INTERRUPTED_SECONDS if interrupted else None)

    def check(self, *, max_age: float = 0.0) -> None:
        """Raise HeldError if another run has taken the lease: this one may not publish anything from then on.

        With `max_age`, nothing is asked of the store if the lease was found to be held in the last so many seconds, by
        this method or by the heartbeat. Before anything is published, `max_age` must be 0.
        """
        if time.monotonic() - self._confirmed < max_age:
            return
        if not self._holds():
            self._refuse(max(self._numbers(), default=self.number))

    @property
    def age(self) -> float:
        """Seconds since the lease was last found to be held; infinite if it is not."""
        return time.monotonic() - self._confirmed

    def _holds(self) -> bool:
        asked = time.monotonic()
        record, own = self._read(self.number), self._record.holder_id
        holds = record is not None and record.holder_id == own and self._numbers()[-1:] == [self.number]
        self._confirmed = asked if holds else -math.inf
        return holds

    def _release(self) -> None:
        """Mark the lease as ended if it is held, after the last heartbeat."""
        if self._keeper is not None:
            self._keeper.join()
        try:
            if self._holds():
                self.store.write(_lease_key(self.number), self._content(ended=True))
        except SpinError:  # the lease expires by itself, and the outcome of the run counts
            _log.debug("%s: the lease could not be released", self.store.uri, exc_info=True)

    def _outlive(self, number: int) -> None:
        """Return once the holder has ended or is known to be dead; raise HeldError if it shows a sign of life."""
        first = now = self._read(number)
        deadline = time.monotonic() + (first.ttl if first else 0)
        while first is not None and now is not None and not now.ended and not now.is_dead():
            # guarded by test_a_lease_that_cannot_be_read_but_changes_is_held
            if now.beat != first.beat:
                self._refuse(number)
            if time.monotonic() >= deadline:
                return
            time.sleep(min(1.0, self.ttl / 10))
            now = self._read(number)

    def _refuse(self, number: int) -> None:
        record = self._read(number)
        holder = "another run" if record is None else record.holder
        raise HeldError(f"{self.store.uri} is held by {holder}; wait until it ends, or end it")

    def _renew(self) -> None:
        while not self._ended.wait(self.ttl / 6):
            try:
                if not self._holds():
                    return
                self.store.write(_lease_key(self.number), self._content())
            except SpinError:  # the lease lasts until its ttl
                _log.debug(
                    "%s: the lease could not be renewed, the next attempt follows", self.store.uri, exc_info=True
                )

    def _content(self, *, ended: bool = False) -> bytes:
        return to_bytes(replace(self._record, beat=uuid.uuid4().hex, ended=ended))

    def _read(self, number: int) -> LeaseRecord | None:
        data = self.store.read(_lease_key(number))
        if data is None:
            return None
        try:
            return from_json(LeaseRecord, json.loads(data))
        except ValueError:  # it may be a lease of another version of spin: it expires like a lease
            _log.debug("%s/%s is no lease", self.store.uri, _lease_key(number), exc_info=True)
            unknown = f"an unknown run ({_lease_key(number)} cannot be read)"
            beat = hashlib.sha256(data).hexdigest()
            return LeaseRecord(unknown, None, 0, None, "", beat, self.ttl, ended=False)

    def _numbers(self) -> list[int]:
        keys = self.store.list("_lease")
        return sorted(int(match[1]) for key in keys if (match := _KEY.fullmatch(key)))


class LeaseGroup:
    """The leases of a run that works on several stores at once: it goes on while it holds at least one of them."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        self._held = list(leases)
        self._overtaken: HeldError | None = None

    @property
    def age(self) -> float:
        """Seconds since any of the leases was last found to be held; infinite if none is."""
        return min((lease.age for lease in self._held), default=math.inf)

    def check(self, *, max_age: float = 0.0) -> None:
        """Raise HeldError if other runs have taken all of the leases; `max_age` is as in `Lease.check`.

        A lease that was taken is not asked about again: it stays taken. Whoever publishes something checks its own
        lease.
        """
        while self._held:
            try:
                return self._held[0].check(max_age=max_age)
            except HeldError as error:
                self._overtaken = error
                # guarded by test_a_driver_that_is_overtaken_for_one_model_publishes_the_others; broken by:
                #   raise
                del self._held[0]
                if self._held:
                    _log.warning("%s; the run goes on with what it still holds", error)
        assert self._overtaken is not None
        raise self._overtaken


@contextmanager
def overtaken_first(lease: Lease | LeaseGroup) -> Iterator[None]:
    """Raise HeldError in place of another error if another driver has taken over.

    It may have published the run of this one and deleted what nobody needs then, so the error may follow from that.
    """
    try:
        yield
    except HeldError:
        raise
    except SpinError as error:
        try:
            lease.check()
        except HeldError as overtaken:
            raise overtaken from error
        except SpinError:
            _log.debug("the lease could not be checked after an error", exc_info=True)
        raise


def _lease_key(number: int) -> str:
    return f"_lease/{number:06d}"


def user_name() -> str:
    """The user that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user id without a name
        return f"user {os.getuid()}"


def _kernel() -> str | None:
    """The boot and the process namespace that pids belong to; two containers may have the same host name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """The start of a process in clock ticks since boot, which no setting of a clock changes; None if there is none."""
    try:
        # field 22; the name of the program in parentheses, field 2, may hold spaces and parentheses itself
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[22 - 3].decode()
    except OSError:
        return None
