"""Shards in this process and in a worker, without Ray: retries, faults of workers, requests per shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tenacity
from ray import cloudpickle

from pipelines.data.files.shards import Piece, Shard
from pipelines.service_errors import UnavailableError, WorkerFaultError
from pipelines.storage import lease as lease_module
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, LogLayout, ShardCounts, ShardLog, ShardOutcome, StepResult
from pipelines.workers import map_shards as map_shards_module
from pipelines.workers import worker_faults
from pipelines.workers.map_shards import ShardWork, _Worker, commit_shard, describe_backbone, map_shards
from pipelines.workers.worker_faults import MAX_DEADLY_STARTS, MAX_REPLACEMENTS
from spin.errors import SpinError, UserError
from spin.settings import BackboneSettings, RaySettings

SHARD = Shard(0, (Piece("a.parquet", "parquet", 0, 3),))


class Clock:
    """Replaces the module `time` of tenacity; a pause only moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tenacity, "time", clock)
    monkeypatch.setattr("tenacity.nap.time", clock)
    return clock


class SlowStep:
    """A step that takes an hour per call, and whose first calls fail because the store does not answer."""

    def __init__(self, clock: Clock, failures: int = 0) -> None:
        self.clock, self.failures = clock, failures
        self.calls = 0

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        self.calls += 1
        self.clock.now += 3600
        if self.calls <= self.failures:
            raise UnavailableError("the input is away")
        return StepResult({"txt": b"result"}, ShardCounts(rows=3))


def make_log(folder: Path, retry_seconds: float = 120) -> ShardLog:
    return ShardLog(Store(str(folder), retry_seconds), claim=1)


