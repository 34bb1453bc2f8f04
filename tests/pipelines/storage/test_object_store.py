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
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ProfileNotFound
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from s3fs import S3File

from pipelines.service_errors import HeldError, UnavailableError
from pipelines.storage import filesystem as store_module
from pipelines.storage import lease as lease_module
from pipelines.storage.filesystem import normalize_uri, open_filesystem, store_errors
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
from spin.errors import SpinError, UserError
from spin.settings import RaySettings, parse_settings
from tests.support.broken_folders import break_listing
from tests.support.repository import ROOT


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def run_python(code: str, *args: str) -> int:
    """Run code in a fresh Python process in the repository and return its exit status."""
    return subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, check=False).returncode


# Objects


@pytest.fixture
def umask() -> Iterator[None]:
    """The umask of most machines, which lets everybody read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def list_modes(folder: Path) -> set[tuple[bool, int]]:
    """Whether it is a folder, and the mode, of a folder and of all that is below it."""
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}


@pytest.mark.usefixtures("umask")
def test_what_a_private_store_holds_is_for_its_user_alone(tmp_path: Path) -> None:
    """The store of a training is, also where a worker opens it; tables of nights are as the umask says."""
    tree = {"backbone": {"model": "some/model"}, "data": {"train": "t"}, "store": str(tmp_path / "runs" / "store")}
    (tmp_path / "file").write_bytes(b"text")
    private, public = Store.of(parse_settings(tree)), Store(str(tmp_path / "nights"))
    for store in (private, pickle.loads(pickle.dumps(private / "features")), public):
        store.write("a/b", b"1")
        assert store.create("a/c", b"2")
        store.upload("d", tmp_path / "file")
    assert list_modes(tmp_path / "runs" / "store") == {(True, 0o700), (False, 0o600)}
    assert list_modes(tmp_path / "nights") == {(True, 0o755), (False, 0o644)}
    public.as_private().write("a/b", b"3")
    assert (tmp_path / "nights" / "a" / "b").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("umask")
def test_folders_above_what_is_private_are_as_the_umask_says(tmp_path: Path) -> None:
    """Outputs beside a store, and the tables beside a spool, are for others to read."""
    tree = {"backbone": {"model": "some/model"}, "data": {"train": "t"}, "store": str(tmp_path / "runs" / "store")}
    (Store.of(parse_settings(tree)) / "features").write("a", b"1")
    Store(str(tmp_path / "out" / "nights")).as_private().write("spool/a", b"1")
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in folders} == {
        "runs": 0o755,
        "runs/store": 0o700,
        "runs/store/features": 0o700,
        "out": 0o755,
        "out/nights": 0o755,
        "out/nights/spool": 0o700,
    }


@pytest.mark.parametrize(("code", "kind"), [(errno.EACCES, UserError), (errno.ESTALE, UnavailableError)])
def test_a_folder_that_cannot_be_listed_is_not_empty(
    code: int, kind: type[SpinError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashes of forgotten ids, for example, would not be found, and their documents published."""
    store = Store(str(tmp_path))
    store.write("a/b/c", b"")
    break_listing(monkeypatch, tmp_path / "a" / "b", code)
    for prefix in ("", "a", "a/b"):
        with pytest.raises(kind, match=os.strerror(code)):
            store.list(prefix)
    with pytest.raises(kind, match=os.strerror(code)):
        store.list_names("a/b")


def test_a_read_returns_the_bytes_of_the_last_write(store: Store) -> None:
    """This holds for empty objects, deep keys and JSON; a later write replaces an earlier one."""
    for data in (bytes(range(256)), b"", b"replaced"):
        store.write("deep/nested/key", data)
        assert store.read("deep/nested/key") == data
    store.write_json("value.json", {"é": [1, None]})
    assert store.read_json("value.json") == {"é": [1, None]}


def test_a_missing_key_is_an_error_only_for_copy_and_open(store: Store) -> None:
    """Reading, listing and deleting a missing key raise nothing; copy and open raise an error that names the key."""
    assert store.read("none") is None
    assert store.read_json("none") is None
    assert not store.exists("none")
    assert store.list() == store.list("none") == []
    store.delete_many(["none"])
    with pytest.raises(UserError, match=r"/none: not found"):
        store.open("none")


