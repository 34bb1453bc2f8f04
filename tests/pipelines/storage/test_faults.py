"""Stores that throttle, fail, hang, cut connections and fill up: bounded retries, a clean failure, a resumed night."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pipelines.nightly import classify_pass
from pipelines.nightly.tables.night_history import list_nights
from pipelines.service_errors import UnavailableError
from pipelines.storage import delta_table, filesystem, object_store
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import StepResult
from tests.support.fake_nights import DATE, FakeNights, FakeStep, make_rows, use_fake_step
from tests.support.proxy import FAULTS, Proxy, run_proxy

pytestmark = pytest.mark.s3
OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("b", b"new"),
    "create": lambda store: store.create("c", b"new"),
    "exists": lambda store: store.exists("a"),
    "list": lambda store: store.list(),
    "delete": lambda store: store.delete_many(["a"]),
}


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the store and the server, with timeouts short enough for a test."""
    config = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(filesystem._S3, "config_kwargs", config)
    with run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy: Proxy, s3_server: str) -> Store:
    """A store behind the proxy that holds one object."""
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    store.write("a", b"some bytes to be cut")
    return store


def check_done(store: Store, operation: str, result: Any) -> None:
    """Assert that the operation returned the right value and had its effect exactly once."""
    expected = {"read": b"some bytes to be cut", "exists": True, "list": ["a"]}
    if operation in expected:
        assert result == expected[operation]
    elif operation == "delete":
        assert store.list() == []
    else:
        assert store.list() == sorted({"a", "c" if operation == "create" else "b"})


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_succeeds_after_temporary_faults(
    operation: str, fault: str, store: Store, proxy: Proxy
) -> None:
    """Each request fails twice (once if it hangs) and then succeeds; no operation raises or repeats its effect."""
    attempts_by_request: dict[tuple[str, str], int] = {}

    def fail_first_attempts(_: int, method: str, path: str) -> str | None:
        attempts_by_request[method, path] = attempts_by_request.get((method, path), 0) + 1
        return fault if attempts_by_request[method, path] <= (1 if fault == "hang" else 2) else None

    proxy.fault = fail_first_attempts
    result = OPERATIONS[operation](store)
    assert max(attempts_by_request.values()) > 1
    proxy.fault = lambda *_: None
    if (operation, fault) == ("create", "lost"):
        assert result is False, "the retry finds the object of the first attempt; a lease compares holders instead"
    check_done(store, operation, result)


@pytest.mark.parametrize("stop", [None, 10], ids=["whole", "range"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_permanent_fault_raises_unavailable_error(
    fault: str, stop: int | None, store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has status 5 and comes after a bounded number of attempts."""
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 3)
    proxy.fault = lambda *_: fault
    before = proxy.count
    with pytest.raises(UnavailableError, match=r"does not answer .*try again") as error:
        Store(store.uri).read("a", None if stop is None else 0, stop)
    assert error.value.status == 5
    # aiohttp resends a GET whose connection was closed, and s3fs repeats a range around its own attempts
    assert 3 <= proxy.count - before <= (6 if stop is None else 18)


def test_a_write_to_a_server_that_stops_reading_times_out(
    store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket timeout covers a server that stops reading; the deadline of the operation does."""
    monkeypatch.setattr(object_store, "DEADLINE", 3)
    proxy.fault = lambda *_: "stall"
    with pytest.raises(UnavailableError, match="does not answer"):
        store.write("b", bytes(40 << 20))
    proxy.released.set()
    proxy.fault = lambda *_: None
    assert store.list() == ["a"]


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (3, "throttle"),
        (40, "throttle"),
        (80, "throttle"),
        (120, "throttle"),
        (160, "throttle"),
        (60, "lost"),
        (140, "lost"),
    ],
)
def test_a_night_resumes_after_a_store_outage(
    number: int, fault: str, s3_server: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request after a given one fails: the night ends without partial results, and a rerun completes it."""
    use_fake_step(monkeypatch)
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 2)
    monkeypatch.setattr(delta_table, "DEADLINE", 1)
    nights = FakeNights(f"{s3_server}/{uuid.uuid4().hex}")
    nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(12))))
    base = proxy.count
    proxy.fault = lambda count, *_: fault if count > base + number else None
    with suppress(UnavailableError):  # the highest numbers may come after the last request of the night
        nights.run()
    proxy.fault = lambda *_: None
    nights.expire_lease()
    nights.run()
    assert nights.ids() == {DATE: sorted(f"a{n}" for n in range(12))}
    assert len(FakeStep.computed) <= 3 + 1


@pytest.fixture
def small_bucket(s3_server: str) -> str:
    """A bucket with a quota of 4 MB."""
    return "s3://spin-small"


def test_an_exhausted_quota_fails_the_night_and_publishes_nothing(
    small_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has status 5, names the quota and says how to resume."""
    use_fake_step(monkeypatch)
    nights, ballast = FakeNights(f"{small_bucket}/{uuid.uuid4().hex}"), Store(f"{small_bucket}/ballast")
    nights.write("a.jsonl", make_rows(*(f"a{n}" for n in range(12))))
    ballast.write("a", bytes(3 << 20))

    class LargeStep(FakeStep):
        def __call__(self, shard: Any, attempt: Any) -> StepResult[Any]:
            result = super().__call__(shard, attempt)
            return StepResult({**result.files, "dead.parquet": bytes(1 << 19)}, result.counts)

    monkeypatch.setattr(classify_pass, "ClassifyStep", LargeStep)
    with pytest.raises(UnavailableError, match=r"is full .*QuotaExceeded.*run it again to resume") as error:
        nights.run()
    assert error.value.status == 5
    assert list_nights(nights.tables) == []
    ballast.delete_many(ballast.list())
    nights.store.delete_many(nights.store.list())
