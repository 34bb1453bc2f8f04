"""Stores that throttle, fail, hang, cut connections and fill up: bounded patience, a clean failure, a resumed night."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pipelines.nightly.run_records import ClassifyCounts
from pipelines.service_errors import UnavailableError
from pipelines.storage import filesystem as store_module
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import StepResult
from tests.pipelines.nightly.test_night import FakeStep, check_complete, delete_lease, read_predictions, run_night
from tests.support.proxy import FAULTS, Proxy, run_proxy

pytestmark = pytest.mark.s3
OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("b", b"new"),
    "create": lambda store: store.create("c", b"new"),
    "exists": lambda store: store.exists("a"),
    "size": lambda store: store.size("a"),
    "list": lambda store: store.list(),
    "copy": lambda store: store.copy("a", "b"),
    "delete": lambda store: store.delete("a"),
}


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Between the store and the server, with timeouts that a test can wait for."""
    config = {"connect_timeout": 1, "read_timeout": 1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(store_module._S3, "config_kwargs", config)
    with run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy: Proxy, s3_server: str) -> Store:
    """A prefix that holds one object, seen through the proxy."""
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    store.write("a", b"some bytes to be cut")
    return store


def check_done(store: Store, operation: str, answer: Any) -> None:
    """The operation had its effect, once."""
    expected = {"read": b"some bytes to be cut", "exists": True, "size": 20, "list": ["a"]}
    if operation in expected:
        assert answer == expected[operation]
    elif operation == "delete":
        assert store.list() == []
    else:
        assert store.list() == sorted({"a", "c" if operation == "create" else "b"})


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_that_passes_is_not_seen(operation: str, fault: str, store: Store, proxy: Proxy) -> None:
    """Every request of every operation goes wrong twice; the operation is done all the same."""
    seen: dict[tuple[str, str], int] = {}

    def twice(_: int, method: str, path: str) -> str | None:
        seen[method, path] = seen.get((method, path), 0) + 1
        return fault if seen[method, path] <= (1 if fault == "hang" else 2) else None

    proxy.fault = twice
    answer = OPERATIONS[operation](store)
    assert max(seen.values()) > 1
    proxy.fault = lambda *_: None
    if (operation, fault) == ("create", "lost"):
        assert answer is False, "who made it cannot be told from the answer; a lease reads what is there"
    check_done(store, operation, answer)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_words(
    fault: str, store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 5 after a bounded number of attempts."""
    monkeypatch.setattr(store_module, "_ATTEMPTS", 3)
    proxy.fault = lambda *_: fault
    before = proxy.count
    with pytest.raises(UnavailableError, match=r"does not answer .*try again") as error:
        Store(store.uri).read("a")
    assert error.value.status == 5
    assert 3 <= proxy.count - before <= 6, "aiohttp sends a GET again whose connection was closed"


def test_a_server_that_stops_reading_is_given_up(store: Store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timeout of a socket bounds that: the deadline of the operation does."""
    monkeypatch.setattr(store_module, "DEADLINE", 3)
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
        (25, "throttle"),
        (55, "throttle"),
        (85, "throttle"),
        (115, "throttle"),
        (40, "lost"),
        (100, "lost"),
    ],
)
def test_a_night_that_the_store_left_is_resumed(
    number: int, fault: str, s3_server: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some request on nothing goes through: a clean failure with nothing half-done to be seen; then it goes on."""
    monkeypatch.setattr(store_module, "_ATTEMPTS", 2)
    uri = f"{s3_server}/{uuid.uuid4().hex}"
    step, base = FakeStep(), proxy.count
    proxy.fault = lambda count, *_: fault if count > base + number else None
    with suppress(UnavailableError):  # the latest numbers lie behind the end of the night
        run_night(Store(uri), step)
    proxy.fault = lambda *_: None
    out = Store(uri)
    if out.read_json("latest") is not None:
        assert len(read_predictions(uri)) == 10
    delete_lease(out)
    run_night(out, step)
    check_complete(out)
    assert len(step.computed) <= 5


@pytest.fixture
def small_bucket(s3_server: str) -> str:
    """A bucket that holds 4 MB at most."""
    return "s3://spin-small"


def test_a_full_store_fails_clearly_and_resumes(small_bucket: str) -> None:
    """A quota of the server: status 5 in words, nothing to be seen of the night; with space again it ends."""
    out, ballast = Store(f"{small_bucket}/{uuid.uuid4().hex}"), Store(f"{small_bucket}/ballast")
    ballast.write("a", bytes(3 << 20))

    class Large(FakeStep):
        def __call__(self, shard: Any, attempt: Any) -> StepResult[ClassifyCounts]:
            result = super().__call__(shard, attempt)
            large = result.files["predictions.parquet"] + bytes(1 << 19)
            return StepResult({**result.files, "dead.parquet": large}, result.counts)

    step = Large()
    with pytest.raises(UnavailableError, match=r"is full .*QuotaExceeded.*run it again to resume") as error:
        run_night(out, step)
    assert error.value.status == 5
    assert out.read_json("latest") is None
    assert out.list("predictions") == out.list("dead_letters") == []
    ballast.delete("")
    out.delete("")
