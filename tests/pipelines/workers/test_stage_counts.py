"""Progress within shards: what workers report, and what the driver makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.files.shards import Piece, Shard
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, ShardOutcome, StepResult
from pipelines.workers import map_shards as map_shards_module
from pipelines.workers import stage_counts
from pipelines.workers.map_shards import ShardWork, map_shards
from pipelines.workers.stage_counts import ShardReports, StageCounts, count_shard, report_to
from spin.settings import RaySettings

SHARDS = [Shard(n, (Piece("a.jsonl", "jsonl", 0, 2_000_000, documents=10),)) for n in range(2)]


def make_outcome(rows: int, tries: int = 1) -> ShardOutcome[ShardCounts]:
    return ShardOutcome(ShardCounts(rows=rows), {}, tries=tries, seconds=1.0, ended=0.0)


class HalfwayStep:
    """Computes half of a shard, and the rest only when the file `go` is there."""

    def __init__(self, go: Path) -> None:
        self.go = go

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        attempt.advance(5)
        until = time.monotonic() + 60
        while not self.go.exists() and time.monotonic() < until:
            attempt.advance(0)
            time.sleep(0.05)
        return StepResult({}, ShardCounts(rows=10 if self.go.exists() else 0))


def test_a_shard_counts_at_most_once() -> None:
    """While it is at work by what was reported last, also when it is computed again; then with its size."""
    reports, before = ShardReports(), make_outcome(100)
    shards = [Shard(n, (Piece("a.jsonl", "jsonl", 0, 10, documents=10),)) for n in range(3)]
    counts = StageCounts(shards, {"000000": before}, 120)
    assert (counts.done(), counts.total, counts.unit) == (100, 120, "documents")
    counts.listen(reports.read)
    reports.report("000001", 4)
    assert counts.done() == 104
    reports.report("000001", 14)
    assert counts.done() == 110
    counts.shard_ended("000001", make_outcome(9, tries=3))
    assert counts.done() == 109
    reports.report("000002", 1)
    assert counts.done() == 110
    assert counts.others == {"dead": 0, "retried": 2}


def test_a_worker_reports_now_and_then() -> None:
    now, told = 0.0, []
    advance = count_shard("000007", lambda shard, documents: told.append((shard, documents)), clock=lambda: now)
    for seconds in (0.2, 0.6, 0.3, 0.5, 0.6):
        now += seconds
        advance(2)
    assert told == [("000007", 6), ("000007", 10)]


def test_a_report_that_fails_does_not_fail_the_worker() -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError("the actor is away")

    report_to(Gone())("000007", 6)


@pytest.mark.parametrize(
    ("documents", "unit", "expected"), [(20, "documents", [0, 5, 10, 15, 20]), (None, "MB", [0, 0, 2, 2, 4])]
)
def test_progress_advances_within_a_shard(
    documents: int | None, unit: str, expected: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where documents are not counted yet, it is in bytes of whole shards."""
    monkeypatch.setattr(stage_counts, "_REPORT_SECONDS", 0)
    seen: list[Any] = []
    counts: list[Callable[[], float]] = []

    class Step:
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
            seen.append(counts[0]())
            if documents is not None:
                attempt.advance(5)
            seen.append(counts[0]())
            return StepResult({}, ShardCounts(rows=10))

    @contextmanager
    def show(stage: str, total: float, unit: str, count: Callable[[], float], others: Any) -> Iterator[None]:
        seen.append((total, unit))
        counts.append(count)
        yield
        seen.append(count())

    monkeypatch.setattr(map_shards_module, "polled_progress", show)
    _map(Step, (), tmp_path, RaySettings(workers=0), documents)
    assert seen == [(expected[-1], unit), *expected]


def test_workers_report_to_the_driver(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards end only after the driver has seen half of one."""
    seen: set[float] = set()
    original = map_shards_module.polled_progress

    def show(stage: str, total: float, unit: str, count: Callable[[], float], others: Any) -> Any:
        def count_and_go() -> float:
            seen.add(done := count())
            if done >= 5:
                (tmp_path / "go").touch()
            return done

        return original(stage, total, unit, count_and_go, others)

    monkeypatch.setattr(map_shards_module, "polled_progress", show)
    _map(HalfwayStep, (tmp_path / "go",), tmp_path, RaySettings(workers=1), 20)
    assert 5 in seen


def _map(make: Any, args: tuple[Any, ...], folder: Path, settings: RaySettings, documents: int | None) -> None:
    store = Store(str(folder / "store"))
    with Lease(store) as lease:
        where = {"stage": "extract", "claim": lease.number, "backbone": "engine torch, precision float32"}
        work = ShardWork(make, args, ShardCounts, store, settings, **where)
        outcomes = map_shards(work, SHARDS, lease, documents=documents)
    assert [outcome.counts.rows for outcome in outcomes] == [10, 10]
