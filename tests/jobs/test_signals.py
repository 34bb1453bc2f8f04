"""SIGTERM and SIGINT end a command in order, with one line on standard error."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.signals import StopOnSignals, Stopped
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from tests.support.repository import ROOT

HOLD = """
import tempfile, threading
from jobs import cli
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from pipelines.workers.progress import progress

@cli.app.command()
def hold(folder: str, where: str) -> None:
    with Lease(Store(folder), ttl=36_000), tempfile.TemporaryDirectory(dir=folder), progress("hold", 9, "documents"):
        print("ready", flush=True)
        while True:
            if where == "waiting":  # in steps: a signal that arrives just before a wait is handled after it
                threading.Event().wait(1)
            sum(range(1000))

cli.main()
"""


@contextmanager
def held(folder: Path, where: str) -> Iterator[subprocess.Popen[str]]:
    """A `spin` command that holds a lease and a temporary folder until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "hold", str(folder), where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["waiting", "computing"])
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "error: terminated; run it again to resume"),
        (signal.SIGINT, 130, "error: interrupted; run it again to resume"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_releases_what_a_command_holds(
    number: signal.Signals, status: int, line: str, where: str, tmp_path: Path
) -> None:
    """One line says what happened; the next run takes the lease at once, and no temporary file is left."""
    with held(tmp_path, where) as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error.splitlines()) == (status, [line])
    assert Store(str(tmp_path)).read_json("_lease/000001")["ended"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["_lease"]
    with Lease(Store(str(tmp_path)), ttl=36_000) as lease:
        assert lease.number == 2


@pytest.mark.slow
def test_a_signal_that_is_sent_twice_ends_a_command_as_one_does(tmp_path: Path) -> None:
    """A process group and its leader may both be sent it; the second must not interrupt what the first one began."""
    with held(tmp_path, "waiting") as process:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert len(error.splitlines()) == 1
    assert process.returncode in (143, 130)  # the kernel may deliver them in another order
    assert Store(str(tmp_path)).read_json("_lease/000001")["ended"] is True


def test_handlers_are_restored_after_a_command_that_was_not_stopped() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def fail() -> None:
        with StopOnSignals():
            assert signal.getsignal(signal.SIGTERM) not in before
            raise ValueError("mistake")

    with pytest.raises(ValueError, match="mistake"):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_nothing_but_the_end_of_the_command_handles_the_signal() -> None:
    """Neither `except Exception` nor `except KeyboardInterrupt` of a library does."""
    assert not issubclass(Stopped, (Exception, KeyboardInterrupt))
