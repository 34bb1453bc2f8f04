"""Drivers with workers on Ray that are ended by a signal, or that lose a process of Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.support.repository import ROOT

pytestmark = pytest.mark.ray


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Wait until a condition holds that a process brings about; fail if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended: {process.communicate()}"
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.1)


@contextmanager
def hanging_command(output: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A `spin` command that waits for shard 1, which never ends, and the processes of its Ray.

    The other shards may wait behind it, for the same worker. `variables` are added to its environment.
    """
    output.mkdir()
    code = "import sys, json; from tests.support import chaos; chaos.run_hanging_command(*json.loads(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps([str(output)])],
        cwd=ROOT,
        # a command sets it before it imports Ray, which the module here imports before
        env={**os.environ, "RAY_ENABLE_AUTO_CONNECT": "0", **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    store = Store(str(output))
    started: list[psutil.Process] = []
    try:
        wait_until(lambda: store.exists("attempts/000001/000001.json"), process)
        started = psutil.Process(process.pid).children(recursive=True)
        yield process, started
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for each in started:
            if each.is_running():
                each.kill()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGTERM, "error: terminated; run it again to resume"),
        (signal.SIGINT, "error: interrupted; run it again to resume"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_ends_a_driver_in_order(number: signal.Signals, line: str, tmp_path: Path) -> None:
    """Its status is 143 or 130, with one line; the lease is released, and neither Ray nor a temporary file is left."""
    with hanging_command(tmp_path / "out") as (process, started):
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
        _, alive = psutil.wait_procs(started, timeout=60)
    # a slow machine reports progress
    printed = [each for each in error.splitlines() if not each.startswith("progress: ")]
    assert (process.returncode, printed) == (128 + number, [line])
    assert alive == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names - {"parts"} == {"_lease", "attempts", "starts"}
    with Lease(Store(str(tmp_path / "out")), ttl=36_000) as lease:
        assert lease.number == 2


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_driver_that_loses_a_process_of_ray_ends_with_one_line(name: str, tmp_path: Path) -> None:
    """Whether Ray's core ends the driver or raises an error in it; the next command takes the lease at once."""
    # Ray looks for a lost head for a minute; a head on a busy machine may be silent for 5 seconds without being lost
    with hanging_command(tmp_path / "out", RAY_gcs_rpc_server_reconnect_timeout_s="5") as (process, started):
        lost = [each for each in started if each.name() == name]  # while one starts a child, both have its name
        assert lost
        for each in lost:
            each.kill()
        _, error = process.communicate(timeout=240)
    assert process.returncode in (1, 5, 6)
    assert len([line for line in error.splitlines() if line.startswith("error:")]) == 1, error
    with Lease(Store(str(tmp_path / "out")), ttl=36_000) as lease:
        assert lease.number == 2
