"""The store on a folder and on the real S3 server: whole objects, one-line errors, one run at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ProfileNotFound
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage import filesystem as store_module
from pipelines.storage import lease as lease_module
from pipelines.storage.filesystem import store_errors
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError
from tests.support.repository import ROOT


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def run_python(code: str, *args: str) -> int:
    """The exit status of a Python of its own, in the repository."""
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, check=False).returncode


# Objects


def test_an_object_is_what_was_written_last(store: Store) -> None:
    """Bytes come back as they were put, empty ones too; a second write takes the place of the first."""
    for data in (bytes(range(256)), b"", b"another"):
        store.write("deep/in/here", data)
        assert store.read("deep/in/here") == data
    store.write_json("facts.json", {"é": [1, None]})
    assert store.read_json("facts.json") == {"é": [1, None]}


def test_what_is_not_there(store: Store) -> None:
    """Reading, listing and deleting nothing is no error; copying and opening it is, and names it."""
    assert store.read("none") is None
    assert store.read_json("none") is None
    assert not store.exists("none")
    assert store.list() == store.list("none") == []
    store.delete("none")
    with pytest.raises(UserError, match=r"/b: not found"):
        store.copy("none", "b")
    with pytest.raises(UserError, match=r"/none: not found"):
        store.open("none")


def test_keys_are_listed_below_a_prefix(store: Store) -> None:
    """Sorted, relative to the store, and `d` does not take in `dd`."""
    for key in ("z", "dd/x", "d/e/z", "d/y", "d/a"):
        store.write(key, b"")
    assert store.list() == ["d/a", "d/e/z", "d/y", "dd/x", "z"]
    assert store.list("d") == store.list("d/") == ["d/a", "d/e/z", "d/y"]
    assert store.list("d/e") == ["d/e/z"]
    assert (store / "d").list() == ["a", "e/z", "y"]
    assert store.exists("d")
    assert store.exists("d/y")


def test_a_prefix_is_deleted_whole_and_alone(store: Store) -> None:
    for key in ("d/y", "d/e/z", "dd/x", "d.json"):
        store.write(key, b"")
    store.delete("d")
    assert store.list() == ["d.json", "dd/x"]
    store.delete("d.json")
    assert store.list() == ["dd/x"]


def test_a_copy_is_whole_and_its_own(store: Store) -> None:
    store.write("a", b"first")
    store.copy("a", "deep/b")
    store.write("a", b"second")
    assert store.read("deep/b") == b"first"
    store.copy("a", "deep/b")
    assert store.read("deep/b") == b"second"


def test_an_opened_object_is_read_by_ranges(store: Store) -> None:
    """Any range, from the end too, and several from one handle."""
    store.write("letters", b"abcdefghij")
    with store.open("letters") as file:
        assert (file.seek(3), file.read(4)) == (3, b"defg")
        assert (file.seek(-2, 2), file.read()) == (8, b"ij")
        assert (file.seek(0), file.read(1)) == (0, b"a")


def test_one_of_many_creates_an_object(store: Store) -> None:
    """16 threads at once: one is told that it made the object, and the object is its."""
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return store.create("only/one", str(number).encode())

    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(create, range(16)))
    assert made.count(True) == 1
    assert store.read("only/one") == str(made.index(True)).encode()
    assert not store.create("only/one", b"later")
    assert store.list() == ["only/one"]


def test_a_store_goes_to_a_worker(store: Store) -> None:
    """What is pickled is where the store lies, no connection."""
    store.write("a", b"here")
    sent = pickle.loads(pickle.dumps(store))
    assert sent.read("a") == b"here"
    assert (sent.uri, sent.root) == (store.uri, store.root)


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative store stays where it is when the process moves."""
    monkeypatch.chdir(tmp_path)
    store = Store("here/")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write("a", b"")
    assert (tmp_path / "here" / "a").exists()
    assert store.uri == str(tmp_path / "here")


