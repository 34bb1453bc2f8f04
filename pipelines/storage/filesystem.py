"""Open local and S3 file systems, and turn their errors into SpinErrors of one line."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import fsspec
from aiobotocore.session import AioSession
from aiohttp import ClientConnectionError
from aiohttp import ClientError as AiohttpError
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
from fsspec.utils import glob_translate
from s3fs import S3FileSystem
from s3fs.core import set_custom_error_handler
from urllib3.exceptions import HTTPError

from pipelines.service_errors import UnavailableError
from pipelines.storage.store_requests import PROCESS_REQUESTS
from spin.errors import SpinError, UserError, shorten_message
from spin.settings import holds_user_part, mask_credentials

_log = logging.getLogger(__name__)
REFUSED = ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch")
"""codes with which a store refuses credentials"""
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound, PermissionError)

FULL = ("QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "InsufficientStorage")
"""codes of a store that is full"""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE_PATH = (errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""errors of a disk that do not pass by themselves"""

_PERMANENT = ("InvalidRequest", "MethodNotAllowed", "NoSuchBucket")
"""further codes with which a store refuses to delete an object, now and later"""
_NAMED = 10
"""objects that an error names"""

PARALLEL_REQUESTS = 32
"""requests for objects that a process sends at a time; more are no faster"""

_S3 = {
    "use_listings_cache": False,
    "skip_instance_cache": True,
    "default_cache_type": "none",  # Parquet readers request exactly the ranges that they need
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        "max_pool_connections": PARALLEL_REQUESTS,
        "retries": {"total_max_attempts": 1},  # s3fs retries by itself
    },
}

_ATTEMPTS = 10
"""attempts at a request that is throttled, answered with 5xx, cut or not answered; s3fs pauses 29 s in all"""

DEADLINE = 150
"""seconds for an operation with all its attempts: no socket timeout covers a server that stops reading"""

