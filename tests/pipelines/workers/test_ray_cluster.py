"""The surroundings of a Ray session: signal handlers that Ray replaces, and a line if Ray ends the process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import tenacity

from pipelines.service_errors import UnavailableError
from pipelines.workers import ray_cluster
from pipelines.workers.ray_cluster import call_in_thread, signal_handlers_kept
from spin.settings import RaySettings
from tests.support.repository import ROOT


class Signalled(BaseException):
    """Raised by the handler of these tests."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers of SIGTERM and SIGINT that raise Signalled."""

    def handle(number: int, _: object) -> None:
        raise Signalled(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_handlers_that_ray_replaces_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with signal_handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_that_ray_handles_while_it_starts_ends_the_command_as_any_other() -> None:
    """Ray's handler, set first by `ray.init`, exits with status 15 and no message."""
    code = """
import signal, sys
from pipelines.workers.ray_cluster import signal_handlers_kept
signal.signal(signal.SIGTERM, lambda *_: sys.exit("the command's own end"))
with signal_handlers_kept():
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "the command's own end\n")


def test_another_exit_passes() -> None:
    with pytest.raises(SystemExit) as end, signal_handlers_kept():
        sys.exit(3)
    assert end.value.code == 3


def test_a_signal_interrupts_the_wait_for_a_call_in_a_thread() -> None:
    """In the main thread Ray Train would replace the handler; the call goes on in its thread."""
    code = """
import os, signal, sys, threading
from pipelines.workers import ray_cluster
from pipelines.workers.ray_cluster import call_in_thread

def end(number, frame):
    sys.exit("interrupted")

def wait():
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

signal.signal(signal.SIGINT, end)
call_in_thread(wait)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "interrupted\n")


