"""The root spans of earlier processes of a run are found by their numbers, and none is ever replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from pipelines.telemetry.trace_links import RootSpan, find_earlier, store_span


def make_span(number: int) -> RootSpan:
    return RootSpan(f"{number:032x}", f"{number:016x}", sampled=True)


def test_the_latest_earlier_process_is_found(store_uri: str) -> None:
    """In whatever order they store their spans; in a folder and on S3."""
    records = Store(store_uri)
    assert find_earlier(records, 9) is None
    for number in (2, 10, 1):
        store_span(records, number, make_span(number))
    assert find_earlier(records, 11) == make_span(10)
    assert find_earlier(records, 10) == make_span(2)
    assert find_earlier(records, 1) is None


def test_a_span_is_stored_in_the_form_of_w3c(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store_span(store, 7, make_span(255))
    store_span(store, 7, make_span(1))  # not replaced
    assert (tmp_path / "traceparent-000007").read_text() == f"00-{'0' * 30}ff-{'0' * 14}ff-01\n"


@pytest.mark.parametrize("content", [b"", b"\xff", b"00-1-2-01", b"99-" + b"0" * 32])
def test_a_damaged_record_is_no_link(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "traceparent-000001").write_bytes(content)
    assert find_earlier(Store(str(tmp_path)), 2) is None


def test_a_store_that_does_not_answer_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work goes on without a link."""

    def fail(*args: object) -> None:
        raise UnavailableError("the store is away")

    monkeypatch.setattr(Store, "list_names", fail)
    monkeypatch.setattr(Store, "create", fail)
    records = Store(str(tmp_path))
    assert find_earlier(records, 2) is None
    store_span(records, 2, make_span(2))
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["the store is away"] * 2
