"""Open input files of a known size and version: without a request, and without reading another version."""

from __future__ import annotations

import errno
import io
import os
import threading
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem
from s3fs import S3File, S3FileSystem

from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import locate, open_filesystem
from pipelines.storage.store_requests import PROCESS_REQUESTS, RequestCounter


class InputOpener:
    """Opens input files under exactly the names of the listing, over one file system per kind of store.

    An opener may be used by several threads. What is read counts in `PROCESS_REQUESTS`.
    """

    def __init__(self) -> None:
        self._filesystems: dict[str, Any] = {}
        self._lock = threading.Lock()

    def open(self, uri: str, *, size: int = 0, version: str = "") -> BinaryIO:
        """Open a file for reading ranges of it; every read is one request.

        With a size, opening sends no request to an object store; without one, it asks for the size. With a version,
        no other version of the file is read. Raises BadFileError if the file has changed, and FileNotFoundError if
        there is none; in an object store the first read may raise them.
        """
        fs, path = self._filesystem(uri)
        source: Any
        if isinstance(fs, S3FileSystem) and size:
            source = _KnownObject(fs, path, uri, size, version)
        elif isinstance(fs, LocalFileSystem) and version:
            source = io.BufferedReader(_KnownFile(path, uri, size, version))
        else:
            source = fs.open(path, "rb")
        return cast(BinaryIO, CountingFile(source, PROCESS_REQUESTS))

    def _filesystem(self, uri: str) -> tuple[Any, str]:
        protocol, path = locate(uri)
        if protocol not in ("file", "s3"):
            return open_filesystem(uri)  # its host may be in the URI
        with self._lock:
            if protocol not in self._filesystems:
                fs, _ = open_filesystem(uri)
                if isinstance(fs, S3FileSystem):
                    fs.connect()  # here, since several threads would each make a client
                self._filesystems[protocol] = fs
            return self._filesystems[protocol], path

    def read(self, uri: str, *, size: int, version: str = "") -> bytes:
        """Return the content of a file of known size, in one request."""
        with self.open(uri, size=size, version=version) as file:
            return file.read(size)


class CountingFile(io.RawIOBase):
    """A file whose reads are counted. Each read that returns bytes is one request: files are opened without a cache."""

    def __init__(self, source: Any, counter: RequestCounter) -> None:
        self.source, self.counter = source, counter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.source.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.source.seek(offset, whence))

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.source.read(size)
        if data:
            self.counter.count_read(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.source.close()
        super().close()


class _KnownFile(io.FileIO):
    """A file of a disk of which no other version is read: it is looked at after each read, since it may be cut then."""

    def __init__(self, path: str, uri: str, size: int, version: str) -> None:
        super().__init__(path)
        self.uri, self.size, self.version = uri, size, version
        self._require_version()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._require_version()
        return count

    def readall(self) -> bytes:
        content = super().readall()
        self._require_version()
        return content

    def _require_version(self) -> None:
        """Raise BadFileError if the file was written since it was listed; without a size, one of any size will do."""
        found = os.fstat(self.fileno())
        if (found.st_size, str(found.st_mtime)) != (self.size or found.st_size, self.version):
            # guarded by test_a_file_that_changes_during_a_night_is_quarantined_alone
            raise _changed(self.uri)


class _KnownObject(S3File):
    """An object whose size is known, so that no request asks for it, and one version of it if there is one."""

    def __init__(self, fs: S3FileSystem, path: str, uri: str, size: int, version: str) -> None:
        super().__init__(fs, path, "rb", cache_type="none", size=size)
        self.details = {"name": path, "size": size, "ETag": f'"{version}"'}
        self.read_kw: dict[str, Any] = {"IfMatch": f'"{version}"'} if version else {}
        self.uri = uri

    def _fetch_range(self, start: int, end: int) -> bytes:
        # private: s3fs has no other place where the error of one range can be told from those of others
        try:
            return cast(bytes, super()._fetch_range(start, end))
        except (OSError, TypeError) as error:
            # EBUSY is s3fs's FileExpired; some servers refuse IfMatch with EINVAL, and without a message, in which s3fs
            # then looks for a word
            refusal = error if isinstance(error, OSError) else error.__context__
            if isinstance(refusal, OSError) and refusal.errno in (errno.EBUSY, errno.EINVAL):
                raise _changed(self.uri) from None
            raise


def _changed(uri: str) -> BadFileError:
    return BadFileError(f"{uri} has changed since it was listed; it is read when it is listed anew")