def fail_first(method: str, failures: int, prefix: str, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Counter[str]:
    """Let the first requests of a store's method for keys with a prefix fail; returns the number of calls by key."""
    original, calls = getattr(Store, method), Counter[str]()

    def failing(store: Store, key: str, *args: Any) -> Any:
        if key.startswith(prefix):
            calls[key] += 1
            if calls.total() <= failures:
                clock.now += 20
                raise UnavailableError("the store is away")
        return original(store, key, *args)

    monkeypatch.setattr(Store, method, failing)
    return calls


# Retries


def test_a_slow_shard_is_retried_because_computing_does_not_count(tmp_path: Path, clock: Clock) -> None:
    """Its first request fails after an hour; `retry_seconds` are two minutes from there."""
    step = SlowStep(clock, failures=1)
    outcome = commit_shard(step, SHARD, make_log(tmp_path))
    assert (step.calls, outcome.tries, len(clock.pauses)) == (2, 2, 1)


def test_a_failed_upload_is_retried_with_the_bytes_that_are_there(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is called once; the file is written as soon as the store answers."""
    calls = fail_first("create", 4, "parts/000000-", monkeypatch, clock)
    step = SlowStep(clock)
    outcome = commit_shard(step, SHARD, make_log(tmp_path))
    assert step.calls == 1
    assert calls == {"parts/000000-000001-1.txt": 5}
    assert Store(str(tmp_path)).read("parts/000000-000001-1.txt") == b"result"
    assert list(outcome.files) == ["parts/000000-000001-1.txt"]


@pytest.mark.parametrize("prefix", ["attempts/", "parts/000000."])
def test_the_requests_of_the_log_are_retried_on_their_own(
    prefix: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the record of a try nor the outcome makes the step compute again."""
    fail_first("create", 4, prefix, monkeypatch, clock)
    step = SlowStep(clock)
    commit_shard(step, SHARD, make_log(tmp_path))
    assert step.calls == 1


def test_retries_end_some_seconds_after_the_first_failure(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses double; the error of the store is raised, and the try does not count as a crash."""
    fail_first("create", 99, "parts/", monkeypatch, clock)
    log = make_log(tmp_path)
    with pytest.raises(UnavailableError, match="the store is away"):
        commit_shard(SlowStep(clock), SHARD, log)
    first_failure, last_request = 3600 + 20, 20
    assert first_failure + 60 < clock.now < first_failure + 120 + last_request
    assert [pause >= 0.5 * 2**n for n, pause in enumerate(clock.pauses)] == [True] * len(clock.pauses)
    with log.attempt("000000") as attempt:
        assert (attempt.begun, attempt.crashes) == (2, 0)


def test_without_retry_seconds_nothing_is_retried(tmp_path: Path, clock: Clock) -> None:
    step = SlowStep(clock, failures=1)
    with pytest.raises(UnavailableError):
        commit_shard(step, SHARD, make_log(tmp_path, retry_seconds=0))
    assert (step.calls, clock.pauses) == (1, [])


def test_a_user_error_is_not_retried(tmp_path: Path, clock: Clock) -> None:
    class MistakenStep(SlowStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> NoReturn:
            self.calls += 1
            raise UserError("no such column")

    step = MistakenStep(clock)
    with pytest.raises(UserError, match="no such column"):
        commit_shard(step, SHARD, make_log(tmp_path))
    assert step.calls == 1


# Stages in this process


class TextStep:
    """A step whose result is the name of the shard."""

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        return StepResult({"txt": shard.name.encode()}, ShardCounts(rows=1))


class LeaseCountingStore(Store):
    """Counts the requests for the lease."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.requests = 0

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        self.requests += key.startswith("_lease/")
        return super().read(key, start, stop)

    def list(self, prefix: str = "") -> list[str]:
        self.requests += prefix == "_lease"
        return super().list(prefix)


def run_here(
    make: Callable[..., Any], store: Store, lease: Lease, shards: int = 1, *, workers: int | None = None, **where: Any
) -> list[ShardOutcome[ShardCounts]]:
    """Run a step in this process: `here`, or because the stage has no workers."""
    where = {"claim": lease.number, **where}
    work = ShardWork(make, (), ShardCounts, store, RaySettings(workers=workers), stage="trial", **where)
    return map_shards(work, [Shard(n) for n in range(shards)], lease, documents=shards, here=workers is None)


def test_lease_checks_do_not_grow_with_the_number_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is not asked between shards while the clock of the lease stands still."""
    monkeypatch.setattr(lease_module, "time", Clock())
    requests = []
    for shards in (5, 100):
        store = LeaseCountingStore(str(tmp_path / str(shards)))
        with Lease(store, ttl=36_000) as lease:
            before = store.requests
            run_here(TextStep, store, lease, shards)
            requests.append(store.requests - before)
    assert requests == [0, 0]


def test_files_of_a_stage_bear_the_claim_of_its_driver_and_go_where_the_layout_says(tmp_path: Path) -> None:
    """A training's claim is the number of its lease, that of a night the number that it has committed."""
    store = Store(str(tmp_path))
    with Lease(store):
        pass
    with Lease(store) as lease:
        [outcome] = run_here(TextStep, store / "a", lease)
        assert list(outcome.files) == ["parts/000000-000002-1.txt"]
        layout = LogLayout("_runs/R", {"txt": "predictions/R"})
        [outcome] = run_here(TextStep, store / "b", lease, claim=17, layout=layout)
    assert list(outcome.files) == ["predictions/R/000000-000017-1.txt"]
    assert (store / "b").list() == [
        "_runs/R/attempts/000017/000000.json",
        "_runs/R/parts/000000.json",
        "predictions/R/000000-000017-1.txt",
    ]


def test_committed_shards_are_not_computed_again(tmp_path: Path) -> None:
    """A resumed stage of another driver computes the missing shard alone and returns all outcomes in order."""
    store, computed = Store(str(tmp_path)), []

    class RecordingStep(TextStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
            computed.append(shard.name)
            return super().__call__(shard, attempt)

    with Lease(store) as lease:
        first = run_here(RecordingStep, store, lease, 3)
    store.delete_many(["parts/000001.json"])
    with Lease(store) as lease:
        second = run_here(RecordingStep, store, lease, 3)
    assert computed == ["000000", "000001", "000002", "000001"]
    assert [first[0], first[2]] == [second[0], second[2]]
    assert list(second[1].files) == ["parts/000001-000002-1.txt"]


def test_a_committed_shard_that_is_tried_again_is_not_computed(tmp_path: Path, clock: Clock) -> None:
    """Ray tries it again if it lost the node with the answer."""
    step, log = SlowStep(clock), make_log(tmp_path)
    outcomes = [commit_shard(step, SHARD, log, ShardCounts) for _ in range(4)]
    assert step.calls == 1
    assert outcomes == [outcomes[0]] * 4


@pytest.mark.parametrize("workers", [None, 0])
def test_an_error_of_the_machine_is_the_workers_fault_wherever_a_step_raises_it(
    workers: int | None, tmp_path: Path
) -> None:
    class ForgetfulStep(TextStep):
        def __call__(self, shard: Shard, attempt: Attempt) -> NoReturn:
            raise MemoryError

    store = Store(str(tmp_path))
    with Lease(store) as lease, pytest.raises(WorkerFaultError, match="is at fault, not a document: MemoryError"):
        run_here(ForgetfulStep, store, lease, workers=workers)


def test_a_stage_without_workers_runs_here_under_the_claim_of_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step is made and checked once. Ray is not started, and the process is not changed as that of a worker is."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a worker was configured, or Ray was started")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr(map_shards_module, "configure_worker", fail)
    checks = []

    class CheckedStep(TextStep):
        def check(self) -> None:
            checks.append(self)

    store = Store(str(tmp_path))
    with Lease(store) as lease:
        outcomes = run_here(CheckedStep, store, lease, 2, workers=0)
    assert len(checks) == 1
    assert [list(outcome.files) for outcome in outcomes] == [
        ["parts/000000-000001-1.txt"],
        ["parts/000001-000001-1.txt"],
    ]


def test_a_stage_without_workers_whose_step_fails_on_what_is_good_computes_nothing(tmp_path: Path) -> None:
    class FaultyStep(TextStep):
        def check(self) -> None:
            raise ValueError("nonsense")

    store = Store(str(tmp_path))
    with Lease(store) as lease, pytest.raises(WorkerFaultError, match="fails on a text that is known to be good"):
        run_here(FaultyStep, store, lease, workers=0)
    assert store.list("parts") == store.list("attempts") == []


# Workers


class Replaced(BaseException):
    """The process of the worker ended, so that Ray replaces it."""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The process of a worker, without Ray. Call it with an actor to be a process of that actor."""

    def end(status: int) -> NoReturn:
        assert status == 1
        raise Replaced

    def be(actor: str, node: str = "node") -> None:
        monkeypatch.setattr(map_shards_module, "current_actor", lambda: actor)
        monkeypatch.setattr(map_shards_module, "current_node", lambda: node)

    monkeypatch.setattr(worker_faults.os, "_exit", end)
    monkeypatch.setattr(map_shards_module, "configure_worker", lambda _: None)
    monkeypatch.setattr(map_shards_module, "lost_nodes", lambda: {"gone"})
    be("actor")
    return be


def make_work(make: Callable[..., Any], folder: Path, claim: int = 1) -> ShardWork[ShardCounts]:
    backbone = describe_backbone(BackboneSettings(model="m", engine="openvino", dtype="int8"))
    store = Store(str(folder), retry_seconds=0)
    return ShardWork(make, (), ShardCounts, store, RaySettings(), stage="trial", claim=claim, backbone=backbone)


def compute(worker: _Worker, shard: Shard = SHARD) -> ShardOutcome[ShardCounts] | SpinError:
    """The answer of a worker for a shard."""
    row = worker({"shard": cloudpickle.dumps(shard)})
    assert row["shard"] == shard.name
    answer: ShardOutcome[ShardCounts] | SpinError = cloudpickle.loads(row["answer"])
    return answer


class Died(BaseException):
    """A process dies natively: Python runs nothing any more."""


class DeadlyStart:
    def __init__(self) -> None:
        raise Died


@pytest.fixture
def native_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that raises Died writes nothing afterwards."""
    write = Store.write_json

    def write_alive(store: Store, key: str, value: Any) -> None:
        if key.startswith("starts/") and value == []:
            raise Died
        write(store, key, value)

    monkeypatch.setattr(Store, "write_json", write_alive)


@pytest.mark.usefixtures("native_death")
def test_a_worker_that_dies_natively_while_it_loads_the_model_ends_the_run(
    tmp_path: Path, process: Callable[[str], None]
) -> None:
    """One line names engine and precision; no shard is blamed, and the next driver starts anew."""
    for _ in range(MAX_DEADLY_STARTS):
        with pytest.raises(Died):
            _Worker(make_work(DeadlyStart, tmp_path))
    error = compute(_Worker(make_work(DeadlyStart, tmp_path)))
    assert isinstance(error, SpinError)
    assert error.status == 1
    assert str(error).startswith("3 processes of a worker in a row died while they loaded the model (engine openvino, ")
    assert "precision int8)" in str(error)
    assert "\n" not in str(error)
    assert Store(str(tmp_path)).list("attempts") == []
    with pytest.raises(Died):
        _Worker(make_work(DeadlyStart, tmp_path, claim=2))


@pytest.mark.usefixtures("native_death")
def test_deaths_of_other_workers_and_on_lost_nodes_do_not_count(tmp_path: Path, process: Callable[..., None]) -> None:
    """Ray ends workers that it no longer needs while they load; a node that is taken away is no crash."""
    for number in range(5):
        process(f"actor {number}", "node")
        with pytest.raises(Died):
            _Worker(make_work(DeadlyStart, tmp_path))
        process("actor", "gone")
        with pytest.raises(Died):
            _Worker(make_work(DeadlyStart, tmp_path))


@pytest.mark.usefixtures("process")
def test_a_worker_that_has_loaded_the_model_clears_its_earlier_deaths(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json("starts/000001/actor.json", ["node"] * (MAX_DEADLY_STARTS - 1))
    assert isinstance(compute(_Worker(make_work(TextStep, tmp_path))), ShardOutcome)
    assert store.read_json("starts/000001/actor.json") == []


class BrokenGpu(TextStep):
    """A step whose worker fails on what is known to be good, from its first check on or only after it."""

    def __init__(self, good_checks: int = 0) -> None:
        self.good_checks = good_checks

    def check(self) -> None:
        self.good_checks -= 1
        if self.good_checks < 0:
            raise RuntimeError("nonsense")

    def __call__(self, shard: Shard, attempt: Attempt) -> NoReturn:
        raise MemoryError


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("good_checks", [0, 1], ids=["at its start", "later"])
def test_a_worker_at_fault_is_replaced_and_after_some_replacements_ends_the_run(
    good_checks: int, tmp_path: Path
) -> None:
    """The line names the worker; nothing counts as a crash of the shard."""

    def run_worker() -> ShardOutcome[ShardCounts] | SpinError:
        return compute(_Worker(make_work(lambda: BrokenGpu(good_checks), tmp_path)))

    for _ in range(MAX_REPLACEMENTS - 1):
        with pytest.raises(Replaced):
            run_worker()
    error = run_worker()
    assert isinstance(error, SpinError)
    assert (type(error), error.status) == (WorkerFaultError, 1)
    assert f"the worker on {worker_faults.describe_worker()}" in str(error)
    with ShardLog(Store(str(tmp_path)), claim=1).attempt("000000") as attempt:
        assert attempt.crashes == 0


@pytest.mark.usefixtures("process")
def test_faults_on_other_hosts_do_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many workers may be replaced a few times."""
    for host in range(2 * MAX_REPLACEMENTS):
        monkeypatch.setattr(worker_faults, "describe_worker", lambda host=host: f"host {host}")
        with pytest.raises(Replaced):
            _Worker(make_work(BrokenGpu, tmp_path))


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(UserError("no such column"), UserError, "no such column"), (ValueError("odd"), SpinError, "a worker raised Val")],
)
def test_an_error_of_a_step_reaches_the_driver_as_one_line(
    error: Exception, kind: type[SpinError], message: str, tmp_path: Path
) -> None:
    """Also one that the step raises while it is made, for which Ray would start the worker again and again."""

    class Raising(TextStep):
        def __init__(self, at_start: bool) -> None:
            if at_start:
                raise error

        def __call__(self, shard: Shard, attempt: Attempt) -> NoReturn:
            raise error

    for at_start in (True, False):
        answer = compute(_Worker(make_work(lambda at_start=at_start: Raising(at_start), tmp_path)))
        assert type(answer) is kind
        assert str(answer).startswith(message)


def test_the_records_of_a_start_are_retried(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away for a moment ends no worker."""
    fail_first("read_json", 2, "starts/", monkeypatch, clock)
    fail_first("write_json", 2, "starts/", monkeypatch, clock)
    faults = worker_faults.WorkerFaults(Store(str(tmp_path)), LogLayout(), 1)
    with faults.watch_start("actor", "node", set, None):
        pass
    assert len(clock.pauses) == 4