def test_list_returns_the_sorted_keys_below_a_prefix(store: Store) -> None:
    """Keys are relative to the store, and the prefix `d` does not match `dd`."""
    for key in ("z", "dd/x", "d/e/z", "d/y", "d/a"):
        store.write(key, b"")
    assert store.list() == ["d/a", "d/e/z", "d/y", "dd/x", "z"]
    assert store.list("d") == store.list("d/") == ["d/a", "d/e/z", "d/y"]
    assert store.list("d/e") == ["d/e/z"]
    assert (store / "d").list() == ["a", "e/z", "y"]
    assert store.exists("d")
    assert store.exists("d/y")


def test_an_object_is_listed_by_its_own_key(store: Store) -> None:
    """As the listing of its prefix shows it; no temporary file is there once a write has ended."""
    store.write("d/y", b"123")
    [listed] = store.list_objects("d")
    [alone] = store.list_objects("d/y")
    assert (alone.key, alone.size) == (listed.key, listed.size) == ("d/y", 3)
    assert abs(alone.modified - listed.modified) <= 1, "a listing may count milliseconds"
    assert store.list_objects("none") == []
    assert store.list_all() == store.list_objects()


def test_the_objects_of_some_keys_are_deleted_and_no_others(store: Store) -> None:
    for key in ("d/y", "d/e/z", "dd/x", "d.json"):
        store.write(key, b"")
    store.delete_many(["d/e/z", "d.json", "none"])
    store.delete_many([])
    assert store.list() == ["d/y", "dd/x"]


def test_an_open_object_can_be_read_in_ranges(store: Store) -> None:
    """One handle reads several ranges, also relative to the end."""
    store.write("letters", b"abcdefghij")
    with store.open("letters") as file:
        assert (file.seek(3), file.read(4)) == (3, b"defg")
        assert (file.seek(-2, 2), file.read()) == (8, b"ij")
        assert (file.seek(0), file.read(1)) == (0, b"a")


def test_concurrent_creates_have_exactly_one_winner(store: Store) -> None:
    """Of 16 threads that create the same key, one gets True, and the object holds its data."""
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return store.create("race/key", str(number).encode())

    with ThreadPoolExecutor(16) as threads:
        created = list(threads.map(create, range(16)))
    assert created.count(True) == 1
    assert store.read("race/key") == str(created.index(True)).encode()
    assert not store.create("race/key", b"later")
    assert store.list() == ["race/key"]


def test_a_pickled_store_opens_its_own_connection(store: Store) -> None:
    """The pickle holds no connection, so that a store can be sent to a worker."""
    store.write("a", b"here")
    unpickled = pickle.loads(pickle.dumps(store))
    assert unpickled.read("a") == b"here"
    assert (unpickled.uri, unpickled.root) == (store.uri, store.root)


def test_what_comes_from_a_store_is_tried_again_for_as_long(tmp_path: Path) -> None:
    """Commands without settings try for as long as the setting's default."""
    store = Store(str(tmp_path), retry_seconds=7)
    assert [(store / "a" / "b").retry_seconds, pickle.loads(pickle.dumps(store)).retry_seconds] == [7, 7]
    assert Store(str(tmp_path)).retry_seconds == RaySettings().retry_seconds


def test_the_store_of_settings_is_tried_again_for_as_long_as_they_say(tmp_path: Path) -> None:
    tree = {"backbone": {"model": "m"}, "data": {"train": "t"}, "store": str(tmp_path), "ray": {"retry_seconds": 7}}
    store = Store.of(parse_settings(tree))
    assert (store.uri, store.retry_seconds) == (str(tmp_path), 7)