class AgainstADict(RuleBasedStateMachine):
    """A store on a folder does what a dict does."""

    keys = st.sampled_from(["a", "a2", "d/x", "d/y", "d/e/z", "dd/x"])
    prefixes = st.sampled_from(["a", "d", "d/e", "d/x", "dd", "none"])
    values = st.binary(max_size=4)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store(self.folder)
        self.model: dict[str, bytes] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def below(self, prefix: str) -> list[str]:
        return sorted(key for key in self.model if key == prefix or key.startswith(f"{prefix}/"))

    @rule(key=keys, value=values)
    def write(self, key: str, value: bytes) -> None:
        self.store.write(key, value)
        self.model[key] = value

    @rule(key=keys, value=values)
    def create(self, key: str, value: bytes) -> None:
        assert self.store.create(key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(key=keys, to=keys)
    def copy(self, key: str, to: str) -> None:
        if key in self.model:
            self.store.copy(key, to)
            self.model[to] = self.model[key]
        else:
            with pytest.raises(UserError):
                self.store.copy(key, to)

    @rule(prefix=prefixes)
    def delete(self, prefix: str) -> None:
        self.store.delete(prefix)
        for key in self.below(prefix):
            del self.model[key]

    @rule(key=keys, prefix=prefixes)
    def look(self, key: str, prefix: str) -> None:
        assert self.store.read(key) == self.model.get(key)
        assert self.store.exists(key) == (key in self.model)
        assert self.store.list() == sorted(self.model)
        assert self.store.list(prefix) == self.below(prefix)


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


# What goes wrong in the middle


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=["^C", "EIO"])
def test_a_write_that_fails_leaves_the_old(
    failure: BaseException, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the temporary file and the rename: the old content, and nothing else in the folder."""
    folder.write("a", b"old")

    def fail(*_: object) -> NoReturn:
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((KeyboardInterrupt, UnavailableError)):
        folder.write("a", b"new")
    with pytest.raises((KeyboardInterrupt, UnavailableError)):
        folder.copy("a", "b")
    assert folder.read("a") == b"old"
    assert files_in(tmp_path) == ["a"]


KILLED = """
import os, pathlib, sys
from pipelines.storage.object_store import Store
pathlib.Path.replace = lambda *_: os._exit(9)
Store(sys.argv[1]).write("a", b"new")
"""


def test_a_killed_write_leaves_the_old(folder: Store, tmp_path: Path) -> None:
    """A process that dies before the rename leaves the old content; its temporary file is not among the keys."""
    folder.write("a", b"old")
    assert run_python(KILLED, folder.uri) == 9
    assert folder.read("a") == b"old"
    assert len(files_in(tmp_path)) == 2
    assert folder.list() == ["a"]


@pytest.mark.parametrize("put", [Store.write, Store.create])
def test_a_full_disk(
    put: Callable[..., object], folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 5, naming the object, and nothing is left in the folder."""

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"store/a: .*full .*No space left.*run it again to resume") as error:
        put(folder, "a", b"data")
    assert error.value.status == 5
    assert files_in(tmp_path) == folder.list() == []


