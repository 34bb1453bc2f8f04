"""start.py, which a CronJob's pod runs, against a server that speaks the little of Kubernetes that it may use."""

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

RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
RETRYING = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "left with exit code 4"}
INVALID = {"jobDeploymentStatus": "ValidationFailed", "message": "the name is too long"}


class Cluster:
    """RayJobs by name, with the answers that its server gives and the statuses that each new one goes through."""

    def __init__(self) -> None:
        template = {"suspend": True, "entrypoint": "spin classify s --date {day}", "backoffLimit": 2}
        self.jobs: dict[str, dict[str, Any]] = {
            "night": {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "night", "uid": "0"},
                      "spec": template, "status": {"jobDeploymentStatus": "Suspended"}}
        }  # fmt: skip
        self.made: list[str] = []
        self.faults: list[int] = []
        self.course: list[dict[str, Any] | None] = [RUNNING, DONE]

    def answer(self, method: str, path: str, token: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Status and object, as Kubernetes would."""
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
            self.made.append(body["metadata"]["name"])
            self.jobs[self.made[-1]] = body
            return 201, body
        if name in self.made and self.course:
            status = self.course.pop(0)
            if status is None:
                del self.jobs[name]
            else:
                self.jobs[name]["status"] = status
        return (200, self.jobs[name]) if name in self.jobs else (404, {"kind": "Status", "reason": "NotFound"})

    def has(self, name: str, *course: dict[str, Any]) -> None:
        """A RayJob that is there before, in the first status of its course."""
        self.jobs[name] = {**self.jobs["night"], "metadata": {"name": name}, "status": course[0]}
        if len(course) > 1:
            self.made, self.course = [name], list(course)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own authority for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder / "ca.crt", folder / "key.pem"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The server's memory; the server itself listens on a port that the environment names."""
    held = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, found = held.answer(self.command, self.path, self.headers["Authorization"], body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
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
        yield held
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Runs the script's main for the template `night`."""
    module: ModuleType = load_start_script()
    monkeypatch.setattr(module, "ACCOUNT", tmp_path)
    monkeypatch.setattr(module, "WAIT", 0.001)
    return lambda: int(module.main("night"))


def test_it_makes_a_run_and_waits_for_its_end(cluster: Cluster, start: Callable[[], int]) -> None:
    """The day filled in, not suspended, owned by the Job; KubeRay's own retries are waited for."""
    cluster.course = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RETRYING, RUNNING, DONE]
    assert start() == 0
    assert cluster.course == []
    made = cluster.jobs["night-2026-11-24"]
    assert made["spec"] == {"suspend": False, "entrypoint": "spin classify s --date 2026-11-24", "backoffLimit": 2}
    [owner] = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "night-29387520", "uid": "7"}
    assert "uid" not in made["metadata"]
    assert cluster.jobs["night"]["spec"]["suspend"] is True


@pytest.mark.parametrize("end", [FAILED, STOPPED, INVALID], ids=lambda end: end["jobDeploymentStatus"])
def test_a_run_that_fails_fails_the_job(
    cluster: Cluster, start: Callable[[], int], end: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And KubeRay's words are in the log."""
    cluster.course = [RUNNING, end]
    assert start() == 1
    assert end.get("message", "STOPPED") in capsys.readouterr().out


def test_no_second_run_while_one_runs(cluster: Cluster, start: Callable[[], int]) -> None:
    """A pod that was lost, or a second Job: it waits for the one that is there."""
    cluster.has("night-2026-11-24", RUNNING, RUNNING, DONE)
    assert start() == 0
    assert cluster.made == ["night-2026-11-24"]
    assert cluster.course == []


def test_no_second_run_after_a_success(
    cluster: Cluster, start: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that it is there."""
    cluster.has("night-2026-11-24", DONE)
    assert start() == 0
    assert cluster.made == []
    assert "night-2026-11-24 is there already" in capsys.readouterr().out


def test_after_failures_the_run_has_a_number(cluster: Cluster, start: Callable[[], int]) -> None:
    """What failed stays there to be looked at."""
    cluster.has("night-2026-11-24", FAILED)
    cluster.has("night-2026-11-24-2", INVALID)
    assert start() == 0
    assert cluster.made == ["night-2026-11-24-3"]


def test_a_run_that_is_deleted_has_failed(cluster: Cluster, start: Callable[[], int]) -> None:
    """It is not waited for."""
    cluster.course = [RUNNING, None]
    assert start() == 1


def test_a_server_that_is_away_is_asked_again(cluster: Cluster, start: Callable[[], int]) -> None:
    """Nothing is made twice."""
    cluster.faults = [503, 500, 429, 502]
    assert start() == 0
    assert cluster.made == ["night-2026-11-24"]


def test_what_it_may_not_do_ends_it_in_words(cluster: Cluster, start: Callable[[], int], tmp_path: Path) -> None:
    """Status 1, at which the Job fails at once."""
    (tmp_path / "token").write_text("another")
    with pytest.raises(SystemExit, match="403: .*forbidden"):
        start()


def test_a_template_that_is_missing_is_named(cluster: Cluster, start: Callable[[], int]) -> None:
    """Nothing is made."""
    del cluster.jobs["night"]
    with pytest.raises(SystemExit, match="no RayJob night"):
        start()


def test_a_night_is_yesterday(cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In UTC, the last day that is over."""
    monkeypatch.delenv("DAY")
    before = datetime.datetime.now(datetime.UTC).date()
    assert start() == 0
    after = datetime.datetime.now(datetime.UTC).date()
    assert cluster.made[0] in {f"night-{day - datetime.timedelta(days=1)}" for day in (before, after)}


def test_a_day_that_is_none_is_refused(
    cluster: Cluster, start: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made."""
    monkeypatch.setenv("DAY", "2026-11-31")
    with pytest.raises(ValueError, match="day"):
        start()
    assert cluster.made == []