def test_a_relative_folder_is_resolved_when_the_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the working directory afterwards does not move the store."""
    monkeypatch.chdir(tmp_path)
    store = Store("here/")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write("a", b"")
    assert (tmp_path / "here" / "a").exists()
    assert store.uri == str(tmp_path / "here")


class StoreBehavesLikeDict(RuleBasedStateMachine):
    """Any sequence of operations on a store in a folder has the results it has on a dict."""

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

    def keys_below(self, prefix: str) -> list[str]:
        return sorted(key for key in self.model if key == prefix or key.startswith(f"{prefix}/"))

    @rule(key=keys, value=values)
    def write(self, key: str, value: bytes) -> None:
        self.store.write(key, value)
        self.model[key] = value

    @rule(key=keys, value=values)
    def create(self, key: str, value: bytes) -> None:
        assert self.store.create(key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(keys=st.lists(keys))
    def delete(self, keys: list[str]) -> None:
        self.store.delete_many(keys)
        for key in keys:
            self.model.pop(key, None)

    @rule(key=keys, prefix=prefixes)
    def compare(self, key: str, prefix: str) -> None:
        assert self.store.read(key) == self.model.get(key)
        assert self.store.exists(key) == (key in self.model)
        assert self.store.list() == sorted(self.model)
        assert self.store.list(prefix) == self.keys_below(prefix)


TestStoreBehavesLikeDict = StoreBehavesLikeDict.TestCase
TestStoreBehavesLikeDict.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


# Failures in the middle of an operation


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")], ids=["^C", "EIO"])
def test_a_failed_write_keeps_the_old_object(
    failure: BaseException, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails before its rename keeps the old content and leaves no temporary file."""
    folder.write("a", b"old")

    def fail(*_: object) -> NoReturn:
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((KeyboardInterrupt, UnavailableError)):
        folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert list_files(tmp_path) == ["a"]


DIE_BEFORE_RENAME = """
import os, pathlib, sys
from pipelines.storage.object_store import Store
pathlib.Path.replace = lambda *_: os._exit(9)
Store(sys.argv[1]).write("a", b"new")
"""


@pytest.mark.slow
def test_a_process_killed_during_a_write_keeps_the_old_object(folder: Store, tmp_path: Path) -> None:
    """The temporary file of the dead process stays on the disk but is not listed as a key."""
    folder.write("a", b"old")
    assert run_python(DIE_BEFORE_RENAME, folder.uri) == 9
    assert folder.read("a") == b"old"
    assert len(list_files(tmp_path)) == 2
    assert folder.list() == ["a"]
    [left, _] = folder.list_all()
    assert left.key.startswith(".a.")
    assert left.size == 3
    folder.delete_many([left.key])
    assert len(list_files(tmp_path)) == 1