SERVICE_MODELS = create_loader()
"""botocore's descriptions of services, parsed once per process: parsing takes longer than a client's requests"""


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path on it. Names are taken literally, see `locate`.

    Raises UserError for a URI that is not a path or s3://BUCKET/PREFIX, or that holds credentials: these come from the
    environment.
    """
    protocol, path = locate(uri)
    if protocol == "file":
        return fsspec.filesystem("file"), path
    if protocol == "s3":
        return _open_s3(), path
    try:
        kind = fsspec.get_filesystem_class(protocol)
        # private: `url_to_fs` is public, and takes `::` in the name of a file for a chain of file systems
        return kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
    except (ValueError, ImportError) as error:
        raise UserError(f"'{mask_credentials(uri)}' is not a folder or an s3:// URI: {error}") from None


def find_files(
    fs: Any, path: str, *, enter: Callable[[str], bool] = lambda folder: True, **options: Any
) -> dict[str, Any]:
    """The details of all files below a path of a file system, by path; `options` are those of `fs.find`.

    On a disk, folders for which `enter` is false are left out, and OSError is raised for one that cannot be listed,
    which `fs.find` leaves out in silence. A folder that is deleted meanwhile is left out.
    """
    if not isinstance(fs, LocalFileSystem):
        return dict(fs.find(path, detail=True, **options))
    found: dict[str, Any] = {}
    waiting = [path]
    while waiting:
        try:
            infos = fs.ls(waiting.pop(), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found |= {info["name"]: info for info in infos if info["type"] != "directory"}
        waiting += [info["name"] for info in infos if info["type"] == "directory" and enter(info["name"])]
    return found


def glob_files(fs: Any, pattern: str, base: str) -> dict[str, Any]:
    """The details of the files whose paths match a glob, by path; `base` is its part before the first wildcard.

    On a disk also links to folders below which the glob may match. Raises ValueError if the pattern is none, and
    OSError as `find_files` does.
    """
    matching, parts = re.compile(glob_translate(pattern)), pattern.split("/")

    def enter(folder: str) -> bool:
        return may_match_below(parts, folder.split("/"))

    # without a depth: s3fs would list folder by folder, and leave out those that it cannot list
    found = find_files(fs, base, enter=enter)
    return {
        path: info
        for path, info in found.items()
        if matching.match(path) or (info.get("islink") and enter(path) and os.path.isdir(path))
    }


def may_match_below(pattern: Sequence[str], folder: Sequence[str]) -> bool:
    """Whether a glob may match a path below a folder, both given by their parts."""
    for at, part in enumerate(pattern):
        if part == "**" or at == len(folder):
            return True
        if not fnmatchcase(folder[at], part):
            return False
    return False


def delete_paths(fs: Any, paths: Sequence[str], **options: Any) -> dict[str, str]:
    """Delete at most a thousand objects of one bucket; none of them needs to exist. `options` may hold a `timeout`.

    Returns the codes by path of those that S3 has not deleted, which `fs.rm` does not look at.
    """
    if not isinstance(fs, S3FileSystem):
        fs.rm(list(paths), **options)
        return {}
    failed = _delete_from_bucket(fs, paths, options)
    # Ceph answers with UnknownError for an object that another client deletes at the same time
    return _delete_from_bucket(fs, list(failed), options) if failed else {}


def _delete_from_bucket(fs: S3FileSystem, paths: Sequence[str], options: Mapping[str, Any]) -> dict[str, str]:
    bucket = fs.split_path(paths[0])[0]
    objects = [{"Key": fs.split_path(path)[1]} for path in paths]
    answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}, **options)
    failed = {f"{bucket}/{each['Key']}": each["Code"] for each in answer.get("Errors", [])}
    return {path: code for path, code in failed.items() if code != "NoSuchKey"}


def undeleted_error(uri: str, failed: Mapping[str, str]) -> SpinError:
    """The error for objects of a store that were not deleted, given by path with the codes of its answers.

    UserError if the store refuses to delete one of them, else UnavailableError: it may delete them later.
    """
    refused = {path: code for path, code in failed.items() if code in (*REFUSED, *_PERMANENT)}
    [code, *_] = (refused or failed).values()
    named = ", ".join(list(refused or failed)[:_NAMED])
    reason = f"{len(failed):,} objects were not deleted, {code}: {named}"
    if not refused:
        return store_error(uri, reason, full=False, refused=False)
    return UserError(f"{uri}: the store refuses to delete ({reason}); check the permissions, then run it again")


def locate(uri: str) -> tuple[str, str]:
    """The protocol of a URI, and the path on its file system: absolute on a disk, without slashes at its end.

    Names come from outside, so they are taken literally: `::`, `?`, `&` and `%` are characters of a name. Raises
    UserError for an empty one, and for one of an object store without a bucket or with credentials. `s3a://`, as Spark
    writes it, is `s3://`.
    """
    protocol, separator, path = uri.partition("://")
    if not uri or (protocol == "file" and separator and not path):
        raise UserError("found an empty path; expected a folder, a file or an s3:// URI ('.' is the current folder)")
    if uri.startswith("/") or not separator:
        return "file", os.path.abspath(os.path.expanduser(uri))
    if protocol == "file":
        return "file", os.path.abspath(path)
    if holds_user_part(uri):
        raise UserError("a URI holds credentials (the part before @); put them in the environment")
    path = path.rstrip("/")
    if not path:
        raise UserError(f"'{uri}' names no bucket; expected s3://BUCKET/PREFIX")
    protocol = protocol.lower()
    return "s3" if protocol == "s3a" else protocol, path


def normalize_uri(uri: str) -> str:
    """The same location in one spelling, to compare two of them or to name something after one."""
    protocol, path = locate(uri)
    return path if protocol == "file" else f"{protocol}://{path}"


def _open_s3() -> Any:
    fs = fsspec.filesystem("s3", **_S3, session=_session())
    fs.retries = _ATTEMPTS
    # guarded by test_every_operation_succeeds_after_temporary_faults
    set_custom_error_handler(_is_temporary)
    return fs


def _is_temporary(error: BaseException) -> bool:
    """Whether a request may succeed when it is sent again after this error; s3fs recognizes timeouts by itself."""
    if isinstance(error, (ConnectionFailure, ClientConnectionError, ConnectionError)):
        return True
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0) if isinstance(error, ClientError) else 0
    return status >= 500 or status == 429 or _code(error) == "ConditionalRequestConflict"


def _session() -> AioSession:
    """A session that sends a body without waiting for "100 Continue", since no timeout covers that wait."""
    session = AioSession()
    session.register_component("data_loader", SERVICE_MODELS)
    session.unregister("before-call.s3", add_expect_header)
    PROCESS_REQUESTS.watch(session)
    return session


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn the errors of storage libraries into SpinErrors of one line; `what` is its first part.

    Raises UserError if credentials are refused, if something does not exist or if a path of a disk cannot be used, and
    UnavailableError if trying again may help. What may be a credential in a URI, of `what` or of an error's text, is
    masked.
    """
    what = mask_credentials(what)
    try:
        yield
    except SpinError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{what}: not found ({_reason(error)})") from None
    except ParamValidationError as error:
        raise UserError(f"{what}: {_reason(error)}") from None
    # guarded by test_a_permanent_fault_raises_unavailable_error; broken by:
    #   except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
    except (BotoCoreError, ClientError, Boto3Error, AiohttpError, HTTPError, OSError) as error:
        _log.debug("%s: the store raised an error", what, exc_info=True)
        code = _code(error)
        if not code and (unusable := _path_error(what, error)):
            raise unusable from None
        raise store_error(
            what,
            _reason(error),
            # guarded by test_a_full_disk_ends_a_night_with_status_5_and_it_resumes; broken by:
            #   full=code in (*FULL, "507"),
            # guarded by test_an_exhausted_quota_fails_the_night_and_publishes_nothing; broken by:
            #   full=getattr(error, "errno", None) in _FULL_DISK,
            full=code in (*FULL, "507") or getattr(error, "errno", None) in _FULL_DISK,
            refused=isinstance(error, _NO_CREDENTIALS) or code in (*REFUSED, "403"),
        ) from None


