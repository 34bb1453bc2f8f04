"""Spans of shards, also of very many, those that a collector does not take, and links to earlier processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from pipelines.service_errors import UnavailableError
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from pipelines.telemetry import observed_runs, traces
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import observe_runs, observe_stage, observe_work, report_shard
from pipelines.telemetry.run_record import RunRecord
from tests.support.collectors import Receiver, receiving

RUN = CurrentRun("2026-03-01-tiny-000001", "tiny")


SHARD = ShardOutcome(ShardCounts(rows=10), {}, tries=1, seconds=2.5, ended=1_800_000_000.25)
"""of a stage that reads no tokens"""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector to which traces are sent."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
        yield receiver


def run_shards(folder: Path, *shards: ShardOutcome[ShardCounts]) -> None:
    """A stage in which workers commit shards."""
    store = Store(str(folder))
    start = RunRecord(run=RUN, kind="night", number=1, home=store.uri, records=store)
    with working_on([RUN]), observe_runs([start]), observe_work(), observe_stage("classify"):
        for number, shard in enumerate(shards):
            report_shard(f"{number:06d}", shard)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_shard_that_was_tried_again_says_so(receiver: Receiver, tmp_path: Path) -> None:
    run_shards(tmp_path, SHARD, replace(SHARD, tries=3))
    first, second = receiver.named("shard")
    assert (first.attributes["spin.tries"], first.events) == (1, ())
    assert (second.attributes["spin.tries"], second.events) == (3, ("retried",))
    assert first.end == pytest.approx(1_800_000_000.25, abs=1e-3)
    assert first.end - first.start == pytest.approx(2.5, abs=1e-3)
    assert "spin.tokens" not in first.attributes


@pytest.mark.slow
def test_as_many_shards_as_the_queue_holds_arrive(receiver: Receiver, tmp_path: Path) -> None:
    """Far more than the SDK would let wait by default."""
    run_shards(tmp_path, *[SHARD] * 12_000)
    assert len(receiver.named("shard")) == 12_000
    assert len({span.attributes["spin.shard"] for span in receiver.named("shard")}) == 12_000


def test_spans_that_are_dropped_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A collector that does not answer fills the queue: one warning when spans are dropped, one with their number."""
    monkeypatch.setattr(observed_runs, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(traces, "QUEUED_SPANS", 20)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with receiving(hanging=True) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        run_shards(tmp_path, *[SHARD] * 100)
    dropped, lost = warnings_of(caplog)
    assert "spans are dropped, since 20 of them wait for the collector at http://127.0.0.1" in dropped
    assert "102 of 102 spans were not delivered" in lost


def test_a_collector_that_recovers_gets_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, and nothing is said."""
    with receiving(hanging=True) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        threading.Thread(target=lambda: receiver.arrived.wait() and receiver.released.set(), daemon=True).start()
        run_shards(tmp_path, *[SHARD] * 2_000)
        assert len(receiver.named("shard")) == 2_000
    assert warnings_of(caplog) == []


def test_names_of_the_environment_are_kept(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nights of the archive")
    run_shards(tmp_path)
    assert receiver.services == {"nights of the archive"}


def test_credentials_of_the_endpoint_are_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observed_runs, "FLUSH_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@127.0.0.1:9")
    run_shards(tmp_path)
    assert "http://***@127.0.0.1:9" in warnings_of(caplog)[-1]
    assert "secret" not in caplog.text


def test_the_sdk_writes_its_own_lines_again_afterwards(receiver: Receiver, tmp_path: Path) -> None:
    run_shards(tmp_path)
    logger = logging.getLogger("opentelemetry.exporter.otlp")
    assert logger.propagate
    assert not any(isinstance(handler, traces._SdkMessages) for handler in logger.handlers)


# links to earlier processes


def make_span(number: int) -> NonRecordingSpan:
    """The root span of another process."""
    return NonRecordingSpan(SpanContext(number, number, is_remote=True, trace_flags=TraceFlags(1)))


def find_number(store: Store, number: int) -> int | None:
    """The number of the process that a later one finds, which `make_span` has made its ids of."""
    earlier = traces.find_earlier(store, number)
    return None if earlier is None else earlier.span_id


def test_the_latest_earlier_process_is_found(store_uri: str) -> None:
    """In whatever order they store their spans; in a folder and on S3."""
    records = Store(store_uri)
    assert find_number(records, 9) is None
    for number in (2, 10, 1):
        traces.store_span(records, number, make_span(number))
    assert find_number(records, 11) == 10
    assert find_number(records, 10) == 2
    assert find_number(records, 1) is None


def test_a_span_is_stored_in_the_form_of_w3c(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    traces.store_span(store, 7, make_span(255))
    traces.store_span(store, 7, make_span(1))  # not replaced
    assert (tmp_path / "traceparent-000007").read_text() == f"00-{'0' * 30}ff-{'0' * 14}ff-01\n"


@pytest.mark.parametrize("content", [b"", b"\xff", b"00-1-2-01", b"99-" + b"0" * 32])
def test_a_damaged_record_is_no_link(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "traceparent-000001").write_bytes(content)
    assert find_number(Store(str(tmp_path)), 2) is None


def test_a_store_that_does_not_answer_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work goes on without a link."""

    def fail(*args: object) -> None:
        raise UnavailableError("the store is away")

    monkeypatch.setattr(Store, "list_names", fail)
    monkeypatch.setattr(Store, "create", fail)
    records = Store(str(tmp_path))
    assert find_number(records, 2) is None
    traces.store_span(records, 2, make_span(2))
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["the store is away"] * 2
