"""Spans of shards, also of very many, and what is said of those that a collector does not take."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.storage.object_store import Store
from pipelines.telemetry import observed_runs, traces
from pipelines.telemetry.current_runs import CurrentRun, working_on
from pipelines.telemetry.observed_runs import observe_runs, observe_stage, observe_work
from pipelines.telemetry.run_events import RunStart, WorkError
from spin.errors import SpinError, UserError
from tests.support.collectors import Receiver, receiving

RUN = CurrentRun("2026-03-01-tiny-000001", "tiny")


@dataclass(frozen=True)
class Counts:
    """Counts of a stage that reads no tokens."""

    rows: int = 10
    dead_letters: int = 1


@dataclass(frozen=True)
class CommittedShard:
    """A shard that a worker has committed."""

    counts: Counts = Counts()
    tries: int = 1
    seconds: float = 2.5
    ended: float = 1_800_000_000.25


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector to which traces are sent."""
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
        yield receiver


def run_shards(folder: Path, *shards: CommittedShard) -> None:
    """A stage in which workers commit shards."""
    store = Store(str(folder))
    start = RunStart(run=RUN, kind="night", number=1, home=store.uri, records=store)
    with working_on([RUN]), observe_runs([start]), observe_work(), observe_stage("classify") as stage:
        for number, shard in enumerate(shards):
            stage.shard_ended(f"{number:06d}", shard)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_shard_that_was_tried_again_says_so(receiver: Receiver, tmp_path: Path) -> None:
    run_shards(tmp_path, CommittedShard(), CommittedShard(tries=3))
    first, second = receiver.named("shard")
    assert (first.attributes["spin.tries"], first.events) == (1, ())
    assert (second.attributes["spin.tries"], second.events) == (3, ("retried",))
    assert first.end == pytest.approx(1_800_000_000.25, abs=1e-3)
    assert first.end - first.start == pytest.approx(2.5, abs=1e-3)
    assert "spin.tokens" not in first.attributes


def test_as_many_shards_as_the_queue_holds_arrive(receiver: Receiver, tmp_path: Path) -> None:
    """Far more than the SDK would let wait by default."""
    run_shards(tmp_path, *[CommittedShard()] * 12_000)
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
        run_shards(tmp_path, *[CommittedShard()] * 100)
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
        run_shards(tmp_path, *[CommittedShard()] * 2_000)
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


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (UserError("s3://a:b@c is no store"), WorkError("UserError", "s3://***@c is no store", 2, False)),
        (SpinError("two\n lines"), WorkError("SpinError", "two lines", 1, False)),
        (KeyError("a text"), WorkError("KeyError", "KeyError; the log has its message", 1, False)),
        (KeyboardInterrupt(), WorkError("KeyboardInterrupt", "KeyboardInterrupt", 130, True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_reported_in_one_line(error: BaseException, reported: WorkError) -> None:
    assert WorkError.of(error) == reported
