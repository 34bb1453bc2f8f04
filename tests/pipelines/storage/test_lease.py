"""The lease beside what others put in its folder, its checks per shard, and its release after an interruption."""

from __future__ import annotations

import math
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage import lease as lease_module
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.pipelines.storage.test_object_store import Clock


class CountedStore(Store):
    """Counts reads and listings of the lease."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.calls: Counter[str] = Counter()

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        self.calls["read"] += 1
        return super().read(key, start, stop)

    def list(self, prefix: str = "") -> list[str]:
        self.calls["list"] += 1
        return super().list(prefix)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


@pytest.mark.parametrize("name", ["README", "000001.bak", "old/000007", "12", "000009/x"])
def test_an_object_that_is_no_lease_stops_no_run(name: str, store_uri: str) -> None:
    """The next run takes the next number after the highest lease, and the object stays."""
    store = Store(store_uri)
    store.write(f"_lease/{name}", b"by hand")
    for number in (1, 2):
        with Lease(store) as lease:
            lease.check()
            assert lease.number == number
    assert store.read(f"_lease/{name}") == b"by hand"


@pytest.mark.s3
def test_the_marker_of_the_lease_folder_stops_no_run(s3_server: str, tmp_path: Path) -> None:
    """Browsers of object stores create an empty object `_lease/` for a folder."""
    import boto3

    prefix = f"marker-{tmp_path.parent.name}-{tmp_path.name}"
    bucket = s3_server.removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/_lease/", Body=b"")
    for number in (1, 2):
        with Lease(Store(f"{s3_server}/{prefix}")) as lease:
            assert lease.number == number


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"holder": "x"}'])
def test_a_lease_that_cannot_be_read_expires_like_any_other(content: bytes, tmp_path: Path, clock: Clock) -> None:
    """It may be that of another version of spin at work, so the ttl is waited for."""
    store = Store(str(tmp_path))
    store.write("_lease/000004", content)
    with Lease(store, ttl=20.0) as lease:
        assert lease.number == 5
        assert clock.now - 100 >= 20


def test_a_lease_that_cannot_be_read_but_changes_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write("_lease/000004", b"first")
    clock = Clock()
    clock.sleep = lambda seconds: store.write("_lease/000004", b"second")  # type: ignore[method-assign]
    monkeypatch.setattr(lease_module, "time", clock)
    with pytest.raises(HeldError, match=r"held by an unknown run \(_lease/000004 cannot be read\)"), Lease(store):
        pass


def test_checks_between_shards_take_no_requests_while_the_lease_was_seen_held(tmp_path: Path, clock: Clock) -> None:
    """A thousand checks ask the store once per ten seconds of the clock; a check without an age always asks."""
    store = CountedStore(str(tmp_path))
    with Lease(store, ttl=36_000) as lease:
        store.calls.clear()
        for _ in range(1000):
            clock.now += 0.1
            lease.check(max_age=10)
        assert 9 <= store.calls["read"] == store.calls["list"] <= 10
        store.calls.clear()
        lease.check()
        assert store.calls == {"read": 1, "list": 1}


def test_the_heartbeat_counts_as_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for the lease before each beat, so that checks between shards need not."""
    write, beat = Store.write, threading.Event()

    def notice_beat(self: Store, key: str, data: bytes) -> None:
        write(self, key, data)
        beat.set()

    with Lease(Store(str(tmp_path)), ttl=0.3) as lease:
        monkeypatch.setattr(Store, "write", notice_beat)
        lease._confirmed = -math.inf
        assert beat.wait(30)
        assert lease._confirmed > -math.inf


def test_an_overtaken_lease_is_noticed_once_the_last_check_is_too_old(tmp_path: Path, clock: Clock) -> None:
    """And at once where something is to be published."""
    store = Store(str(tmp_path))
    lease = Lease(store, ttl=36_000)
    with lease:
        store.write("_lease/000001", lease._content(ended=True))
        with Lease(store, ttl=36_000):
            lease.check(max_age=10)
            with pytest.raises(HeldError):
                lease.check()
            with pytest.raises(HeldError):
                lease.check(max_age=10)


class Interrupted(BaseException):
    """As a signal raises it."""


def test_a_run_that_is_interrupted_while_it_takes_the_lease_releases_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run would else wait until the lease expires."""
    store, create = Store(str(tmp_path)), Store.create

    def interrupt(self: Store, key: str, data: bytes) -> bool:
        create(self, key, data)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", interrupt)
        with pytest.raises(Interrupted):
            Lease(store, ttl=36_000).__enter__()
    assert store.read_json("_lease/000001")["ended"] is True
    with Lease(store, ttl=36_000) as lease:
        assert lease.number == 2


def test_an_interrupted_run_does_not_wait_for_a_store_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is left to expire."""
    store, never = Store(str(tmp_path)), threading.Event()
    monkeypatch.setattr(lease_module, "_INTERRUPTED_SECONDS", 0.05)

    def hang(*_: Any) -> None:
        never.wait()
        raise UnavailableError("away")

    def run() -> None:
        with Lease(store, ttl=36_000):
            monkeypatch.setattr(Store, "read", hang)
            raise Interrupted

    with pytest.raises(Interrupted):
        run()
    never.set()
    monkeypatch.undo()
    assert store.read_json("_lease/000001")["ended"] is False