def _path_error(what: str, error: BaseException) -> UserError | None:
    """The error for a path of a disk that cannot be used, or not by this user; None if something else is wrong."""
    number, reason = getattr(error, "errno", None), _reason(error)
    if isinstance(error, PermissionError) and number is not None:  # one of s3fs may have none
        return UserError(
            f"{what}: this user may not read or write it ({reason}); give permission, or name another path"
        )
    if number in _UNUSABLE_PATH:
        return UserError(f"{what}: the path cannot be used ({reason}); put that right, or name another path")
    return None


def store_error(what: str, reason: str, *, full: bool, refused: bool) -> SpinError:
    """The error for a store that is full, or else refuses the credentials, or else does not answer."""
    if full:
        return UnavailableError(f"{what}: the store is full ({reason}); free space, then run it again to resume")
    if refused:
        return UserError(f"{what}: the store refuses the credentials ({reason}); check the environment")
    # guarded by test_a_permanent_fault_raises_unavailable_error; broken by:
    #   return UserError(f"{what}: the store does not answer ({reason}); try again")
    return UnavailableError(f"{what}: the store does not answer ({reason}); try again")


def _code(error: BaseException) -> str:
    """The S3 error code, also of an error that s3fs has translated; empty if there is none."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            return str(candidate.response["Error"].get("Code", ""))
    return ""


def _reason(error: BaseException) -> str:
    message = shorten_message(mask_credentials(str(error)))
    return (message if message != "None" else "") or _code(error) or type(error).__name__