@pytest.mark.parametrize("write", [Store.write, Store.create])
def test_a_full_disk_raises_unavailable_error_and_leaves_no_file(
    write: Callable[..., object], folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has status 5, names the object and says how to resume."""

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"store/a: .*full .*No space left.*run it again to resume") as error:
        write(folder, "a", b"data")
    assert error.value.status == 5
    assert list_files(tmp_path) == folder.list() == []


@pytest.mark.s3
def test_objects_that_were_not_deleted_are_named(s3_server: str) -> None:
    """S3 answers for each key of a bulk delete; s3fs ignores the answers. Here the bucket protects a prefix."""
    store = Store(f"{s3_server}/{uuid.uuid4().hex}")
    for key in ("kept/a", "kept/b", "other"):
        store.write(key, b"")
    bucket, _, prefix = store.root.partition("/")
    denied = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{bucket}/{prefix}/kept/*",
    }
    store.fs.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps({"Statement": [denied]}))
    try:
        found = r"refuses to delete \(2 objects were not deleted, AccessDenied: .*kept/a, .*kept/b\)"
        with pytest.raises(UserError, match=found):
            store.delete_many(["kept/a", "kept/b", "other"])
    finally:
        store.fs.call_s3("delete_bucket_policy", Bucket=bucket)
    assert store.list() == ["kept/a", "kept/b"]
    store.delete_many(["kept/a", "kept/b"])
    assert store.list() == []


def test_a_delete_that_fails_for_now_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with status 5. A key without an object is deleted."""
    store = Store("s3://spin/d")
    errors = [{"Key": "d/x", "Code": "UnknownError"}, {"Key": "d/y", "Code": "NoSuchKey"}]
    monkeypatch.setattr(store.fs, "call_s3", lambda *_, **__: {"Errors": errors})
    with pytest.raises(UnavailableError, match=r"s3://spin/d: .*1 objects were not deleted, UnknownError: spin/d/x"):
        store.delete_many(["x", "y"])


def test_an_object_that_was_not_deleted_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers fail if another client deletes the same object at the same time: two runs that take one lease."""
    asked = []

    def answer(_: str, *, Delete: dict[str, Any], **__: object) -> dict[str, Any]:
        asked.append([each["Key"] for each in Delete["Objects"]])
        return {"Errors": [{"Key": "d/x", "Code": "UnknownError"}]} if len(asked) == 1 else {}

    store = Store("s3://spin/d")
    monkeypatch.setattr(store.fs, "call_s3", answer)
    store.delete_many(["w", "x"])
    assert asked == [["d/w", "d/x"], ["d/x"]]


# Errors in one line

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "read": lambda store: store.read("a"),
    "write": lambda store: store.write("a", b""),
    "create": lambda store: store.create("a", b""),
    "exists": lambda store: store.exists("a"),
    "list": lambda store: store.list(),
    "open": lambda store: store.open("a"),
    "delete": lambda store: store.delete_many(["a"]),
}


def capture_error(operation: str, uri: str) -> SpinError:
    """Return the error of an operation; assert that it is one line, starts with the URI and shows no credential."""
    with pytest.raises(SpinError) as error:
        OPERATIONS[operation](Store(uri))
    message = str(error.value)
    assert message.startswith(uri)
    assert "\n" not in message
    assert not [
        name for name, value in os.environ.items() if name.startswith("AWS_") and "KEY" in name and value in message
    ]
    return error.value


@pytest.mark.s3
@pytest.mark.parametrize("operation", ["write", "create", "open"])
def test_a_missing_bucket_is_a_user_error(operation: str, s3_server: str) -> None:
    """The message holds the server's error code."""
    error = capture_error(operation, f"{s3_server}-not-there/prefix")
    assert (type(error), "not found (NoSuchBucket)" in str(error)) == (UserError, True)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_a_user_error(name: str, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation raises it, and the message shows neither the key id nor the secret."""
    monkeypatch.setenv(name, "SOMETHINGELSE")
    error = capture_error(operation, "s3://spin/prefix")
    assert isinstance(error, UserError)
    assert "the store refuses the credentials (" in str(error)
    assert "(None)" not in str(error)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up credentials, timeouts of 0.1 s and no retries."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SOMEONE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SOMETHING")
    config = {"connect_timeout": 0.1, "read_timeout": 0.1, "retries": {"total_max_attempts": 1}}
    monkeypatch.setitem(store_module._S3, "config_kwargs", config)
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_an_endpoint_that_does_not_answer_raises_unavailable_error(
    operation: str, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has status 5, whether the port is closed or a server accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        if not silent:
            listener.close()
        error = capture_error(operation, "s3://bucket/prefix")
    assert (type(error), error.status) == (UnavailableError, 5)
    assert "the store does not answer (" in str(error)


CLIENT_ERROR = ClientError({"Error": {"Code": "ExpiredToken", "Message": "None"}}, "PutObject")
FAILURES: dict[str, tuple[BaseException, type[SpinError], str]] = {
    "expired token": (CLIENT_ERROR, UserError, "refuses the credentials (An error occurred (ExpiredToken)"),
    "permission": (
        PermissionError(13, "Permission denied"),
        UserError,
        "this user may not read or write it ([Errno 13]",
    ),
    "permission in a store": (PermissionError("Access Denied"), UserError, "refuses the credentials (Access Denied)"),
    "read-only disk": (OSError(errno.EROFS, "Read-only file system"), UserError, "path cannot be used ([Errno 30]"),
    "name too long": (OSError(errno.ENAMETOOLONG, "File name too long"), UserError, "path cannot be used ([Errno 36]"),
    "profile": (ProfileNotFound(profile="night"), UserError, "refuses the credentials (The config profile (night)"),
    "endpoint": (EndpointConnectionError(endpoint_url="http://h:403"), UnavailableError, "does not answer (Could not"),
    "a path with 403": (OSError(errno.EIO, "Input/output error", "/data/403"), UnavailableError, "does not answer"),
    "message of two lines": (OSError("one\n  two"), UnavailableError, "does not answer (one two); try again"),
    "no message": (TimeoutError(), UnavailableError, "does not answer (TimeoutError); try again"),
    "SpinError": (HeldError("held by someone"), HeldError, "held by someone"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_store_errors_tells_user_errors_from_outages(case: str) -> None:
    """Refused credentials and paths are UserErrors, all else is an UnavailableError; a 403 in a path is no refusal."""
    failure, error_type, expected = FAILURES[case]
    with pytest.raises(error_type) as error, store_errors("s3://here"):
        raise failure
    assert type(error.value) is error_type
    assert expected in str(error.value)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EROFS])
def test_an_answer_of_a_store_is_no_error_of_a_disk(number: int) -> None:
    """s3fs gives some answers the numbers of a disk's errors; nobody can give permission for them there."""
    failure = OSError(number, "The specified method is not allowed")
    failure.__cause__ = ClientError({"Error": {"Code": "MethodNotAllowed", "Message": "None"}}, "PutObject")
    with pytest.raises(SpinError, match="the store (refuses the credentials|does not answer)"), store_errors("s3://b"):
        raise failure


def test_a_path_that_no_disk_can_use_is_a_user_error(tmp_path: Path) -> None:
    """Trying again would not help: a file in the place of a folder, or the reverse, a link to itself, a long name."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = [("write", "file"), ("create", "file"), ("read", "folder"), ("write", "folder"), ("read", "loop")]
    for operation, folder in [*cases, ("write", "n" * 300)]:
        error = capture_error(operation, str(tmp_path / folder))
        assert (type(error), error.status) == (UserError, 2), operation
        assert "the path cannot be used ([Errno " in str(error)
        assert str(error).endswith("; put that right, or name another path")


def test_store_errors_does_not_convert_programming_errors() -> None:
    with pytest.raises(ZeroDivisionError), store_errors("s3://here"):
        raise ZeroDivisionError


INVALID_URIS = {
    "s3://KEY:HUSH@bucket/prefix": "a URI holds credentials",
    "s3://KEY:HU/SH@bucket/prefix": "a URI holds credentials",
    "s3://HUSH@bucket/prefix": "a URI holds credentials",
    "s3://Bad Bucket/prefix": 'Invalid bucket name "Bad Bucket"',
    "s3://": "'s3://' names no bucket",
    "foo://somewhere": "'foo://somewhere' is not a folder or an s3:// URI",
}


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("uri", INVALID_URIS)
def test_an_invalid_uri_is_a_user_error(uri: str) -> None:
    """A URI with credentials is refused, and the message does not repeat them."""
    with pytest.raises(UserError) as error:
        Store(uri).read("a")
    assert INVALID_URIS[uri] in str(error.value)
    assert "HUSH" not in str(error.value)
    assert "HU/SH" not in str(error.value)


def test_names_from_outside_are_opened_as_they_are(store: Store) -> None:
    """A name with `::`, `&pass=` or `@` names one file, and neither another one nor a password."""
    store.write("sound.jsonl", b"sound")
    for name in ("sound.jsonl::x.jsonl", "a&pass=1.jsonl", "me@home.jsonl", "simplecache::sound.jsonl"):
        store.write(name, name.encode())
        fs, path = open_filesystem(f"{store.uri}/{name}")
        assert fs.cat_file(path) == name.encode()


def test_a_file_system_that_we_do_not_know_is_opened_by_private_names_of_fsspec() -> None:
    """`_get_kwargs_from_urls` and `_strip_protocol` are still there."""
    fs, path = open_filesystem("memory://folder/a.jsonl")
    fs.pipe_file(path, b"text")
    assert (path, fs.cat_file(path)) == ("/folder/a.jsonl", b"text")


def test_s3fs_reads_ranges_by_the_private_method_that_known_objects_override() -> None:
    assert callable(S3File._fetch_range)


def test_store_errors_mask_a_token_in_the_user_part_of_a_uri() -> None:
    with pytest.raises(UnavailableError) as error, store_errors("registry http://hush@host"):
        raise OSError("no answer from http://hush@host:5000/api")
    assert str(error.value) == (
        "registry http://***@host: the store does not answer (no answer from http://***@host:5000/api); try again"
    )


def test_a_location_has_one_normal_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slashes at the end never count; in an object store every other character does."""
    monkeypatch.chdir(tmp_path)
    spellings = ["in", "in/", "./in//", "x/../in", f"{tmp_path}/x/../in", f"file://{tmp_path}/in/", f"{tmp_path}/in"]
    assert {normalize_uri(uri) for uri in spellings} == {f"{tmp_path}/in"}
    assert {normalize_uri(uri) for uri in ("s3://b/in", "s3://b/in/", "S3://b/in//")} == {"s3://b/in"}
    assert len({normalize_uri(uri) for uri in ("s3://b/a/b", "s3://b/a//b", "s3://b/a/./b", "s3://B/a/b")}) == 4


# One run at a time


class Clock:
    """Replaces the module `time`: a sleep only advances the clock and calls the action given for it, `sleep_N`."""

    def __init__(self, **actions: Callable[[], None]) -> None:
        self.now, self.sleeps, self.actions = 100.0, 0, actions

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        self.actions.get(f"sleep_{self.sleeps}", lambda: None)()


def write_lease(store: Store, number: int = 1, **changes: Any) -> None:
    """Write a lease whose holder runs on a different machine."""
    holder = {"holder": "eve@far process 7", "kernel": "far", "pid": os.getpid(), "started": "1", "holder_id": "t"}
    record = {**holder, "beat": "first", "ttl": 20.0, "ended": False, **changes}
    store.write_json(f"_lease/{number:06d}", record)


@pytest.mark.slow
def test_a_second_run_cannot_enter_a_held_store(store: Store) -> None:
    """Its HeldError has status 3 and names the holder, whose lease stays valid."""
    with Lease(store, ttl=3.0) as first:
        with pytest.raises(HeldError) as error, Lease(store, ttl=3.0):
            pass
        assert error.value.status == 3
        assert str(error.value) == f"{store.uri} is held by {first.holder}; wait until it ends, or end it"
        first.check()


def test_a_released_lease_can_be_taken_at_once(store: Store) -> None:
    """The next run does not wait for the ttl of 10 hours, and only the latest lease object stays."""
    for number in range(1, 4):
        with Lease(store, ttl=36_000) as lease:
            lease.check()
            assert store.list() == [f"_lease/{number:06d}"]
    assert store.list() == ["_lease/000003"]


def test_a_run_that_raises_releases_its_lease(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease(store, ttl=36_000):
        raise ZeroDivisionError
    with Lease(store, ttl=36_000):
        pass


DIE_WITH_LEASE = """
import os, sys
from pipelines.storage.lease import Lease
from pipelines.storage.object_store import Store
Lease(Store(sys.argv[1]), ttl=36000).__enter__()
os._exit(9)
"""


@pytest.mark.slow
def test_the_lease_of_a_dead_local_process_is_taken_at_once(store: Store) -> None:
    """A killed run does not release its lease, but its pid is gone, so the ttl of 10 hours is not waited for."""
    assert run_python(DIE_WITH_LEASE, store.uri) == 9
    assert store.read_json("_lease/000001")["ended"] is False
    with Lease(store) as lease:
        lease.check()
        assert store.list() == ["_lease/000002"]


def test_a_reused_pid_does_not_keep_a_lease_alive(folder: Store) -> None:
    """A process with the holder's pid but a different start time is not the holder."""
    write_lease(folder, kernel=lease_module._kernel(), started="0", ttl=36_000)
    with Lease(folder):
        pass


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has /proc")
def test_start_time_equals_field_22_of_proc_stat() -> None:
    """It is in clock ticks since boot, and None for a process that does not exist."""
    fields = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()
    assert lease_module._start_time(os.getpid()) == fields[22 - 3]
    assert lease_module._start_time(2**22 + 1) is None


@pytest.mark.parametrize(
    "holder",
    [{}, {"pid": 2**22 + 1, "started": "0"}, {"kernel": None, "started": "0"}],
    ids=["silent", "in another kernel", "in an unknown kernel"],
)
def test_a_lease_is_taken_after_the_ttl_of_its_holder(
    holder: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shorter ttl of the waiting run does not count; the old lease object is deleted.

    The pid of another kernel means nothing here: the holder may be alive in another container or on another machine.
    Two machines that cannot name their kernel are not taken for the same machine.
    """
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    if "kernel" in holder:
        monkeypatch.setattr(lease_module, "_kernel", lambda: None)
    write_lease(store, 7, **holder)
    with Lease(store, ttl=5.0) as lease:
        lease.check()
        assert clock.now - 100 >= 20
        assert store.list() == ["_lease/000008"]


@pytest.mark.parametrize("sleep", [1, 3, 4])
def test_a_heartbeat_while_waiting_raises_held_error(sleep: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new beat at any time before the ttl has passed shows a living holder, also in the last check."""
    clock = Clock(**{f"sleep_{sleep}": lambda: write_lease(store, ttl=2.0, beat="second")})
    monkeypatch.setattr(lease_module, "time", clock)
    write_lease(store, ttl=2.0)
    with pytest.raises(HeldError, match="held by eve@far process 7"), Lease(store, ttl=5.0):
        pass
    assert clock.sleeps == sleep
    assert store.list() == ["_lease/000001"]


def test_a_lease_released_while_waiting_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release writes a last beat, which must not be taken for a sign of life."""
    clock = Clock(sleep_2=lambda: write_lease(store, beat="last", ended=True))
    monkeypatch.setattr(lease_module, "time", clock)
    write_lease(store)
    with Lease(store):
        assert clock.sleeps == 2


@pytest.mark.slow
def test_one_of_eight_runs_takes_over_a_released_lease(store: Store) -> None:
    """The other seven, which start at the same moment, raise HeldError."""
    write_lease(store, ended=True)
    start, refused = threading.Barrier(8), threading.Semaphore(0)

    def take(_: int) -> str:
        lease = Lease(store, ttl=3.0)
        start.wait()
        try:
            with lease:
                for _ in range(7):
                    assert refused.acquire(timeout=60)
                lease.check()
                return "in"
        except HeldError:
            refused.release()
            return "out"

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(take, range(8))) == ["in"] + ["out"] * 7
    # a run that listed while 1 was deleted and before 2 was made may have made 1 again, which holds nothing
    assert store.list()[-1] == "_lease/000002"


def test_an_overtaken_holder_stays_fenced(store: Store) -> None:
    """Its check raises while the new holder works and afterwards, even if a late heartbeat writes its object again."""
    overtaken = Lease(store, ttl=36_000)
    with overtaken:
        overtaken.check()
        # marked as ended, so that the new holder need not wait until the ttl has passed
        store.write("_lease/000001", overtaken._content(ended=True))
        with Lease(store, ttl=36_000) as new_holder:
            with pytest.raises(HeldError, match="is held by"):
                overtaken.check()
            store.write("_lease/000001", overtaken._content())
            with pytest.raises(HeldError):
                overtaken.check()
            new_holder.check()
        with pytest.raises(HeldError):
            overtaken.check()
    with Lease(store, ttl=36_000) as third:
        third.check()
        assert store.list() == ["_lease/000003"]


def test_a_holder_whose_lease_object_was_deleted_is_fenced(store: Store) -> None:
    """A new run in the emptied store gets the same lease number, but its holder differs."""
    with Lease(store, ttl=36_000) as first:
        store.delete_many(store.list("_lease"))
        with pytest.raises(HeldError, match="held by another run"):
            first.check()
        with Lease(store, ttl=36_000) as second:
            assert store.list() == ["_lease/000001"]
            with pytest.raises(HeldError):
                first.check()
            second.check()


def test_a_slow_run_cannot_create_a_number_below_the_current_lease(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its read and its create, a run ended and a third one took the store: the slow run raises HeldError."""
    with Lease(folder):
        pass
    slow, create = Store(folder.uri), Store.create
    third = Lease(folder)

    def create_late(self: Store, key: str, data: bytes) -> bool:
        if self is slow:
            with Lease(folder):
                pass
            third.__enter__()
            assert not folder.exists(key)
        return create(self, key, data)

    monkeypatch.setattr(Store, "create", create_late)
    with pytest.raises(HeldError), Lease(slow):
        pass
    third.check()
    third.__exit__(None, None, None)


def test_a_lease_is_held_though_the_response_to_its_create_was_lost(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The S3 client then retries and finds the object of its own first attempt, so create returns False."""
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda self, key, data: create(self, key, data) and False)
    with Lease(folder) as lease:
        lease.check()


def test_heartbeats_continue_after_a_failed_write(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beat is a new value; the first write fails, and later ones succeed."""
    write, beats = Store.write, []
    enough, failed = threading.Event(), threading.Event()

    def record_beat(self: Store, key: str, data: bytes) -> None:
        beats.append(json.loads(data)["beat"])
        if not failed.is_set():
            failed.set()
            raise UnavailableError("away")
        write(self, key, data)
        if len(beats) >= 3:
            enough.set()

    monkeypatch.setattr(Store, "write", record_beat)
    with Lease(folder, ttl=0.3) as lease:
        assert enough.wait(30)
        lease.check()
    assert len(set(beats)) == len(beats)
    assert folder.read_json("_lease/000001")["ended"] is True


def test_a_failed_release_does_not_hide_the_error_of_the_run(
    folder: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error of the run is raised and that of the store is logged; the lease is left to expire."""
    caplog.set_level(logging.DEBUG, lease_module.__name__)

    def fail(*_: object) -> NoReturn:
        raise UnavailableError("away")

    def run() -> None:
        with Lease(folder, ttl=36_000):
            monkeypatch.setattr(Store, "write", fail)
            raise UserError("bad settings")

    with pytest.raises(UserError, match="bad settings"):
        run()
    assert folder.read_json("_lease/000001")["ended"] is False
    [record] = caplog.records
    assert "could not be released" in record.message
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "away"


def test_a_uid_without_a_user_name_can_hold_a_lease(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run under a uid that is not in its passwd file."""

    def fail() -> NoReturn:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", fail)
    with Lease(folder) as lease:
        assert lease.holder.startswith(f"user {os.getuid()}@")


class Scheduler:
    """Runs of one store in threads; each pauses before every store operation until `step` lets it continue."""

    def __init__(self, runs: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.inside: set[int] = set()
        self.most_inside = self.entered = 0
        self.resume = [threading.Semaphore(0) for _ in range(runs)]
        self.paused = [threading.Semaphore(0) for _ in range(runs)]
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(runs)]
        for number, thread in enumerate(self.threads):
            thread.start()
            self.paused[number].acquire()

    def run(self, number: int) -> None:
        store = cast(Store, MemoryStore(self, number))
        try:
            with Lease(store, ttl=36_000):
                self.inside.add(number)
                self.entered += 1
                self.most_inside = max(self.most_inside, len(self.inside))
                store.read("work")
                self.inside.remove(number)
        except HeldError:
            pass
        self.paused[number].release()

    def step(self, number: int) -> None:
        """Let one run make one store operation and pause before its next."""
        if self.threads[number].is_alive():
            self.resume[number].release()
            self.paused[number].acquire()


class MemoryStore:
    """The store of one run, in memory: each operation waits for the scheduler."""

    uri = "memory"

    def __init__(self, scheduler: Scheduler, number: int) -> None:
        self.scheduler, self.number = scheduler, number

    def wait_for_objects(self) -> dict[str, bytes]:
        self.scheduler.paused[self.number].release()
        self.scheduler.resume[self.number].acquire()
        return self.scheduler.objects

    def read(self, key: str) -> bytes | None:
        return self.wait_for_objects().get(key)

    def read_json(self, key: str) -> Any:
        data = self.read(key)
        return None if data is None else json.loads(data)

    def create(self, key: str, data: bytes) -> bool:
        return self.wait_for_objects().setdefault(key, data) is data

    def write(self, key: str, data: bytes) -> None:
        self.wait_for_objects()[key] = data

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.wait_for_objects() if key.startswith(prefix))

    def delete_many(self, keys: list[str]) -> None:
        objects = self.wait_for_objects()
        for key in keys:
            objects.pop(key, None)


class NoWaiting:
    """Replaces the module `time`: a run that would have to wait for a holder raises HeldError."""

    monotonic = staticmethod(lambda: 0.0)

    @staticmethod
    def sleep(_: float) -> NoReturn:
        raise HeldError("alive")


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=16))
@example([(0, 20), (1, 20), (2, 20)])
@example([(0, 2), (1, 1), (0, 6), (2, 1), (1, 1), (2, 3), (1, 3)])  # run 1 saw the lease of run 0, which then ended
def test_two_runs_never_hold_a_store_at_once_in_any_interleaving(
    monkeypatch: pytest.MonkeyPatch, order: list[tuple[int, int]]
) -> None:
    """Three runs interleave their store operations: at most one is inside at any time, at least one enters, all end."""
    monkeypatch.setattr(lease_module, "time", NoWaiting)
    scheduler = Scheduler(3)
    for number, steps in [*order, (0, 30), (1, 30), (2, 30)]:
        for _ in range(steps):
            scheduler.step(number)
    assert not any(thread.is_alive() for thread in scheduler.threads)
    assert scheduler.most_inside == 1
    assert scheduler.entered >= 1
