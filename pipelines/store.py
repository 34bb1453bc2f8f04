"""Where everything is kept: a folder or an object store, written whole or not at all, held by one run at a time."""

from __future__ import annotations

import errno
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from fsspec.implementations.local import LocalFileSystem

from spin.errors import HeldError, SpinError, UnavailableError, UserError

_REFUSED = ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, PermissionError)
_S3 = {
    "use_listings_cache": False,
    "skip_instance_cache": True,
    "default_cache_type": "none",  # Parquet readers ask for just the ranges they want
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 2, "mode": "standard"},  # s3fs does each five times
    },
}


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path on it. Credentials come from the environment, never from the URI."""
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise UserError("a URI holds credentials (the part before @); put them in the environment")
    try:
        fs, path = fsspec.core.url_to_fs(uri, **(_S3 if uri.startswith("s3://") else {}))
    except (ValueError, ImportError) as error:
        raise UserError(f"'{uri}' is not a folder or an s3:// URI: {error}") from None
    if not path:
        raise UserError(f"'{uri}' names no bucket; expected s3://BUCKET/PREFIX")
    return fs, path


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn a storage library's errors into one line that says whose fault it is.

    Raises UserError where credentials are refused or a thing does not exist, UnavailableError where trying again
    may help.
    """
    try:
        yield
    except SpinError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{what}: not found ({_reason(error)})") from None
    except ParamValidationError as error:
        raise UserError(f"{what}: {_reason(error)}") from None
    except (BotoCoreError, ClientError, OSError) as error:
        if isinstance(error, _NO_CREDENTIALS) or _code(error) in _REFUSED:
            refused = f"{what}: the store refuses the credentials ({_reason(error)}); check the environment"
            raise UserError(refused) from None
        raise UnavailableError(f"{what}: the store does not answer ({_reason(error)}); try again") from None


