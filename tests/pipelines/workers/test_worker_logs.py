"""Workers name the runs of their driver in what they log, and write JSON lines where the driver does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from pipelines.data.files.shards import Piece, Shard
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.storage.shard_log import Attempt, ShardCounts, StepResult
from pipelines.telemetry.current_runs import CurrentRun, current_runs, working_on
from pipelines.telemetry.json_lines import JsonFormatter, WorkerLog
from pipelines.workers.map_shards import ShardWork, map_shards
from spin.settings import RaySettings
from tests.support.hanging import wait_until

RUNS = [CurrentRun("run-a", "a"), CurrentRun("run-b", "b")]
_log = logging.getLogger("pipelines.workers.test")


class LoggingStep:
    """Logs a warning when it is made, and one per shard, with what may be a credential."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        _log.warning("%s made", mark)

    def __call__(self, shard: Shard, attempt: Attempt) -> StepResult[ShardCounts]:
        _log.warning("%s computes from s3://user:secret@store", self.mark)
        _log.info("%s: not at this level", self.mark)
        runs = ",".join(run.name for run in current_runs())
        return StepResult({"txt": runs.encode()}, ShardCounts(rows=1))


def compute_shard(store: Store, mark: str, **settings: int) -> str:
    """Compute one shard for two runs; returns the runs that its step has seen."""
    with Lease(store) as lease, working_on(RUNS):
        ray = RaySettings(**settings)
        work = ShardWork(LoggingStep, (mark,), ShardCounts, store, ray, stage="test", claim=lease.number)
        [outcome] = map_shards(work, [Shard(0, (Piece("a.parquet", "parquet", 0, 1),))], lease, documents=1)
    [key] = outcome.files
    return (store.read(key) or b"").decode()


def log_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write log records as the command does under `--log json`."""
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])


def read_worker_logs(mark: str) -> list[str]:
    """The lines with a mark on the standard error of Ray's workers."""
    import ray._private.worker

    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    files = (session / "logs").glob("worker-*.err")
    return [line for file in files for line in file.read_text().splitlines() if mark in line]


@pytest.mark.usefixtures("ray_session")
def test_workers_log_as_their_driver_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line on the standard error of a worker is a JSON object with the runs, from the same level on."""
    log_as_json(monkeypatch)
    monkeypatch.setattr(logging.getLogger("pipelines"), "level", logging.WARNING)
    assert compute_shard(Store(str(tmp_path)), "mark-7c1", workers=1) == "run-a,run-b"
    wait_until(lambda: len(read_worker_logs("mark-7c1")) >= 2)
    lines = [json.loads(line) for line in read_worker_logs("mark-7c1")]
    assert [line["message"] for line in lines] == ["mark-7c1 made", "mark-7c1 computes from s3://***@store"]
    assert {(line["run"], line["level"], line["logger"]) for line in lines} == {
        ("run-a,run-b", "warning", "pipelines.workers.test")
    }


def test_a_stage_in_the_driver_logs_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No second handler writes the same lines again; that of the command may be there from another test."""
    log_as_json(monkeypatch)
    assert compute_shard(Store(str(tmp_path)), "mark-8d2", workers=0) == "run-a,run-b"
    assert capsys.readouterr().err.count('"message": "mark-8d2 made"') <= 1
    assert logging.getLogger("pipelines").handlers == []


def test_workers_of_a_driver_without_json_are_left_alone() -> None:
    with working_on(RUNS):
        log = WorkerLog.of_driver()
    assert log == WorkerLog(tuple(RUNS), None)
    with log.entered():
        assert current_runs() == tuple(RUNS)
    assert current_runs() == ()
    assert logging.getLogger("pipelines").handlers == []
