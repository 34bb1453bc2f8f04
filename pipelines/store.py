"""Where everything is kept: a folder or an object store, written whole or not at all, held by one run at a time."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from aiobotocore.session import AioSession
from aiohttp import ClientConnectionError
from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as ConnectionFailure
from botocore.handlers import add_expect_header
from botocore.loaders import create_loader
from fsspec.implementations.local import LocalFileSystem
from s3fs.core import set_custom_error_handler

from pipelines.traffic import seen
from spin.errors import SpinError, UnavailableError, UserError
from spin.settings import holds_password

_REFUSED = ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, PermissionError)
_FULL = ("QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "InsufficientStorage", "507")
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_S3 = {
    "use_listings_cache": False,
    "skip_instance_cache": True,
    "default_cache_type": "none",  # Parquet readers ask for just the ranges they want
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1},  # s3fs does it all again by itself
    },
}
_ATTEMPTS = 10
"""of a request that is throttled, answered by a 5xx, cut or not answered; s3fs waits 29 s in all between them"""
DEADLINE = 150
"""seconds for an operation with all its attempts: no timeout of a socket bounds a server that stops reading"""
_MODELS = create_loader()
"""botocore's descriptions of services, parsed once a process: they take longer than the requests of a client"""


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path on it. Credentials come from the environment, never from the URI."""
    if "@" in uri.partition("://")[2].partition("/")[0] or holds_password(uri):
        raise UserError("a URI holds credentials (the part before @); put them in the environment")
    options = {**_S3, "session": _session()} if uri.startswith("s3://") else {}
    try:
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"'{uri}' is not a folder or an s3:// URI: {error}") from None
    if not path:
        raise UserError(f"'{uri}' names no bucket; expected s3://BUCKET/PREFIX")
    if options:
        fs.retries = _ATTEMPTS
        set_custom_error_handler(_is_passing)
    return seen(fs), path


def _is_passing(error: BaseException) -> bool:
    """Whether a request that failed so may succeed when it is sent again; timeouts s3fs knows by itself."""
    if isinstance(error, (ConnectionFailure, ClientConnectionError, ConnectionError)):
        return True
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0) if isinstance(error, ClientError) else 0
    return status >= 500 or status == 429


def _session() -> AioSession:
    """A session that sends a body without asking for "100 Continue" first: no timeout bounds the wait for that."""
    session = AioSession()
    session.register_component("data_loader", _MODELS)
    session.unregister("before-call.s3", add_expect_header)
    return session


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
    except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
        if _code(error) in _FULL or getattr(error, "errno", None) in _FULL_DISK:
            full = f"{what}: the store is full ({_reason(error)}); free space, then run it again to resume"
            raise UnavailableError(full) from None
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

    def _do(self, operation: str, *args: Any, seconds: float = DEADLINE, **options: Any) -> Any:
        """An operation of the file system, within a deadline where it goes over a network."""
        if not self.local:
            options["timeout"] = seconds
        return getattr(self.fs, operation)(*args, **options)

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The object, or some of its bytes; None where there is none."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                return bytes(self._do("cat_file", self.path(key), start=start, end=stop))
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """Put an object under its final key, in place of what is there."""
        with store_errors(f"{self.uri}/{key}"):
            if self.local:
                write_file(Path(self.path(key)), data)
            else:
                self._do("pipe_file", self.path(key), data)

    def upload(self, key: str, path: Path) -> None:
        """Put a file of any size under a key, in place of what is there."""
        with store_errors(f"{self.uri}/{key}"):
            if self.local:
                write_file(Path(self.path(key)), path.read_bytes())
            else:
                self._do("put_file", str(path), self.path(key), seconds=_patience(path.stat().st_size))

    def download(self, key: str, path: Path) -> None:
        """Fetch an object of any size to a path, where half of it lies after an error. Raises UserError for none."""
        with store_errors(f"{self.uri}/{key}"):
            size = self._do("info", self.path(key))["size"]
            self._do("get_file", self.path(key), str(path), seconds=_patience(size))

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only if there is none under its key; False where another was first."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                if self.local:
                    return create_file(Path(self.path(key)), data)
                self._do("pipe_file", self.path(key), data, mode="create")
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
            return bool(self._do("exists", self.path(key)))

    def list(self, prefix: str = "") -> list[str]:
        """Keys below a prefix, sorted; temporary files are not among them."""
        with store_errors(f"{self.uri}/{prefix}"):
            base = self.path(prefix).rstrip("/")
            try:
                found = self._do("find", base)
            except FileNotFoundError:
                return []
            keys = [path[len(self.root) :].lstrip("/") for path in found]
            return sorted(key for key in keys if not key.rpartition("/")[2].startswith("."))

    def copy(self, key: str, to: str) -> None:
        """Copy an object, whole or not at all: within the object store, without its bytes passing here."""
        with store_errors(f"{self.uri}/{to}"):
            if self.local:
                write_file(Path(self.path(to)), Path(self.path(key)).read_bytes())
            else:
                self._do("copy", self.path(key), self.path(to))

    def move(self, key: str, to: str) -> None:
        """Give an object another key: a rename on a disk; a copy in an object store, where the old one stays."""
        if not self.local:
            self.copy(key, to)
            return
        with store_errors(f"{self.uri}/{to}"):
            path = Path(self.path(to))
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(self.path(key)).replace(path)
            sync_folder(path.parent)

    def size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                return int(self._do("info", self.path(key))["size"])
            except FileNotFoundError:
                return None

    def open(self, key: str) -> BinaryIO:
        """An object to read ranges of."""
        with store_errors(f"{self.uri}/{key}"):
            return self.fs.open(self.path(key), "rb")

    def delete(self, prefix: str) -> None:
        """Remove an object and everything below it as a prefix; there may be nothing."""
        with store_errors(f"{self.uri}/{prefix}"):
            with suppress(FileNotFoundError):
                self._do("rm", self.path(prefix), recursive=True)
            if self._do("exists", self.path(prefix)):  # s3fs keeps silent about what the server did not delete
                raise OSError("not everything could be deleted")

    def read_json(self, key: str) -> Any:
        """The object parsed, or None where there is none."""
        data = self.read(key)
        return None if data is None else json.loads(data)

    def write_json(self, key: str, value: Any) -> None:
        self.write(key, json.dumps(value, indent=2).encode() + b"\n")


def _patience(size: int) -> float:
    """Seconds for a transfer of some bytes, from 1 MB/s on."""
    return DEADLINE + size / 1e6


def write_file(path: Path, data: bytes) -> None:
    temporary = _temporary(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_folder(path.parent)
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


def sync_folder(folder: Path) -> None:
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
