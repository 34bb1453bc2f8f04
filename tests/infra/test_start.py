"""start.py, which a CronJob's pod runs, against a server with the part of the Kubernetes API that the pod may use."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.manifests import load_start_script
from tests.support.repository import ROOT

RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}


def failed(status: int | None, **more: str) -> dict[str, Any]:
    """The status of a run whose command ended with an exit status, or whose driver disappeared, in the words of Ray."""
    message = (
        "the driver was lost" if status is None else f"Job entrypoint command failed with exit code {status}, last"
    )
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message, **more}


FAILED = failed(4)
ENDED = ("Complete", "Failed", "ValidationFailed")
INVALID = {"jobDeploymentStatus": "ValidationFailed", "message": "the name is too long"}


class Cluster:
    """The RayJobs of a namespace, and the responses of the API server to requests for them."""

    def __init__(self) -> None:
        template = {"suspend": True, "entrypoint": "spin classify s --date {day}", "backoffLimit": 2}
        self.jobs: dict[str, dict[str, Any]] = {
            "night": {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "night", "uid": "0"},
                      "spec": template, "status": {"jobDeploymentStatus": "Suspended"}}
        }  # fmt: skip
        """by name"""
        self.created: list[str] = []
        """names of the RayJobs that were created, in order"""
        self.faults: list[int] = []
        """HTTP statuses of the next responses"""
        self.statuses: list[dict[str, Any] | None] = [RUNNING, DONE]
        """statuses that requests for a created RayJob see, one after another; None deletes the RayJob"""

    def respond(self, method: str, path: str, token: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Return the HTTP status and the object of the response, as Kubernetes would."""
        root, _, name = path.partition("/apis/ray.io/v1/namespaces/spin/rayjobs")
        name = name.removeprefix("/")
        if token != "Bearer the-token" or root or method not in ("GET", "POST"):
            return 403, {"kind": "Status", "message": "forbidden"}
        if self.faults:
            return self.faults.pop(0), {"kind": "Status", "message": "a fault"}
        if method == "POST":
            assert body is not None
            if body["metadata"]["name"] in self.jobs:
                return 409, {"kind": "Status", "reason": "AlreadyExists"}
            self.created.append(body["metadata"]["name"])
            self.jobs[self.created[-1]] = body
            return 201, body
        ended = self.jobs.get(name, {}).get("status", {}).get("jobDeploymentStatus") in ENDED
        if name in self.created and not self.statuses and not ended:
            return 403, {"kind": "Status", "message": "a request after the last status of the test"}
        if name in self.created and not ended:
            status = self.statuses.pop(0)
            if status is None:
                del self.jobs[name]
            else:
                self.jobs[name]["status"] = status
        return (200, self.jobs[name]) if name in self.jobs else (404, {"kind": "Status", "reason": "NotFound"})

    def add(self, name: str, *statuses: dict[str, Any]) -> None:
        """Add a RayJob in the first of its statuses; requests for it then see all of them, one after another."""
        self.jobs[name] = {**self.jobs["night"], "metadata": {"name": name}, "status": statuses[0]}
        if len(statuses) > 1:
            self.created, self.statuses = [name], list(statuses)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1 and its key; returns both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "ca.crt", folder / "key.pem"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose API server listens on the port that the environment names."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, response = cluster.respond(self.command, self.path, self.headers["Authorization"], body)
            content = json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_certificate(tmp_path))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    (tmp_path / "token").write_text("the-token")
    (tmp_path / "namespace").write_text("spin")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
        patch.setenv("JOB", "night-29387520")
        patch.setenv("JOB_UID", "7")
        patch.setenv("DAY", "2026-11-24")
        patch.delenv("RESTART", raising=False)
        yield cluster
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that runs the script for the template `night` and returns its exit status."""
    module: ModuleType = load_start_script()
    monkeypatch.setattr(module, "ACCOUNT", tmp_path)
    monkeypatch.setattr(module, "WAIT", 0.001)
    return lambda: int(module.main("night"))


def test_start_creates_a_run_and_waits_until_it_ends(cluster: Cluster, start: Callable[[], int]) -> None:
    """The run has the day in its command, is not suspended and belongs to the Job. KubeRay's retries do not end it."""
    cluster.statuses = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RETRYING, RUNNING, DONE]
    assert start() == 0
    assert cluster.statuses == []
    run = cluster.jobs["night-2026-11-24"]
    assert run["spec"] == {"suspend": False, "entrypoint": "spin classify s --date 2026-11-24", "backoffLimit": 2}
    [owner] = run["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "night-29387520", "uid": "7"}
    assert "uid" not in run["metadata"]
    assert cluster.jobs["night"]["spec"]["suspend"] is True


@pytest.mark.parametrize("end", [FAILED, STOPPED, INVALID], ids=lambda end: end["jobDeploymentStatus"])
def test_a_run_that_fails_fails_the_job(
    cluster: Cluster, start: Callable[[], int], end: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """KubeRay's message is in the log."""
    cluster.statuses = [RUNNING, end]
    assert start() == 1
    assert end.get("message", "STOPPED") in capsys.readouterr().out


@pytest.mark.parametrize("status", [1, 3, 5, 6, 143, None])
def test_a_run_that_may_succeed_later_is_tried_three_times(
    cluster: Cluster, start: Callable[[], int], status: int | None
) -> None:
    """Each try resumes the one before, in a cluster of its own."""
    cluster.statuses = [RUNNING, failed(status), RUNNING, failed(status), RUNNING, DONE]
    assert start() == 0
    assert cluster.created == ["night-2026-11-24", "night-2026-11-24-2", "night-2026-11-24-3"]
    cluster.created.clear()
    cluster.jobs = {"night": cluster.jobs["night"]}
    cluster.statuses = [failed(status), failed(status), failed(status), DONE]
    assert start() == 1
    assert len(cluster.created) == 3


@pytest.mark.parametrize(
    "end",
    [failed(2), failed(4), failed(7), failed(None, reason="DeadlineExceeded"), STOPPED, INVALID],
    ids=lambda end: end.get("message", end.get("jobStatus")),
)
def test_a_run_that_would_end_in_the_same_way_is_tried_once(
    cluster: Cluster, start: Callable[[], int], end: dict[str, Any]
) -> None:
    """Nobody waits for two more clusters to see the same mistake."""
    cluster.statuses = [RUNNING, end, DONE]
    assert start() == 1
    assert cluster.created == ["night-2026-11-24"]


def test_the_final_statuses_are_those_of_the_reference() -> None:
    """The page says for each status whether the same command may be run again."""
    page = (ROOT / "docs" / "reference" / "exit-statuses.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert {int(status) for status, _, again in rows[1:] if again.startswith("no")} == load_start_script().FINAL


def test_a_run_that_is_active_is_waited_for(cluster: Cluster, start: Callable[[], int]) -> None:
    """After a pod was lost, or in a second Job of the same day, no second run is created."""
    cluster.add("night-2026-11-24", RUNNING, RUNNING, DONE)
    assert start() == 0
    assert cluster.created == ["night-2026-11-24"]
    assert cluster.statuses == []


def test_a_run_that_succeeded_is_not_repeated(
    cluster: Cluster, start: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The script prints that the run exists and ends with status 0."""
    cluster.add("night-2026-11-24", DONE)
    assert start() == 0
    assert cluster.created == []
    assert "night-2026-11-24 exists already" in capsys.readouterr().out


def test_a_run_after_failed_ones_gets_the_next_number(cluster: Cluster, start: Callable[[], int]) -> None:
    """The failed runs stay, so that they can be inspected."""
    cluster.add("night-2026-11-24", FAILED)
    cluster.add("night-2026-11-24-2", INVALID)
    assert start() == 0
    assert cluster.created == ["night-2026-11-24-3"]


def read_entrypoints(cluster: Cluster) -> list[str]:
    """The options that the runs that were created have beyond those of the template."""
    command = "spin classify s --date 2026-11-24"
    return [cluster.jobs[name]["spec"]["entrypoint"].removeprefix(command) for name in cluster.created]


def test_a_restart_begins_a_new_run_on_the_first_try_alone(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next tries resume that run. So does a second pod of the Job, after the first was lost between two tries."""
    monkeypatch.setenv("RESTART", "1")
    cluster.statuses = [failed(1), RUNNING, failed(1), DONE]
    assert start() == 0
    assert read_entrypoints(cluster) == [" --restart", "", ""]
    last = cluster.created[-1]
    del cluster.jobs[last]
    cluster.created.pop()
    cluster.statuses = [DONE]
    assert start() == 0
    assert cluster.created[-1] == last
    assert read_entrypoints(cluster) == [" --restart", "", ""]
    assert start() == 0
    assert len(cluster.created) == 3


@pytest.mark.parametrize("end", [DONE, FAILED], ids=["succeeded", "failed"])
def test_a_restart_follows_the_runs_of_other_jobs_that_have_ended(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, end: dict[str, Any]
) -> None:
    """No RayJob has to be deleted to repeat a night that has succeeded."""
    monkeypatch.setenv("RESTART", "1")
    cluster.add("night-2026-11-24", end)
    assert start() == 0
    assert cluster.created == ["night-2026-11-24-2"]
    assert read_entrypoints(cluster) == [" --restart"]


def test_a_restart_is_refused_while_the_day_is_at_work(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for the other run would end with success and without the new run that was asked for."""
    monkeypatch.setenv("RESTART", "1")
    cluster.add("night-2026-11-24", RUNNING, RUNNING)
    with pytest.raises(SystemExit, match="night-2026-11-24 is running"):
        start()


@pytest.mark.parametrize(("value", "option"), [("0", ""), ("", ""), ("1", " --restart")])
def test_restart_is_on_or_off(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch, value: str, option: str
) -> None:
    monkeypatch.setenv("RESTART", value)
    assert start() == 0
    assert read_entrypoints(cluster) == [option]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [("RESTART", "no", SystemExit, "RESTART=no: expected 1"), ("DAY", "2026-11-31", ValueError, "day")],
)
def test_an_unknown_value_of_restart_or_day_is_refused(
    name: str,
    value: str,
    error: type[BaseException],
    message: str,
    cluster: Cluster,
    start: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No run is created."""
    monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        start()
    assert cluster.created == []


def test_a_deleted_run_has_failed(cluster: Cluster, start: Callable[[], int]) -> None:
    """The script does not wait for it."""
    cluster.statuses = [RUNNING, None]
    assert start() == 1


def test_requests_that_fail_temporarily_are_repeated(cluster: Cluster, start: Callable[[], int]) -> None:
    """The run is created once."""
    cluster.faults = [503, 500, 429, 502]
    assert start() == 0
    assert cluster.created == ["night-2026-11-24"]


def test_a_forbidden_request_ends_the_script_with_its_message(
    cluster: Cluster, start: Callable[[], int], tmp_path: Path
) -> None:
    """The exit status is 1, at which the Job fails without a retry."""
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(SystemExit, match="403: .*forbidden"):
        start()


def test_a_missing_template_ends_the_script_with_its_name(cluster: Cluster, start: Callable[[], int]) -> None:
    del cluster.jobs["night"]
    with pytest.raises(SystemExit, match="no RayJob night"):
        start()


def test_the_default_day_is_yesterday_in_utc(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the last day that is over."""
    monkeypatch.delenv("DAY")
    before = datetime.datetime.now(datetime.UTC).date()
    assert start() == 0
    after = datetime.datetime.now(datetime.UTC).date()
    assert cluster.created[0] in {f"night-{day - datetime.timedelta(days=1)}" for day in (before, after)}
