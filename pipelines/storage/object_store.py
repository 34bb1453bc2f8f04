"""A store: a folder on a disk, or a prefix in an object store, in which every write is atomic."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from pipelines.storage.filesystem import (
    DEADLINE,
    PARALLEL_REQUESTS,
    delete_paths,
    find_files,
    open_filesystem,
    store_errors,
    undeleted_error,
)
from pipelines.storage.local_files import create_file, is_temporary, write_file
from pipelines.storage.records import to_bytes
from spin.settings import RaySettings, Settings

_RETRY_SECONDS = RaySettings().retry_seconds
"""for which commands try again that read no settings"""
_DELETED_AT_ONCE = 1000
"""keys that one request to an object store deletes, at most"""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    """key in the store"""
    size: int
    """bytes"""
    modified: float
    """time of its last change, in seconds since 1970 by the clock of the store"""


class Store:
    """Objects under a folder or a prefix of an object store, by relative keys with `/`.

    Every write is atomic: one PUT, or on a disk a temporary file, fsync and rename. Every method raises UserError if
    credentials are refused, and UnavailableError if the store does not answer or is full. Those who repeat what a store
    did not answer, by `retry_unavailable` or `retry_commits`, do so for its `retry_seconds`.
    """

    def __init__(self, uri: str, retry_seconds: float = _RETRY_SECONDS, *, private_below: Path | None = None) -> None:
        self.fs, self.root = open_filesystem(uri)
        self.local = isinstance(self.fs, LocalFileSystem)
        self.uri = self.root if self.local else uri.rstrip("/")  # absolute: workers run in other folders
        self.retry_seconds = retry_seconds
        self.private_below = private_below
        """folder on a disk; this user alone can read what is written below it. None: the umask decides"""

    @classmethod
    def of(cls, settings: Settings) -> Store:
        """The store of the settings, which is private: it holds texts, and features, which reveal them."""
        store = cls(settings.store.uri, settings.ray.retry_seconds)
        store.private_below = Path(store.root).parent
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Store, private_below=self.private_below), (self.uri, self.retry_seconds)

    def __truediv__(self, prefix: str) -> Store:
        return Store(f"{self.uri}/{prefix}", self.retry_seconds, private_below=self.private_below)

    def as_private(self) -> Store:
        """The same store, in which what is written on a disk is for this user alone, but not its own folder."""
        if self.private_below is not None or not self.local:
            return self
        return Store(self.uri, self.retry_seconds, private_below=Path(self.root))

    @property
    def deleted_at_once(self) -> int:
        """Keys that one request deletes; files on a disk are deleted one by one."""
        return 1 if self.local else _DELETED_AT_ONCE

    def path(self, key: str) -> str:
        """The path of a key on the file system."""
        return f"{self.root}/{key}"

    def _call(self, operation: str, *args: Any, seconds: float | None = None, **options: Any) -> Any:
        """Call a method of the file system, if it goes over a network with a deadline, by default `DEADLINE`."""
        return getattr(self.fs, operation)(*args, **options, **self._deadline(seconds))

    def _deadline(self, seconds: float | None = None) -> dict[str, Any]:
        """The option that limits an operation over a network to some seconds, by default `DEADLINE`."""
        # guarded by test_a_write_to_a_server_that_stops_reading_times_out; broken by:
        #   return {}
        return {} if self.local else {"timeout": DEADLINE if seconds is None else seconds}

    def read(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The bytes of an object, or a range of them; None if there is no object."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                return bytes(self._call("cat_file", self.path(key), start=start, end=stop))
            except FileNotFoundError:
                return None

    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing the one under its key."""
        with store_errors(f"{self.uri}/{key}"):
            if self.local:
                write_file(Path(self.path(key)), data, private_below=self.private_below)
            else:
                self._call("pipe_file", self.path(key), data)

    def upload(self, key: str, path: Path) -> None:
        """Write a file of any size to a key, replacing the object there."""
        with store_errors(f"{self.uri}/{key}"):
            if self.local:
                write_file(Path(self.path(key)), path.read_bytes(), private_below=self.private_below)
            else:
                self._call("put_file", str(path), self.path(key), seconds=_transfer_deadline(path.stat().st_size))

    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a local path; after an error the file may be incomplete.

        Raises UserError if there is no object.
        """
        with store_errors(f"{self.uri}/{key}"):
            size = self._call("info", self.path(key))["size"]
            self._call("get_file", self.path(key), str(path), seconds=_transfer_deadline(size))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none under its key; return whether it was written."""
        with store_errors(f"{self.uri}/{key}"):
            try:
                if self.local:
                    return create_file(Path(self.path(key)), data, private_below=self.private_below)
                self._call("pipe_file", self.path(key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # s3fs reports Ceph's answer to a failed If-None-Match as EINVAL, not as FileExistsError
                if error.errno == errno.EINVAL and self.exists(key):
                    return False
                raise
            return True

    def exists(self, key: str) -> bool:
        with store_errors(f"{self.uri}/{key}"):
            return bool(self._call("exists", self.path(key)))

    def list(self, prefix: str = "") -> list[str]:
        """The keys below a prefix, sorted, without temporary files."""
        return [item.key for item in self.list_objects(prefix)]

    def list_objects(self, prefix: str = "") -> Sequence[StoredObject]:
        """The objects below a prefix, sorted by key, without temporary files; no request per object."""
        return [item for item in self._find(prefix) if not _name(item).startswith(".")]

    def list_all(self, prefix: str = "") -> Sequence[StoredObject]:
        """The same, with the temporary files: of writes in progress, and of those that were killed."""
        found = self._find(prefix)
        return [i for i in found if not _name(i).startswith(".") or (self.local and is_temporary(_name(i)))]

    def list_temporary(self) -> Sequence[StoredObject]:
        """All temporary files, sorted by key: of writes in progress, and of those that were killed."""
        return [item for item in self._find("") if is_temporary(_name(item))] if self.local else []

    def _find(self, prefix: str) -> Sequence[StoredObject]:
        with store_errors(f"{self.uri}/{prefix}"):
            try:
                # guarded by test_a_folder_that_cannot_be_listed_is_not_empty; broken by:
                #   infos = self.fs.find(self.path(prefix).rstrip("/"), detail=True)
                infos = find_files(self.fs, self.path(prefix).rstrip("/"), **self._deadline())
            except FileNotFoundError:
                return []
            return [
                StoredObject(path[len(self.root) :].lstrip("/"), int(info["size"]), _modified(info))
                for path, info in sorted(infos.items())
                if info["type"] != "directory"  # what s3fs finds while the last object of a prefix is deleted
            ]

    def list_names(self, prefix: str = "") -> Sequence[str]:
        """The names directly below a prefix, sorted: those of objects and those of further prefixes."""
        with store_errors(f"{self.uri}/{prefix}"):
            base = self.path(prefix).rstrip("/")
            try:
                paths = self._call("ls", base, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = {path[len(base) :].strip("/") for path in paths}
            return sorted(name for name in names if name and not name.startswith("."))

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The bytes of several small objects by key, read in parallel; keys without an object are left out."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
            contents = zip(keys, threads.map(self.read, keys), strict=True)
            return {key: data for key, data in contents if data is not None}

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects, a thousand per request; none of them needs to exist. Folders that become empty go too.

        Raises UserError if the store refuses to delete one of them, UnavailableError if it does not for now.
        """
        with store_errors(self.uri):
            if self.local:
                for key in keys:
                    _unlink(Path(self.path(key)), Path(self.root))
                return
            failed: dict[str, str] = {}
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                paths = [self.path(key) for key in keys[start : start + _DELETED_AT_ONCE]]
                failed |= delete_paths(self.fs, paths, **self._deadline())
            # guarded by test_objects_that_were_not_deleted_are_named
            if failed:
                raise undeleted_error(self.uri, failed)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading ranges of it."""
        with store_errors(f"{self.uri}/{key}"):
            return self.fs.open(self.path(key), "rb")

    def read_json(self, key: str) -> Any:
        """The object parsed as JSON, None if there is no object."""
        data = self.read(key)
        return None if data is None else json.loads(data)

    def write_json(self, key: str, value: Any) -> None:
        """Write a record or JSON values as JSON."""
        self.write(key, to_bytes(value))


def _transfer_deadline(size: int) -> float:
    """Seconds that a transfer of `size` bytes may take: at least 1 MB per second is expected."""
    return DEADLINE + size / 1e6


def _name(item: StoredObject) -> str:
    """The last part of the key of an object."""
    return item.key.rpartition("/")[2]


def _modified(info: dict[str, Any]) -> float:
    """The time of the last change of an object, in seconds since 1970."""
    return float(info["mtime"] if "mtime" in info else info["LastModified"].timestamp())


def _unlink(path: Path, root: Path) -> None:
    """Delete a file, and the folders between it and the root that are empty then."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == root:
            return
        try:
            folder.rmdir()
        except OSError:  # another file is in it
            return