class Store:
    """A prefix of a folder or an object store. Keys are relative, with `/`; every write is atomic.

    An object appears whole: one PUT, or on a disk a temporary file, fsync and rename.
    """

    def __init__(self, uri: str) -> None:
        self.fs, self.root = open_filesystem(uri)
        self.local = isinstance(self.fs, LocalFileSystem)
        self.uri = self.root if self.local else uri.rstrip("/")  # absolute: a worker runs in a folder of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri,)

    def __truediv__(self, prefix: str) -> Store:
        return Store(f"{self.uri}/{prefix}")

    def path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes | None:
        """The object, or None where there is none."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                return bytes(self.fs.cat_file(self.path(key)))
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """Put an object under its final key, in place of what is there."""
        with store_errors(f"{self.uri}/{key}"):
            if self.local:
                _write_file(Path(self.path(key)), data)
            else:
                self.fs.pipe_file(self.path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none under its key; False where another was first."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                if self.local:
                    return _create_file(Path(self.path(key)), data)
                self.fs.pipe_file(self.path(key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # Ceph's answer to a failed If-None-Match reaches us as EINVAL, not as FileExistsError
                if error.errno == errno.EINVAL and self.exists(key):
                    return False
                raise
            return True

    def exists(self, key: str) -> bool:
        with store_errors(f"{self.uri}/{key}"):
            return bool(self.fs.exists(self.path(key)))

    def list(self, prefix: str = "") -> list[str]:
        """Keys below a prefix, sorted; temporary files are not among them."""
        with store_errors(f"{self.uri}/{prefix}"):
            base = self.path(prefix).rstrip("/")
            try:
                found = self.fs.find(base)
            except FileNotFoundError:
                return []
            keys = [path[len(self.root) :].lstrip("/") for path in found]
            return sorted(key for key in keys if not key.rpartition("/")[2].startswith("."))

    def copy(self, key: str, to: str) -> None:
        """Copy an object, whole or not at all: within the object store, without its bytes passing here."""
        with store_errors(f"{self.uri}/{to}"):
            if self.local:
                _write_file(Path(self.path(to)), Path(self.path(key)).read_bytes())
            else:
                self.fs.copy(self.path(key), self.path(to))

    def open(self, key: str) -> BinaryIO:
        """An object to read ranges of."""
        with store_errors(f"{self.uri}/{key}"):
            return self.fs.open(self.path(key), "rb")

    def delete(self, prefix: str) -> None:
        """Remove an object and everything below it as a prefix; there may be nothing."""
        with store_errors(f"{self.uri}/{prefix}"):
            with suppress(FileNotFoundError):
                self.fs.rm(self.path(prefix), recursive=True)
            if self.fs.exists(self.path(prefix)):  # s3fs keeps silent about what the server did not delete
                raise OSError("not everything could be deleted")

    def read_json(self, key: str) -> Any:
        """The object parsed, or None where there is none."""
        data = self.read(key)
        return None if data is None else json.loads(data)

    def write_json(self, key: str, value: Any) -> None:
        self.write(key, json.dumps(value, indent=2).encode() + b"\n")


class Lease:
    """Holds a store for one run: a context that another run cannot enter while this one is alive.

    A lease is an object `_lease/NNNNNN`, made only if there is none, so a race has one winner, and the highest
    number holds the store. The holder writes its object anew while it works and marks it when it ends; one that
    stays as it is for `ttl` seconds is a dead run's. Either way the next number may be taken. The highest is never
    deleted, so numbers only grow and a holder that was overtaken stays so. Clocks are not compared between machines:
    a waiting run watches whether the object changes.
    """

    def __init__(self, store: Store, *, ttl: float = 30.0) -> None:
        self.store, self.ttl = store, ttl
        self.holder = f"{_user()}@{socket.gethostname()} process {os.getpid()}"
        self.token = uuid.uuid4().hex
        self._number = 0
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        numbers = self._numbers()
        if numbers:
            self._outlive(numbers[-1])
        self._number = max(numbers, default=0) + 1
        self.store.create(_lease_key(self._number), self._content())
        self.check()  # another run may have been first, or gone past this number while we watched
        for number in numbers:
            self.store.delete(_lease_key(number))
        self._keeper = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._keeper.join()
        with suppress(SpinError):  # the store is away: the lease runs out, and the run's own outcome counts
            if self._mine():
                self.store.write(_lease_key(self._number), self._content(ended=True))

    def check(self) -> None:
        """Raise HeldError if another run has taken the lease: whatever is published from here on is not ours to."""
        if not self._mine():
            self._refuse(max(self._numbers(), default=self._number))

    def _mine(self) -> bool:
        found = self.store.read_json(_lease_key(self._number))
        return found is not None and found["token"] == self.token and self._numbers()[-1:] == [self._number]

    def _outlive(self, number: int) -> None:
        """Return once the holder has ended or is known to be dead; raise HeldError when it gives a sign of life."""
        seen = now = self.store.read_json(_lease_key(number))
        deadline = time.monotonic() + (seen["ttl"] if seen else 0)
        while now is not None and not now["ended"] and not _dead(now):
            if now["beat"] != seen["beat"]:
                self._refuse(number)
            if time.monotonic() >= deadline:
                return
            time.sleep(min(1.0, self.ttl / 10))
            now = self.store.read_json(_lease_key(number))

    def _refuse(self, number: int) -> None:
        found = self.store.read_json(_lease_key(number)) or {"holder": "another run"}
        raise HeldError(f"{self.store.uri} is held by {found['holder']}; wait until it ends, or end it")

    def _renew(self) -> None:
        while not self._ended.wait(self.ttl / 6):
            with suppress(SpinError):  # the store is away; the lease lasts until ttl
                if not self._mine():
                    return
                self.store.write(_lease_key(self._number), self._content())

    def _content(self, *, ended: bool = False) -> bytes:
        facts = {
            "holder": self.holder,
            "kernel": _kernel(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "token": self.token,
            "beat": uuid.uuid4().hex,
            "ttl": self.ttl,
            "ended": ended,
        }
        return json.dumps(facts).encode()

    def _numbers(self) -> list[int]:
        return sorted(int(key.rpartition("/")[2]) for key in self.store.list("_lease"))


def _lease_key(number: int) -> str:
    return f"_lease/{number:06d}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _dead(lease: dict[str, Any]) -> bool:
    """Whether the process that wrote a lease is seen from here to be gone."""
    return lease["kernel"] is not None and lease["kernel"] == _kernel() and _started(lease["pid"]) != lease["started"]


def _kernel() -> str | None:
    """Names the boot and the process namespace that pids belong to; a host name may be another container's too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, None if there is none: a pid may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _write_file(path: Path, data: bytes) -> None:
    temporary = _temporary(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _create_file(path: Path, data: bytes) -> bool:
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(path.parent)
    return True


def _temporary(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _code(error: BaseException) -> str:
    """The S3 error code, also of an error that s3fs has translated; empty where there is none."""
    for found in (error, error.__cause__):
        if isinstance(found, ClientError):
            return str(found.response["Error"].get("Code", ""))
    return ""


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())[:200]
    return (said if said != "None" else "") or _code(error) or type(error).__name__
