"""The lease: one run at a time works in a store."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from spin.errors import SpinError


class Lease:
    """Holds a store for one run: a context that another run cannot enter while this one is alive.

    A lease is an object `_lease/NNNNNN`, made only if there is none, so a race has one winner, and the highest
    number holds the store. The holder writes its object anew while it works and marks it when it ends; one that
    stays as it is for `ttl` seconds is a dead run's. Either way the next number may be taken. The highest is never
    deleted, so numbers only grow and a holder that was overtaken stays so. Clocks are not compared between machines:
    a waiting run watches whether the object changes.
    """

    def __init__(self, store: Store, *, ttl: float = 30.0) -> None:
        self.store, self.ttl = store, ttl
        self.holder = f"{user_name()}@{socket.gethostname()} process {os.getpid()}"
        self.token = uuid.uuid4().hex
        self._number = 0
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        numbers = self._numbers()
        if numbers:
            self._outlive(numbers[-1])
        self._number = max(numbers, default=0) + 1
        self.store.create(_lease_key(self._number), self._content())
        self.check()  # another run may have been first, or gone past this number while we watched
        for number in numbers:
            self.store.delete(_lease_key(number))
        self._keeper = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._keeper.join()
        with suppress(SpinError):  # the store is away: the lease runs out, and the run's own outcome counts
            if self._mine():
                self.store.write(_lease_key(self._number), self._content(ended=True))

    def check(self) -> None:
        """Raise HeldError if another run has taken the lease: whatever is published from here on is not ours to."""
        if not self._mine():
            self._refuse(max(self._numbers(), default=self._number))

    def _mine(self) -> bool:
        found = self.store.read_json(_lease_key(self._number))
        return found is not None and found["token"] == self.token and self._numbers()[-1:] == [self._number]

    def _outlive(self, number: int) -> None:
        """Return once the holder has ended or is known to be dead; raise HeldError when it gives a sign of life."""
        seen = now = self.store.read_json(_lease_key(number))
        deadline = time.monotonic() + (seen["ttl"] if seen else 0)
        while now is not None and not now["ended"] and not _dead(now):
            if now["beat"] != seen["beat"]:
                self._refuse(number)
            if time.monotonic() >= deadline:
                return
            time.sleep(min(1.0, self.ttl / 10))
            now = self.store.read_json(_lease_key(number))

    def _refuse(self, number: int) -> None:
        found = self.store.read_json(_lease_key(number)) or {"holder": "another run"}
        raise HeldError(f"{self.store.uri} is held by {found['holder']}; wait until it ends, or end it")

    def _renew(self) -> None:
        while not self._ended.wait(self.ttl / 6):
            with suppress(SpinError):  # the store is away; the lease lasts until ttl
                if not self._mine():
                    return
                self.store.write(_lease_key(self._number), self._content())

    def _content(self, *, ended: bool = False) -> bytes:
        facts = {
            "holder": self.holder,
            "kernel": _kernel(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": self.token,
            "beat": uuid.uuid4().hex,
            "ttl": self.ttl,
            "ended": ended,
        }
        return json.dumps(facts).encode()

    def _numbers(self) -> list[int]:
        return sorted(int(key.rpartition("/")[2]) for key in self.store.list("_lease"))


def _lease_key(number: int) -> str:
    return f"_lease/{number:06d}"


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _dead(lease: dict[str, Any]) -> bool:
    """Whether the process that wrote a lease is seen from here to be gone."""
    return lease["kernel"] is not None and lease["kernel"] == _kernel() and _started(lease["pid"]) != lease["started"]


def _kernel() -> str | None:
    """Names the boot and the process namespace that pids belong to; a host name may be another container's too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, None if there is none: a pid may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
