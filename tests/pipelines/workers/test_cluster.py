"""Jobs on a Ray cluster of several nodes: submission, nodes that are added and lost, one job per night, tokens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from infra.nodes import Nodes
from pipelines.nightly.tables.night_history import read_predictions
from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from pipelines.workers.job_client import JobServer
from spin.errors import UserError
from tests.support import tiny
from tests.support.registry_fixture import build_quick_classifier
from tests.support.repository import ROOT

pytestmark = [pytest.mark.s3, pytest.mark.ray]
DATE = "2026-03-01"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of a head and two worker nodes."""
    with Nodes(2) as started:
        yield started


@pytest.fixture
def server(nodes: Nodes) -> JobServer:
    return JobServer(nodes.address)


@dataclass
class Project:
    """A working directory with settings and a backbone; data and store are under `base` on the S3 server."""

    folder: Path
    base: str
    address: str

    def spin(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `spin` in the working directory, with the cluster at `address`."""
        env = {**os.environ, "RAY_API_SERVER_ADDRESS": self.address, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            cwd=self.folder,
            env={**env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def project(nodes: Nodes, s3_server: str, tmp_path: Path) -> Project:
    base = f"{s3_server}/{uuid.uuid4().hex}"
    tiny.save_bert(tmp_path / "bert")
    tree = {
        "backbone": {"model": "bert", "dtype": "float32", "device": "cpu"},
        "data": {"train": f"{base}/train.parquet"},
        "store": f"{base}/store",
        "mlflow": {"model": "tiny", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "ray": {"shard_documents": 100, "probe": {"workers": 0}, "train": {"workers": 0}},
        "probe": {"penalties": 3, "max_extra": 0},
        "search": {"etas": [0.9], "max_share": 0.5, "strengths": [1], "network": "off"},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / ".env").write_text("SECRET=1")
    Store(base).write("train.parquet", parquet(tiny.make_documents(400)))
    return Project(tmp_path, base, nodes.address)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=40)
    return sink.getvalue().to_pybytes()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until the condition holds; fail if the process ends first or the time limit passes."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (
            f"the driver ended with {process.returncode}: {process.stdout and process.stdout.read()}"
        )
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        time.sleep(0.05)


def test_a_submitted_training_run_registers_a_version(project: Project, nodes: Nodes, server: JobServer) -> None:
    """Its log and exit status are returned, and the job holds no credential.

    The backbone is sent with the settings, so each node fetches it once from the store. Nothing else is sent.
    """
    done = project.spin("submit", "run", "settings.yaml", "--env", "NOTE=seen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered tiny version 1 as challenger" in done.stdout
    assert "succeeded after" in done.stdout.splitlines()[-1]
    job = server.jobs()[0]
    assert job.id.startswith("run-tiny-20")
    assert (job.status, job.exit_status) == ("SUCCEEDED", 0)
    details = server._client.get_job_info(job.id)
    environment = details.runtime_env["env_vars"]
    assert environment["AWS_ENDPOINT_URL"] == os.environ["AWS_ENDPOINT_URL"]
    assert environment["NOTE"] == "seen"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(details)
    [digest] = {key.split("/")[2] for key in Store(project.base).list("store/backbones")}
    fetched = [[path.name for path in (cache / "backbones").iterdir() if path.is_dir()] for cache in nodes.caches]
    assert fetched == [[digest]] * 2


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a driver in a new process."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_night_uses_added_nodes_and_survives_lost_ones(
    nodes: Nodes, s3_server: str, backbone_folder: Path, tmp_path: Path
) -> None:
    """Only the shard that a lost node was computing is computed again, and every id is predicted exactly once."""
    base, log = f"{s3_server}/{uuid.uuid4().hex}", tmp_path / "log"
    rows = tiny.make_documents(480)
    Store(base).write("data/night.parquet", parquet([{"id": row["id"], "text": row["text"]} for row in rows]))
    training_rows = tiny.make_documents(200)
    spin = build_quick_classifier(backbone_folder)
    spin.fit([row["text"] for row in training_rows], [row["label"] for row in training_rows])
    spin.save(tmp_path / "registry" / "1")
    (tmp_path / "registry" / "champion").write_text("1")
    tree = {
        "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(log)},
        "store": f"{base}/store",
        "ray": {"address": nodes.gcs, "shard_documents": 40},
    }
    code = "from tests.support.chaos import *\nimport sys\nrun_night(eval(sys.argv[1]), *sys.argv[2:], step=NodeStep)"
    driver = start(code, repr(tree), str(tmp_path / "registry"), f"{base}/data", f"{base}/out", DATE)

    def read_attempts() -> list[list[str]]:
        """Read node and shard of every attempt."""
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    try:
        wait_for(lambda: len({node for node, _ in read_attempts()}) == 2, driver)
        third = nodes.add()
        wait_for(lambda: third.node_id in {node for node, _ in read_attempts()}, driver)
        nodes.lose(third)
        Path(f"{log}.go").touch()
        output, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    predictions = read_predictions(f"{base}/out")
    assert Counter(row["id"] for row in predictions) == Counter(row["id"] for row in rows)
    assert Store(f"{base}/out").read_json("report.json")["counts"]["predicted"] == 480
    [lost_shard] = {shard for node, shard in read_attempts() if node == third.node_id}
    attempts = Counter(shard for _, shard in read_attempts())
    assert {shard for shard, count in attempts.items() if count > 1} <= {lost_shard}
    assert len(attempts) == 12


def test_a_group_goes_on_with_fewer(nodes: Nodes, tmp_path: Path) -> None:
    """A training group that loses a node starts again on those that are left."""
    log = tmp_path / "log"
    third = nodes.add()
    driver = start(
        "from tests.support.chaos import *\nimport sys\nrun_training_group(*sys.argv[1:])", nodes.gcs, str(log)
    )

    def begun() -> Counter[str]:
        """How many began, by the size of their group."""
        return Counter(line.split()[1] for line in log.read_text().splitlines()) if log.exists() else Counter()

    try:
        wait_for(lambda: begun()["3"] == 3, driver)
        nodes.lose(third)
        wait_for(lambda: begun()["2"] == 2, driver)
        Path(f"{log}.go").touch()
        output, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    assert begun() == {"3": 3, "2": 2}


def test_a_night_is_not_submitted_again_while_it_runs_or_after_it_succeeded(server: JobServer) -> None:
    """After a stop or a failure it is accepted again, under the next number."""
    name = f"classify-x-{uuid.uuid4().hex}"

    def submit(entrypoint: str, once: bool = True) -> str:
        return server.submit(name, entrypoint, files={}, environment={}, once=once)

    first = submit("sleep 600")
    assert first == name
    with pytest.raises(HeldError, match=f"job {name} is on its way; `spin logs {name} --follow`"):
        submit("true")
    assert server.stop(first)
    assert not server.stop(first)
    assert (server.job(first).status, server.job(first).exit_status) == ("STOPPED", 130)
    second = submit("echo here we are; exit 4")
    log: list[str] = []
    assert server.follow(second, log.append).exit_status == 4
    assert "here we are" in "".join(log)
    assert "here we are" in server.logs(second)
    third = submit("kill -9 $$")
    assert server.follow(third, log.append).exit_status == 1
    fourth = submit("true")
    assert server.follow(fourth, log.append).status == "SUCCEEDED"
    assert [second, third, fourth] == [f"{name}-{number}" for number in (2, 3, 4)]
    with pytest.raises(UserError, match=f"job {name}-4 has succeeded"):
        submit("true")
    assert submit("true", once=False) == f"{name}-5"
    with pytest.raises(UserError, match="no job nonsense at http"):
        server.logs("nonsense")


def test_one_of_two_concurrent_submissions_of_a_night_is_refused(
    server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server accepts one job per id; the refusal is the same as for a submission that comes later."""
    name = f"classify-y-{uuid.uuid4().hex}"
    monkeypatch.setattr(JobServer, "_next", lambda *_: 1)  # both look for earlier jobs before either is submitted

    def submit(_: int) -> str:
        try:
            return server.submit(name, "sleep 600", files={}, environment={}, once=True)
        except HeldError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        results = sorted(threads.map(submit, range(2)))
    assert results == [
        name,
        f"job {name} is on its way; `spin logs {name} --follow` watches it, `spin stop {name}` ends it",
    ]
    server.stop(name)


def test_a_cluster_with_a_token_refuses_requests_without_it(project: Project, tmp_path: Path) -> None:
    """Without a token, or with a wrong one, the error names the variables to set. The cluster leaves no process."""
    (tmp_path / "token").write_text("a" * 32)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    cluster = subprocess.Popen(
        [sys.executable, str(ROOT / "infra" / "nodes.py"), "1"],
        env={**os.environ, **secret},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert cluster.stdout is not None
        words = [word.rstrip(",;") for word in cluster.stdout.readline().split()]
        project.address, folder = words[2], words[6]

        def list_jobs(**environment: str) -> subprocess.CompletedProcess[str]:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                return project.spin("jobs")

        assert find_processes(folder)
        assert "no jobs" in list_jobs(**secret).stdout
        for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 32}):
            refused = list_jobs(**environment)
            assert refused.returncode == 2, refused.stderr
            assert "set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
    finally:
        cluster.terminate()
        cluster.wait(240)
    assert find_processes(folder) == []
    assert not Path(folder).exists()


def find_processes(folder: str) -> list[str]:
    """Find the running processes whose command line names a folder; return their command lines."""
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended meanwhile
            if folder in (command := file.read_text(errors="replace").replace("\0", " ")):
                commands.append(command)
    return commands
