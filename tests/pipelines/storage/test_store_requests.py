"""Requests to S3 and their failures are counted, each attempt of them."""

from __future__ import annotations

import os
import uuid

import pytest

from infra.nodes import free_port
from pipelines.service_errors import UnavailableError
from pipelines.storage import filesystem
from pipelines.storage.input_opener import InputOpener
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.stage_plan import delete_objects
from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestTotals
from tests.support.proxy import run_proxy


def count_since(before: RequestTotals) -> RequestTotals:
    return PROCESS_REQUESTS.totals().since(before)


@pytest.mark.s3
def test_requests_are_those_that_a_proxy_forwards(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not exist, or exists already, is no failure."""
    with run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store, before = Store(f"{s3_server}/{uuid.uuid4().hex}"), PROCESS_REQUESTS.totals()
        store.write("a", b"1")
        assert store.read("a") == b"1"
        assert store.read("b") is None
        assert not store.create("a", b"2")
        assert store.list() == ["a"]
        counted = count_since(before)
        assert counted.requests.total() == proxy.count
    assert counted.requests["PutObject"] == 2
    assert counted.requests["GetObject"] >= 1
    assert not counted.errors


@pytest.mark.s3
def test_every_attempt_is_counted(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy store answers at the third attempt."""
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    with run_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        proxy.fault = lambda number, method, path: {1: "throttle", 2: "error"}.get(number)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        before = PROCESS_REQUESTS.totals()
        Store(store.uri).write("a", b"1")
    counted = count_since(before)
    assert counted.requests == {"PutObject": 3}
    assert counted.errors == {("PutObject", "503"): 1, ("PutObject", "500"): 1}


@pytest.mark.s3
def test_a_server_that_is_away_is_an_error(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    before = PROCESS_REQUESTS.totals()
    with pytest.raises(UnavailableError):
        Store(f"{s3_server}/a").write("a", b"1")
    assert count_since(before).errors == {("PutObject", "unanswered"): 2}


@pytest.mark.s3
def test_the_objects_of_a_stage_are_deleted_by_a_request_per_thousand(s3_server: str) -> None:
    """In two batches of results and one each of manifests and plans; objects that are gone count too."""
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    keys = ["manifest.json", "plan.json", *(f"parts/{number}" for number in range(1200))]
    with Lease(store) as lease:
        for key in keys[:5]:
            store.write(key, b"1")
        before = PROCESS_REQUESTS.totals()
        delete_objects(store, keys, lease)
        counted = count_since(before)
        assert store.list() == ["_lease/000001"]
    assert counted.requests["DeleteObjects"] == 4
    assert counted.requests.total() < 30  # others are those of the lease


@pytest.mark.s3
def test_reads_of_input_files_are_counted_too(s3_server: str) -> None:
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    store.write("a.txt", b"text")
    before = PROCESS_REQUESTS.totals()
    with InputOpener().open(f"{store.uri}/a.txt") as file:
        assert file.read() == b"text"
    assert count_since(before).requests["GetObject"] == 1


def test_a_folder_sends_no_requests(tmp_path: object) -> None:
    before = PROCESS_REQUESTS.totals()
    Store(str(tmp_path)).write("a", b"1")
    assert count_since(before) == RequestTotals()