def test_a_call_in_a_thread_returns_and_raises_as_one_without() -> None:
    assert call_in_thread(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_in_thread(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("end", "status", "lines"),
    [("os._exit(1)", 1, 1), ("os.kill(os.getpid(), 9)", -9, 1), ("pass", 0, 0), ("sys.exit(4)", 4, 0)],
    ids=["Ray's core exits", "killed", "ends", "fails"],
)
def test_a_process_that_ends_without_a_report_leaves_one_line(end: str, status: int, lines: int) -> None:
    """Ray's core ends a driver without an exception if it loses its node or the head."""
    setup = "import os, sys\nfrom pipelines.workers.ray_cluster import _sudden_end_reported as reported\n"
    code = f"{setup}with reported():\n    {end}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, lines), done.stderr
    if lines:
        assert done.stderr.startswith("error: the process of this command ended without a report")


@pytest.mark.slow
@pytest.mark.ray
def test_a_thread_that_outlives_a_session_starts_no_other() -> None:
    """A stage that fails leaves threads of Ray behind, and Ray would start a cluster for the next call of one."""
    code = """
import threading
from pipelines.workers.ray_cluster import cluster
from spin.settings import RaySettings

ended = threading.Event()

def call_after_the_end():
    ended.wait()
    try:
        ray.put(1)
    except Exception as error:
        print(type(error).__name__)

with cluster(RaySettings(workers=1)):
    import ray
    thread = threading.Thread(target=call_after_the_end)
    thread.start()
ended.set()
thread.join()
print(ray.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False", done.stdout + done.stderr
    assert "RaySystemError" in done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_ray_data_ends_before_ray() -> None:
    """A stage that is interrupted leaves a dataset behind that a thread still reads."""
    code = """
import threading
from pipelines.workers.ray_cluster import cluster
from spin.settings import RaySettings

def sleep(row):
    threading.Event().wait()

def executing():
    return [thread.name for thread in threading.enumerate() if type(thread).__name__ == "StreamingExecutor"]

with cluster(RaySettings(workers=1)):
    import ray
    dataset = ray.data.range(1).map(sleep)
    threading.Thread(target=dataset.materialize, daemon=True).start()
    while not executing():
        threading.Event().wait(0.1)
    shutdown = ray.shutdown
    ray.shutdown = lambda: (print(executing()), shutdown())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_ray_ends_where_ray_data_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    def fail(executor: StreamingExecutor, *, force: bool) -> None:
        tried.append(force)
        raise ConnectionError("the actors are gone")

    tried: list[bool] = []
    ended: list[bool] = []
    monkeypatch.setattr(StreamingExecutor, "shutdown", fail)
    monkeypatch.setattr("threading.enumerate", lambda: [StreamingExecutor.__new__(StreamingExecutor)])
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    ray_cluster._shut_down()
    assert tried[0]  # its end as garbage is another try
    assert ended == [True]


STRANGER = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""
"""what anybody on the machine can run who does not know the token"""


@pytest.mark.ray
@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": "a" * 64}], ids=["no variable", "a token alone"])
def test_ray_on_this_machine_serves_no_stranger(tmp_path: Path, given: dict[str, str]) -> None:
    """Its processes listen on loopback alone, want a token, and leave it in no file; a worker has it.

    After it, the environment is as before: a cluster that is connected to next may have no token.
    """
    code = f"""
import json, os, subprocess, sys
import psutil
import ray  # as in a process that has used it before
from pipelines.workers.ray_cluster import cluster
from spin.settings import RaySettings

def call(environment):
    command = [sys.executable, "-c", {STRANGER!r}, ray.get_runtime_context().gcs_address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

def known():
    return os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])

before = {{name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}}

with cluster(RaySettings(workers=1)):
    worker = ray.get(ray.remote(known).remote())
    own = {{process.pid for process in psutil.Process().children(recursive=True)}} | {{os.getpid()}}
    sockets = [c for c in psutil.net_connections("inet") if c.pid in own and c.status == psutil.CONN_LISTEN]
    plain = {{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}}
    seen = {{
        "addresses": sorted({{c.laddr.ip.removeprefix("::ffff:") for c in sockets}}),
        "worker": worker,
        "friend": call(dict(os.environ)).stdout.strip(),
        "stranger": call(plain).stdout.strip(),
        "guesser": call(plain | {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}}).stdout.strip(),
    }}
after = {{name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}}
print(json.dumps({{**seen, "restored": after == before}}))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path), **given}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "addresses": ["127.0.0.1"],
        "worker": ["token", 64],
        "friend": "1",
        "stranger": "",
        "guesser": "",
        "restored": True,
    }
    assert not (tmp_path / ".ray").exists()


def test_a_metrics_port_that_is_taken_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Ray would not start on it."""
    with socket.create_server(("", 0)) as other:
        taken = other.getsockname()[1]
        assert ray_cluster._choose_metrics_port(taken) is None
    assert f"ray.metrics_port {taken}" in caplog.text
    assert ray_cluster._choose_metrics_port(taken) == taken
    assert ray_cluster._choose_metrics_port(None) is None


def test_ray_still_takes_the_private_name_for_the_port_of_metrics() -> None:
    """Nothing public sets it; Ray refuses names that it does not know before it starts anything."""
    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\): _unknown$"):
        ray.init(address="local", _metrics_export_port=1, _unknown=1)


@pytest.mark.parametrize("failures", [1, 9])
def test_a_node_that_does_not_start_in_time_is_started_again(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception after 30 seconds; the command then ends with status 5, not with a traceback."""
    starts = []

    def start(**_: object) -> None:
        starts.append(1)
        if len(starts) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(tenacity.nap, "time", NoTime())
    settings = RaySettings(workers=1)
    if failures == 1:
        with ray_cluster.cluster(settings):
            pass
        assert len(starts) == 2
    else:
        with pytest.raises(UnavailableError, match="Ray cluster here: .*timed out"), ray_cluster.cluster(settings):
            pass


class NoTime:
    """A clock on which pauses take no time."""

    def sleep(self, seconds: float) -> None:
        pass
