"""The metrics of a stage, by a stand-in for Ray's instruments; tests/infra/test_monitoring.py has the real ones."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.util import metrics as ray_metrics

from pipelines.nightly.steps.counts import ClassifyCounts, PassCounts
from pipelines.storage.shard_log import ShardCounts, ShardOutcome
from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestTotals
from pipelines.telemetry.current_runs import CurrentRun, current_runs, working_on
from pipelines.workers import stage_metrics
from pipelines.workers.stage_metrics import StageMetrics, export_metrics

A, B = CurrentRun("run-a", "a"), CurrentRun("run-b", "b")
Recorded = Counter[tuple[str, str]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """The recorded values, by the name of an instrument and its labels in order of name."""
    values: Recorded = Counter()

    class Instrument:
        def __init__(self, name: str, description: str, *args: Any, tag_keys: tuple[str, ...], **_: Any) -> None:
            assert description
            self.name, self.keys = name, set(tag_keys)

        def add(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == self.keys
            values[self.name, " ".join(f"{k}={v}" for k, v in sorted(tags.items()))] += value  # type: ignore[assignment]

        inc = set = observe = add

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Instrument)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return values


class FixedLease:
    """A lease of a fixed age."""

    age = 3.0


def make_counts(rows: int, dead: int, depths: dict[str, int]) -> ClassifyCounts:
    return ClassifyCounts(
        rows=rows, uri="a", work="", predicted=rows - dead, dead=dead, reasons={"empty_text": dead} if dead else {},
        labels={}, abstained=0, unlabelled=0, depths=depths, tokens=10 * rows, truncated=0,
    )  # fmt: skip


def make_outcome(counts: Any, tries: int = 1) -> ShardOutcome[Any]:
    return ShardOutcome(counts, {}, tries=tries, seconds=2.5, ended=0.0)


def test_a_shard_of_one_model(recorded: Recorded) -> None:
    metrics = StageMetrics("classify", (A,))
    counts = PassCounts(rows=40, models={"run-a": make_counts(40, 1, {"3": 30, "-1": 9})})
    metrics.count(make_outcome(counts, tries=3))
    labels = "model=a stage=classify"
    assert recorded == {
        ("spin_documents", labels): 40,
        ("spin_tokens", labels): 400,
        ("spin_dead_letters", "model=a reason=empty_text stage=classify"): 1,
        ("spin_exits", f"depth=3 {labels}"): 30,
        ("spin_exits", f"depth=-1 {labels}"): 9,
        ("spin_shards", labels): 1,
        ("spin_retries", labels): 2,
        ("spin_busy_seconds", labels): 2.5,
        ("spin_shard_seconds", labels): 2.5,
    }


def test_a_shard_of_a_pass_counts_documents_for_each_model_and_work_once(recorded: Recorded) -> None:
    counts = PassCounts(rows=40, models={"run-a": make_counts(40, 0, {}), "run-b": make_counts(30, 0, {})})
    StageMetrics("classify", (A, B)).count(make_outcome(counts))
    documents = {labels: value for (name, labels), value in recorded.items() if name == "spin_documents"}
    assert documents == {"model=a stage=classify": 40, "model=b stage=classify": 30}
    assert recorded["spin_busy_seconds", "model=a,b stage=classify"] == 2.5


def test_other_stages_count_documents_for_all_models_together(recorded: Recorded) -> None:
    StageMetrics("intake", (A, B)).count(make_outcome(ShardCounts(rows=7)))
    assert recorded["spin_documents", "model=a,b stage=intake"] == 7


def test_requests_count_from_the_start_of_the_stage(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of an earlier stage of the process are not counted again, and each is counted once."""
    totals = RequestTotals(Counter(GetObject=5))
    monkeypatch.setattr(PROCESS_REQUESTS, "totals", lambda: RequestTotals(+totals.requests, +totals.errors))
    metrics = StageMetrics("classify", (A,), FixedLease())  # type: ignore[arg-type]
    totals.requests["GetObject"] += 2
    totals.errors["GetObject", "503"] += 1
    for _ in range(2):
        metrics.export()
    labels = "model=a operation=GetObject stage=classify"
    assert recorded["spin_store_requests", labels] == 2
    assert recorded["spin_store_errors", f"error=503 {labels}"] == 1


def test_the_age_of_the_lease_is_exported_at_the_end(recorded: Recorded) -> None:
    with working_on([A]), export_metrics("classify", FixedLease()) as metrics:  # type: ignore[arg-type]
        assert metrics.all_models == "a"
    assert recorded["spin_lease_age_seconds", "model=a stage=classify"] == 3


@pytest.mark.parametrize("module", [None, ModuleType("ray")], ids=["not imported", "half imported"])
def test_without_ray_nothing_is_recorded_and_ray_is_not_imported(
    module: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may be importing it."""
    monkeypatch.setitem(sys.modules, "ray", module)
    metrics = StageMetrics("classify", (A,))
    metrics.count(make_outcome(ShardCounts(rows=7)))
    metrics.export()


def test_a_failure_of_ray_costs_nothing(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """A shard that is committed stays committed, whatever Ray's metrics do."""

    class Broken:
        @property
        def age(self) -> float:
            raise RuntimeError("Ray ended")

    with caplog.at_level(logging.DEBUG, stage_metrics.__name__), export_metrics("classify", Broken()):  # type: ignore[arg-type]
        pass
    assert "metrics could not be recorded" in caplog.text


def test_runs_are_those_of_the_innermost_context() -> None:
    assert current_runs() == ()
    with working_on([A, B]):
        with working_on([B]):
            assert current_runs() == (B,)
        assert current_runs() == (A, B)
    assert current_runs() == ()


def test_a_lease_that_is_lost_has_an_infinite_age(tmp_path: Any) -> None:
    from pipelines.storage.lease import Lease, LeaseGroup
    from pipelines.storage.object_store import Store
    from tests.support.leases import expire_lease

    store = Store(str(tmp_path))
    with Lease(store) as lease:
        assert 0 <= lease.age < 30
        assert LeaseGroup([lease]).age < 30
        expire_lease(store)
        with Lease(store):
            lease._holds()
            assert lease.age == math.inf
