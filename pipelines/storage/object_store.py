"""A store: a folder or a prefix of an object store in which every write is atomic."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.filesystem import DEADLINE, open_filesystem, store_errors
from pipelines.storage.local_files import create_file, sync_folder, write_file


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
