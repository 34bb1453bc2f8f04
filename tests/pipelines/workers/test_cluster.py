"""Jobs on a cluster of several Ray nodes: submitted, spread, and whole when nodes come and go."""

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
from pipelines.nightly.publish import read_manifest, read_predictions
from pipelines.service_errors import HeldError
from pipelines.storage.object_store import Store
from pipelines.workers.job_client import JobServer
from spin.classifier import SpinClassifier
from spin.errors import UserError
from tests.support import tiny
from tests.support.repository import ROOT

pytestmark = pytest.mark.s3
DATE = "2026-03-01"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two workers."""
    with Nodes(2) as started:
        yield started


@pytest.fixture
def server(nodes: Nodes) -> JobServer:
    return JobServer(nodes.address)


@dataclass
class Project:
    """A working directory with settings, a backbone in it, and a prefix of the S3 server."""

    folder: Path
    base: str
    address: str

    def spin(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "RAY_API_SERVER_ADDRESS": self.address, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *words],
            cwd=self.folder,
            env={**env, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def project(nodes: Nodes, s3_server: str, tmp_path: Path) -> Project:
    base = f"{s3_server}/{uuid.uuid4().hex}"
    tiny.bert(tmp_path / "bert")
    tree = {
        "backbone": {"model": "bert", "dtype": "float32", "device": "cpu"},
        "data": {"train": f"{base}/train.parquet"},
        "store": f"{base}/store",
        "mlflow": {"model": "tiny", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "ray": {"shard_documents": 100, "train": {"workers": 1}},
        "probe": {"penalties": 3, "max_extra": 0},
        "search": {"etas": [0.9], "max_share": 0.5, "strengths": [1], "head": "linear", "l1": []},
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (tmp_path / "large.bin").write_bytes(b"0" * 1000)
    (tmp_path / ".gitignore").write_text("large.bin\n")
    Store(base).write("train.parquet", parquet(tiny.documents(400)))
    return Project(tmp_path, base, nodes.address)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=40)
    return sink.getvalue().to_pybytes()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until it is so, as long as the process that brings it about lives."""
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, (
            f"the driver ended with {process.returncode}: {process.stdout and process.stdout.read()}"
        )
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def test_a_training_run_is_submitted(project: Project, nodes: Nodes, server: JobServer) -> None:
    """It runs on the workers, its log and exit status come back, and what it was given shows no credential.

    The backbone lies in the working directory of the job: every node gets it from the store, once, and whole.
    """
    done = project.spin("submit", "run", "settings.yaml", "--env", "NOTE=seen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered tiny version 1 as challenger" in done.stdout
    assert "succeeded after" in done.stdout.splitlines()[-1]
    job = server.jobs()[0]
    assert job.id.startswith("run-tiny-20")
    assert (job.status, job.exit_status) == ("SUCCEEDED", 0)
    details = server._client.get_job_info(job.id)
    given = details.runtime_env["env_vars"]
    assert given["AWS_ENDPOINT_URL"] == os.environ["AWS_ENDPOINT_URL"]
    assert given["NOTE"] == "seen"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(details)
    [digest] = {key.split("/")[2] for key in Store(project.base).list("store/backbones")}
    fetched = [[path.name for path in (cache / "backbones").iterdir() if path.is_dir()] for cache in nodes.caches]
    assert fetched == [[digest]] * 2


def start(code: str, *words: str) -> subprocess.Popen[str]:
    """A driver in a process of its own."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_nodes_come_and_go(nodes: Nodes, s3_server: str, backbone_folder: Path, tmp_path: Path) -> None:
    """Work spreads over the nodes, a new one takes part, a lost one costs the shard in flight; every id comes once."""
    base, log = f"{s3_server}/{uuid.uuid4().hex}", tmp_path / "log"
    rows = tiny.documents(480)
    Store(base).write("data/night.parquet", parquet([{"id": row["id"], "text": row["text"]} for row in rows]))
    train = tiny.documents(200)
    spin = SpinClassifier(str(backbone_folder), sites=["resid"], metric="accuracy")
    spin.fit([row["text"] for row in train], [row["label"] for row in train]).save(tmp_path / "shelf" / "1")
    (tmp_path / "shelf" / "champion").write_text("1")
    tree = {
        "backbone": {"model": str(backbone_folder), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(log)},
        "store": f"{base}/store",
        "ray": {"address": nodes.gcs, "shard_documents": 40},
    }
    code = "from tests.support.chaos import *\nimport sys\nrun_night(eval(sys.argv[1]), *sys.argv[2:], step=NodeStep)"
    words = [repr(tree), str(tmp_path / "shelf"), f"{base}/data", f"{base}/out", DATE]
    driver = start(code, *words)

    def begun() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    try:
        wait_for(lambda: len({node for node, _ in begun()}) == 2, driver)
        third = nodes.add()
        wait_for(lambda: third.node_id in {node for node, _ in begun()}, driver)
        nodes.lose(third)
        Path(f"{log}.go").touch()
        output, _ = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, output
    predicted = read_predictions(f"{base}/out")
    assert Counter(row["id"] for row in predicted) == Counter(row["id"] for row in rows)
    assert read_manifest(f"{base}/out").counts.predicted == 480
    [lost] = {shard for node, shard in begun() if node == third.node_id}
    again = Counter(shard for _, shard in begun())
    assert {shard for shard, times in again.items() if times > 1} <= {lost}
    assert len(again) == 12


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


def test_one_job_a_night(server: JobServer, tmp_path: Path) -> None:
    """A second one is refused while the first runs and after it succeeded; after a failure it gets a number."""
    name = f"classify-x-{uuid.uuid4().hex}"

    def submit(entrypoint: str, once: bool = True) -> str:
        return server.submit(name, entrypoint, folder=str(tmp_path), environment={}, once=once)

    first = submit("sleep 600")
    assert first == name
    with pytest.raises(HeldError, match=f"job {name} is on its way; `spin logs {name} --follow`"):
        submit("true")
    assert server.stop(first)
    assert not server.stop(first)
    assert (server.job(first).status, server.job(first).exit_status) == ("STOPPED", 130)
    second = submit("echo here we are; exit 4")
    said: list[str] = []
    assert server.follow(second, said.append).exit_status == 4
    assert "here we are" in "".join(said)
    assert "here we are" in server.logs(second)
    third = submit("kill -9 $$")
    assert server.follow(third, said.append).exit_status == 1
    fourth = submit("true")
    assert server.follow(fourth, said.append).status == "SUCCEEDED"
    assert [second, third, fourth] == [f"{name}-{number}" for number in (2, 3, 4)]
    with pytest.raises(UserError, match=f"job {name}-4 has succeeded"):
        submit("true")
    assert submit("true", once=False) == f"{name}-5"
    with pytest.raises(UserError, match="no job nonsense at http"):
        server.logs("nonsense")


def test_of_two_at_once_one_runs(server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes the first of an id; the other hears what one that came later would hear."""
    name = f"classify-y-{uuid.uuid4().hex}"
    monkeypatch.setattr(JobServer, "_next", lambda *_: 1)  # both have looked before either was there

    def submit(_: int) -> str:
        try:
            return server.submit(name, "sleep 600", folder=str(tmp_path), environment={}, once=True)
        except HeldError as error:
            return str(error)

    with ThreadPoolExecutor(2) as both:
        said = sorted(both.map(submit, range(2)))
    assert said == [
        name,
        f"job {name} is on its way; `spin logs {name} --follow` watches it, `spin stop {name}` ends it",
    ]
    server.stop(name)


def test_a_cluster_that_wants_a_token(project: Project, tmp_path: Path) -> None:
    """With it the jobs are listed; without, or with another, the refusal says what to set. Nothing of it is left."""
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

        def jobs(**environment: str) -> subprocess.CompletedProcess[str]:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                return project.spin("jobs")

        assert running(folder)
        assert "no jobs" in jobs(**secret).stdout
        refused = jobs(RAY_AUTH_MODE="disabled"), jobs(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 32)
        for answer in refused:
            assert answer.returncode == 2, answer.stderr
            assert "set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN" in answer.stderr
            assert len(answer.stderr.splitlines()) == 1
    finally:
        cluster.terminate()
        cluster.wait(240)
    assert running(folder) == []
    assert not Path(folder).exists()


def running(folder: str) -> list[str]:
    """The processes that were told of a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            if folder in (words := file.read_text(errors="replace").replace("\0", " ")):
                found.append(words)
    return found
