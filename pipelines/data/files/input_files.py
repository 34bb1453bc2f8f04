"""List the input files, each with what shows whether it has changed."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pipelines.data.files import readers
from pipelines.data.files.shards import Piece
from pipelines.data.files.text_values import is_unicode
from pipelines.service_errors import BadFileError
from pipelines.storage.filesystem import find_files, glob_files, locate, may_match_below, open_filesystem, store_errors
from spin.errors import UserError

_BROKEN, _FOLDER = "broken link", "linked folder"
_UNRESOLVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""errors of a link that leads nowhere"""
_LINKS = {
    _BROKEN: "a symbolic link to a file that does not exist; remove it, or mend it",
    _FOLDER: "a symbolic link to a folder, which is not followed; name that folder as an input, or mount it here",
}
"""the types of symbolic links that cannot be read, with what is wrong"""


@dataclass(frozen=True)
class InputFile:
    """An input file and the values by which a change is detected."""

    uri: str
    """without `file://` on a disk"""
    kind: str
    """name of its reader, such as parquet"""
    size: int
    """bytes"""
    version: str
    """ETag, or modification time on a disk"""

    @property
    def whole(self) -> Piece:
        """All of the file."""
        return Piece(self.uri, self.kind, 0, self.size, size=self.size, version=self.version)


def list_files(uri: str, *, bad: dict[str, str] | None = None, allow_empty: bool = False) -> list[InputFile]:
    """The files of a path, a folder or a glob, in order of name.

    Sizes and versions come with the listing, so that there is no request per file. On a disk, links in the path of a
    folder are followed, so that a file has one name, whichever way its folder was reached. Files and folders whose
    names begin with `_` or `.` are left out, unless the URI itself contains that name.

    Raises UserError if there are no files, and BadFileError for a file of no known format; if `bad` is
    given, such files are left out and their URIs are added to it, each with the reason. With `allow_empty`, an empty
    folder or a glob without matches is an empty list; a path that does not exist on a disk is an error all the same.
    """
    with store_errors(uri):
        infos, exists = _find(uri)
    files = []
    for path, info in sorted(infos.items()):
        try:
            files.append(_file(_uri(uri, path), info))
        except BadFileError as error:
            if bad is None:
                raise
            bad[_printable(_uri(uri, path))] = error.reason
    if not files and not (allow_empty and exists):
        known = readers.list_formats([each.title for each in readers.READERS])
        raise UserError(f"no data at {uri}; expected a file, a folder or a glob of {known}")
    return files


def check_output_outside(source: str, output: str) -> None:
    """Raise UserError if an output lies within its input, so that a night would read what another has written."""
    (protocol, path), (output_protocol, output_path) = _resolve(source), _resolve(output)
    if protocol != output_protocol:
        return
    wanted, parts = path.rstrip("/").split("/"), output_path.rstrip("/").split("/")
    if parts[: len(wanted)] == wanted or (glob.has_magic(path) and may_match_below(wanted, parts)):
        raise UserError(f"the output {output} lies within the input {source}; name an output elsewhere")


def _resolve(uri: str) -> tuple[str, str]:
    """The protocol and the path of a URI; on a disk without symbolic links."""
    protocol, path = locate(uri)
    return protocol, os.path.realpath(path) if protocol == "file" else path


def _resolve_folders(path: str) -> str:
    """A path on a disk whose folders are no symbolic links; of a glob, those before its first wildcard.

    A link to a file keeps its name, which says of what format the file is.
    """
    if os.path.isdir(path):
        return os.path.realpath(path)
    is_pattern = glob.has_magic(path) and not os.path.lexists(path)
    folder = _fixed_part(path) if is_pattern else os.path.dirname(path)
    resolved = os.path.realpath(folder or "/")
    if is_pattern and glob.has_magic(resolved):  # characters of a folder's name must not become wildcards
        return path
    return os.path.join(resolved, path[len(folder) :].lstrip("/"))


def _fixed_part(path: str) -> str:
    """The part of a glob before its first wildcard."""
    fixed = "/".join(takewhile(lambda part: not glob.has_magic(part), path.split("/")))
    return fixed or ("/" if path.startswith("/") else "")


def _find(uri: str) -> tuple[Mapping[str, Any], bool]:
    """The visible files of a path, a folder or a glob with their details, and whether there is a place to look in."""
    fs, path = open_filesystem(uri)
    is_glob = glob.has_magic(path)
    path = _resolve_folders(path) if locate(uri)[0] == "file" else path
    # guarded by test_an_input_folder_that_cannot_be_listed_ends_the_command; broken by:
    #   infos = fs.find(path, detail=True)
    infos = find_files(fs, path, enter=lambda folder: _is_visible(folder, path))
    if list(infos) == [path]:
        info = infos[path] or fs.info(path)
        return ({path: info} if info["type"] == "file" else {}), True
    base, exists = path, bool(infos) or "://" in uri or fs.isdir(path)
    if not infos and is_glob:
        base = _fixed_part(path)
        try:
            infos = glob_files(fs, path, base)
        except ValueError as error:
            raise UserError(f"{path} is no glob: {error}") from None
        exists = bool(infos) or "://" in uri or fs.isdir(base)
    visible = {path: info for path, info in infos.items() if not path.endswith("/") and _is_visible(path, base)}
    visible = {path: _follow(fs, path) if info.get("islink") else info for path, info in visible.items()}
    return {path: info for path, info in visible.items() if info["type"] in ("file", *_LINKS)}, exists


def _follow(fs: Any, path: str) -> Mapping[str, Any]:
    """The details of a symbolic link, with the size and the time of its target."""
    try:
        details: Mapping[str, Any] = fs.info(path)
        return {"type": _FOLDER} if details["type"] == "directory" else details
    except OSError as error:
        if error.errno not in _UNRESOLVED:
            raise
        return {"type": _BROKEN}


def _is_visible(path: str, base: str) -> bool:
    """Whether a path has no hidden name below the base."""
    return not any(part.startswith(("_", ".")) for part in path[len(base) :].split("/"))


def _uri(source: str, path: str) -> str:
    """The URI of a path that was listed for a source."""
    protocol, _ = locate(source)
    return path if protocol == "file" else f"{protocol}://{path}"


def _printable(uri: str) -> str:
    """A URI with the bytes of a name that is not UTF-8 written as escapes."""
    return uri.encode(errors="backslashreplace").decode()


def _file(uri: str, info: Mapping[str, Any]) -> InputFile:
    if not is_unicode(uri):
        raise BadFileError(f"{_printable(uri)} has a name that is not UTF-8; rename it")
    if info["type"] in _LINKS:
        raise BadFileError(f"{uri} is {_LINKS[info['type']]}")
    reader = readers.find_reader(uri)
    if reader is None:
        known = readers.list_formats([each.title for each in readers.READERS])
        endings = readers.list_formats([each.endings[0] for each in readers.READERS])
        raise BadFileError(f"{uri} is not {known} by its name; expected {endings}")
    if "?versionId=" in uri and "://" in uri:
        raise BadFileError(f"{uri} has a name that S3 clients take for a version of another file; rename it")
    version = str(info.get("ETag") or info.get("mtime") or "").strip('"')
    return InputFile(uri, reader.name, int(info["size"]), version)