def test_a_delete_that_did_nothing_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 may refuse single keys of a bulk delete, of which s3fs says nothing: what is left must not pass for gone."""
    store.write("d/x", b"")
    monkeypatch.setattr(store.fs, "rm", lambda *_, **__: [])
    with pytest.raises(UnavailableError, match=r"/d: .*not everything could be deleted"):
        store.delete("d")


# Errors in one line

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("a", b""),
    "create": lambda store: store.create("a", b""),
    "exists": lambda store: store.exists("a"),
    "list": lambda store: store.list(),
    "copy": lambda store: store.copy("a", "b"),
    "open": lambda store: store.open("a"),
    "delete": lambda store: store.delete("a"),
}


def told(operation: str, uri: str) -> SpinError:
    """The error of an operation, after a look that it is one line, names the store and shows no credential."""
    with pytest.raises(SpinError) as found:
        OPERATIONS[operation](Store(uri))
    message = str(found.value)
    assert message.startswith(uri)
    assert "\n" not in message
    assert not [
        name for name, value in os.environ.items() if name.startswith("AWS_") and "KEY" in name and value in message
    ]
    return found.value


@pytest.mark.s3
@pytest.mark.parametrize("operation", ["write", "create", "copy", "open"])
def test_a_bucket_that_is_not_there(operation: str, s3_server: str) -> None:
    """Status 2, with the server's own word for it."""
    error = told(operation, f"{s3_server}-not-there/prefix")
    assert (type(error), "not found (NoSuchBucket)" in str(error)) == (UserError, True)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_credentials_that_are_refused(name: str, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 2 from every operation, and neither half of the credentials is shown."""
    monkeypatch.setenv(name, "SOMETHINGELSE")
    error = told(operation, "s3://spin/prefix")
    assert isinstance(error, UserError)
    assert "the store refuses the credentials (" in str(error)
    assert "(None)" not in str(error)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for no server, and timeouts that a test can wait for."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEONE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SOMETHING")
    config = {"connect_timeout": 0.1, "read_timeout": 0.1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(store_module._S3, "config_kwargs", config)
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_an_endpoint_that_does_not_answer(operation: str, silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 5, whether nothing listens at the port or what listens never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        if not silent:
            listener.close()
        error = told(operation, "s3://bucket/prefix")
    assert (type(error), error.status) == (UnavailableError, 5)
    assert "the store does not answer (" in str(error)


CLIENT_ERROR = ClientError({"Error": {"Code": "ExpiredToken", "Message": "None"}}, "PutObject")
FAILURES: dict[str, tuple[BaseException, type[SpinError], str]] = {
    "refused": (CLIENT_ERROR, UserError, "refuses the credentials (An error occurred (ExpiredToken)"),
    "permission": (PermissionError(13, "Permission denied"), UserError, "refuses the credentials ([Errno 13]"),
    "profile": (ProfileNotFound(profile="night"), UserError, "refuses the credentials (The config profile (night)"),
    "away": (EndpointConnectionError(endpoint_url="http://h:403"), UnavailableError, "does not answer (Could not"),
    "a path with 403": (OSError(errno.EIO, "Input/output error", "/data/403"), UnavailableError, "does not answer"),
    "lines": (OSError("one\n  two"), UnavailableError, "does not answer (one two); try again"),
    "no words": (TimeoutError(), UnavailableError, "does not answer (TimeoutError); try again"),
    "ours": (HeldError("held by someone"), HeldError, "held by someone"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_an_error_says_whose_fault_it_is(case: str) -> None:
    """Each kind of failure has its class and words; a number in a path is not taken for a refusal."""
    failure, kind, said = FAILURES[case]
    with pytest.raises(kind) as found, store_errors("s3://here"):
        raise failure
    assert type(found.value) is kind
    assert said in str(found.value)


def test_what_is_no_mistake_of_a_store_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), store_errors("s3://here"):
        raise ZeroDivisionError


URIS = {
    "s3://KEY:HUSH@bucket/prefix": "a URI holds credentials",
    "s3://Bad Bucket/prefix": 'Invalid bucket name "Bad Bucket"',
    "s3://": "'s3://' names no bucket",
    "foo://somewhere": "'foo://somewhere' is not a folder or an s3:// URI",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("uri", URIS)
def test_a_uri_that_is_none(uri: str) -> None:
    """Status 2; credentials in a URI are refused without being repeated."""
    with pytest.raises(UserError) as found:
        Store(uri).read("a")
    assert URIS[uri] in str(found.value)
    assert "HUSH" not in str(found.value)


# One run at a time


class Clock:
    """Stands in for `time`: sleeping only moves it on and does what is due."""

    def __init__(self, **due: Callable[[], None]) -> None:
        self.now, self.sleeps, self.due = 100.0, 0, due

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        self.due.get(f"sleep_{self.sleeps}", lambda: None)()


def put_lease(store: Store, number: int = 1, **facts: Any) -> None:
    """A lease of a holder on another machine."""
    there = {"holder": "eve@far process 7", "kernel": "another", "pid": os.getpid(), "started": "1", "token": "t"}
    store.write_json(f"_lease/{number:06d}", {**there, "beat": "first", "ttl": 20.0, "ended": False, **facts})


def test_a_store_that_is_held_is_refused(store: Store) -> None:
    """The second run gets status 3 and the holder's name; the first one is not disturbed."""
    with Lease(store, ttl=3.0) as first:
        with pytest.raises(HeldError) as found, Lease(store, ttl=3.0):
            pass
        assert found.value.status == 3
        assert str(found.value) == f"{store.uri} is held by {first.holder}; wait until it ends, or end it"
        first.check()


def test_a_store_that_was_left_is_free_at_once(store: Store) -> None:
    """Run after run, without waiting for the 10 hours of the one before; one object is all that stays."""
    for number in range(1, 4):
        with Lease(store, ttl=36_000) as lease:
            lease.check()
            assert store.list() == [f"_lease/{number:06d}"]
    assert store.list() == ["_lease/000003"]


def test_a_run_that_failed_leaves_the_store_free(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease(store, ttl=36_000):
        raise ZeroDivisionError
    with Lease(store, ttl=36_000):
        pass


CRASHED = """
import os, sys
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
Lease(Store(sys.argv[1]), ttl=36000).__enter__()
os._exit(9)
"""


def test_the_lease_of_a_process_that_died_here_is_taken_at_once(store: Store) -> None:
    """A run that was killed leaves its lease; nobody waits for the 10 hours it was good for."""
    assert run_python(CRASHED, store.uri) == 9
    assert store.read_json("_lease/000001")["ended"] is False
    with Lease(store) as lease:
        lease.check()
        assert store.list() == ["_lease/000002"]


def test_a_pid_that_is_another_process_by_now(folder: Store) -> None:
    """A process of the holder's number that started at another time is not the holder."""
    put_lease(folder, kernel=lease_module._kernel(), started="0", ttl=36_000)
    with Lease(folder):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has /proc")
def test_the_start_of_a_process_is_that_of_the_kernel() -> None:
    """In clock ticks since boot, as field 22 of /proc/PID/stat holds it; a process that does not exist has none."""
    fields = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()
    assert lease_module._start_time(os.getpid()) == fields[22 - 3]
    assert lease_module._start_time(2**22 + 1) is None


def test_a_pid_means_nothing_on_another_machine(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder of this host's name whose pid is not seen here may live in another container: its ttl is waited for."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    put_lease(folder, pid=2**22 + 1, started="0", ttl=20.0)
    with Lease(folder):
        assert clock.now - 100 >= 20


def test_where_processes_cannot_be_seen_nobody_is_taken_for_dead(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines that cannot name their kernel are not one: the ttl is waited for."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    monkeypatch.setattr(lease_module, "_kernel", lambda: None)
    put_lease(folder, kernel=None, started="0", ttl=20.0)
    with Lease(folder):
        assert clock.now - 100 >= 20


def test_a_silent_lease_is_taken_after_its_own_ttl(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder's ttl is waited for, not ours, and not less; then its object goes."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    put_lease(store, 7, ttl=20.0)
    with Lease(store, ttl=5.0) as lease:
        lease.check()
        assert clock.now - 100 >= 20
        assert store.list() == ["_lease/000008"]


@pytest.mark.parametrize("sleep", [1, 3, 4])
def test_a_lease_that_beats_is_refused(sleep: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life at any time before the ttl has passed, the very last look included."""
    clock = Clock(**{f"sleep_{sleep}": lambda: put_lease(store, ttl=2.0, beat="second")})
    monkeypatch.setattr(lease_module, "time", clock)
    put_lease(store, ttl=2.0)
    with pytest.raises(HeldError, match="held by eve@far process 7"), Lease(store, ttl=5.0):
        pass
    assert clock.sleeps == sleep
    assert store.list() == ["_lease/000001"]


def test_a_lease_that_ends_while_we_watch_is_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last beat is its end, no sign of life."""
    clock = Clock(sleep_2=lambda: put_lease(store, beat="last", ended=True))
    monkeypatch.setattr(lease_module, "time", clock)
    put_lease(store)
    with Lease(store):
        assert clock.sleeps == 2


def test_takers_race_for_a_dead_lease(store: Store) -> None:
    """Eight at once: one gets in, seven are told who."""
    put_lease(store, ended=True)
    start, told_off = threading.Barrier(8), threading.Semaphore(0)

    def take(_: int) -> str:
        lease = Lease(store, ttl=3.0)
        start.wait()
        try:
            with lease:
                for _ in range(7):
                    assert told_off.acquire(timeout=60)
                lease.check()
                return "in"
        except HeldError:
            told_off.release()
            return "out"

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(take, range(8))) == ["in"] + ["out"] * 7
    assert store.list() == ["_lease/000002"]


def test_an_overtaken_holder_is_fenced_for_good(store: Store) -> None:
    """It may not publish while the taker works nor after, though its last heartbeat comes late and its object back."""
    late = Lease(store, ttl=36_000)
    with late:
        late.check()
        store.write("_lease/000001", late._content(ended=True))  # as one that was silent for long looks to others
        with Lease(store, ttl=36_000) as taker:
            with pytest.raises(HeldError, match="is held by"):
                late.check()
            store.write("_lease/000001", late._content())
            with pytest.raises(HeldError):
                late.check()
            taker.check()
        with pytest.raises(HeldError):
            late.check()
    with Lease(store, ttl=36_000) as third:
        third.check()
        assert store.list() == ["_lease/000003"]


def test_a_holder_whose_store_was_emptied_is_fenced(store: Store) -> None:
    """Somebody deleted everything and another run began: its number is ours, its token is not."""
    with Lease(store, ttl=36_000) as first:
        store.delete("_lease")
        with pytest.raises(HeldError, match="held by another run"):
            first.check()
        with Lease(store, ttl=36_000) as second:
            assert store.list() == ["_lease/000001"]
            with pytest.raises(HeldError):
                first.check()
            second.check()


def test_a_late_taker_does_not_slip_in_below(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its write, two runs came and went and a third works: it is refused, the third is not."""
    with Lease(folder):
        pass
    slow, create = Store(folder.uri), Store.create
    third = Lease(folder)

    def late(self: Store, key: str, data: bytes) -> bool:
        if self is slow:
            with Lease(folder):
                pass
            third.__enter__()
            assert not folder.exists(key)
        return create(self, key, data)

    monkeypatch.setattr(Store, "create", late)
    with pytest.raises(HeldError), Lease(slow):
        pass
    third.check()
    third.__exit__(None, None, None)


def test_a_creation_whose_answer_was_lost_is_ours(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's client asks again when an answer is lost and hears that the object, its own, is there."""
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda self, key, data: create(self, key, data) and False)
    with Lease(folder) as lease:
        lease.check()


def test_the_keeper_beats_and_outlasts_a_store_that_is_away(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beat differs; a write that fails is tried again at the next."""
    write, beats = Store.write, []
    enough, failed = threading.Event(), threading.Event()

    def watched(self: Store, key: str, data: bytes) -> None:
        beats.append(json.loads(data)["beat"])
        if not failed.is_set():
            failed.set()
            raise UnavailableError("away")
        write(self, key, data)
        if len(beats) >= 3:
            enough.set()

    monkeypatch.setattr(Store, "write", watched)
    with Lease(folder, ttl=0.3) as lease:
        assert enough.wait(30)
        lease.check()
    assert len(set(beats)) == len(beats)
    assert folder.read_json("_lease/000001")["ended"] is True


def test_a_store_that_is_away_at_the_end_does_not_hide_the_outcome(
    folder: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of the run is raised, the error of the store is logged; the lease expires by itself."""
    caplog.set_level(logging.DEBUG, lease_module.__name__)

    def away(*_: object) -> NoReturn:
        raise UnavailableError("away")

    def run() -> None:
        with Lease(folder, ttl=36_000):
            monkeypatch.setattr(Store, "write", away)
            raise UserError("mine")

    with pytest.raises(UserError, match="mine"):
        run()
    assert folder.read_json("_lease/000001")["ended"] is False
    [record] = caplog.records
    assert "could not be released" in record.message
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "away"


def test_a_user_without_a_name(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a number that no passwd file knows."""

    def nameless() -> NoReturn:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    with Lease(folder) as lease:
        assert lease.holder.startswith(f"user {os.getuid()}@")


class Turns:
    """Runs of one store in threads, each halted before every operation until it is its turn."""

    def __init__(self, runs: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.inside: set[int] = set()
        self.most = self.entered = 0
        self.go = [threading.Semaphore(0) for _ in range(runs)]
        self.halted = [threading.Semaphore(0) for _ in range(runs)]
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(runs)]
        for number, thread in enumerate(self.threads):
            thread.start()
            self.halted[number].acquire()

    def run(self, number: int) -> None:
        store = cast(Store, Stepped(self, number))
        try:
            with Lease(store, ttl=36_000):
                self.inside.add(number)
                self.entered += 1
                self.most = max(self.most, len(self.inside))
                store.read("work")
                self.inside.remove(number)
        except HeldError:
            pass
        self.halted[number].release()

    def step(self, number: int) -> None:
        """One operation of one run, and on to its next."""
        if self.threads[number].is_alive():
            self.go[number].release()
            self.halted[number].acquire()


class Stepped:
    """A store in memory, as one run sees it."""

    uri = "memory"

    def __init__(self, turns: Turns, number: int) -> None:
        self.turns, self.number = turns, number

    def objects(self) -> dict[str, bytes]:
        self.turns.halted[self.number].release()
        self.turns.go[self.number].acquire()
        return self.turns.objects

    def read(self, key: str) -> bytes | None:
        return self.objects().get(key)

    def read_json(self, key: str) -> Any:
        data = self.read(key)
        return None if data is None else json.loads(data)

    def create(self, key: str, data: bytes) -> bool:
        return self.objects().setdefault(key, data) is data

    def write(self, key: str, data: bytes) -> None:
        self.objects()[key] = data

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects() if key.startswith(prefix))

    def delete(self, prefix: str) -> None:
        self.objects().pop(prefix, None)


class Impatient:
    """Stands in for `time`: who would have to wait for a live holder gives up."""

    monotonic = staticmethod(lambda: 0.0)

    @staticmethod
    def sleep(_: float) -> NoReturn:
        raise HeldError("alive")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=16))
@example([(0, 20), (1, 20), (2, 20)])
@example([(0, 2), (1, 1), (0, 6), (2, 1), (1, 1), (2, 3), (1, 3)])  # the second saw the first, which then ended
def test_no_order_of_operations_lets_two_runs_in(monkeypatch: pytest.MonkeyPatch, order: list[tuple[int, int]]) -> None:
    """Three live runs whose operations on the store mix in any order: never two inside, and none goes on for ever."""
    monkeypatch.setattr(lease_module, "time", Impatient)
    turns = Turns(3)
    for number, steps in [*order, (0, 30), (1, 30), (2, 30)]:
        for _ in range(steps):
            turns.step(number)
    assert not any(thread.is_alive() for thread in turns.threads)
    assert turns.most == 1
    assert turns.entered >= 1
